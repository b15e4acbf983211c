"""The files for the operating system agree with the program."""

import re
import subprocess
from pathlib import Path

import pytest

from mailproxy.arguments import COMMANDS
from mailproxy.cli import main

SYSTEM = Path(__file__).parent.parent / "system"


@pytest.fixture
def options(capfd: pytest.CaptureFixture[str]) -> set[str]:
    """The options that the program knows, from its own help."""
    main(["--help"])
    usage = capfd.readouterr().out.partition("Options:")[2]
    rows = re.findall(r"^  ([^:]+?) +:", usage, re.MULTILINE)
    return {word for row in rows for word in re.findall(r"--?[\w?-]+", row)}


def test_manual_page_tells_every_option(options: set[str]) -> None:
    page = (SYSTEM / "mailproxy.8").read_text()
    told = re.findall(r"^\.It (Fl .*)$", page, re.MULTILINE)
    assert {
        f"-{word}" for row in told for word in re.findall(r"Fl (\S+)", row)
    } == options


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_offers_every_option(shell: str, options: set[str]) -> None:
    text = (SYSTEM / f"completion.{shell}").read_text().replace("-\\?", "-?")
    words = set(re.findall(r"(?<![\w-])--?[\w?-]+", text))
    assert options <= words


@pytest.mark.parametrize("file", ["completion.bash", "completion.zsh", "mailproxy.8"])
def test_every_command_is_told(file: str) -> None:
    text = (SYSTEM / file).read_text()
    offers = {
        "completion.bash": r"compgen -W \"([\w ]+)\" -- \"\$cur\"\n",
        "completion.zsh": r"1:command:\(\((.*)\)\)",
        "mailproxy.8": r"^\.Cm (\w+)$",
    }
    told = " ".join(re.findall(offers[file], text, re.MULTILINE))
    assert set(COMMANDS) <= set(re.findall(r"\w+", told))


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["-s", "re"], ["reload", "reopen"]),
        (["de"], ["demo"]),
        (["he"], ["help"]),
        (["help", ""], ["certificates", "demo"]),
        (["certificates", "--w"], ["--warn"]),
        (["--v"], ["--version"]),
        (["demo", "--c"], ["--check"]),
        (["-t", "--d"], ["--dump-json"]),
    ],
)
def test_bash_completes(typed: list[str], offered: list[str]) -> None:
    words = " ".join(["mailproxy", *typed])
    script = (
        f"source {SYSTEM / 'completion.bash'}; COMP_WORDS=({words});"
        f' COMP_CWORD={len(typed)}; _mailproxy; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == offered
    assert done.stderr == ""

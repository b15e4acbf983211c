"""`mailproxy certificates`: what ends when, and who gets what."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from trustme import KeyType

from mailproxy.cli import main
from tests.named import Site

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
DIRECTORY = "ssl_certificate_directory certs;"
DEFAULT = "ssl_certificate default.crt; ssl_certificate_key default.key;"
VARIABLES = (
    "ssl_certificate more/$ssl_server_name.crt;"
    "ssl_certificate_key more/$ssl_server_name.key;"
)


class Shell:
    """Runs the command in a site.

    Attributes:
      error: what it wrote to stderr the last time.
    """

    def __init__(self, site: Site, capfd: pytest.CaptureFixture[str]) -> None:
        self._site = site
        self._capfd = capfd
        self.error = ""

    def __call__(self, *words: str) -> tuple[int, str]:
        """The exit code, and what was written to stdout."""
        place = ["-p", f"{self._site.directory}/", "-c", "main"]
        code = main(["certificates", *place, *words])
        captured = self._capfd.readouterr()
        self.error = captured.err
        return code, captured.out


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def run(site: Site, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(site, capfd)


def put(
    site: Site,
    *names: str,
    file: str,
    left: timedelta,
    begins: timedelta = timedelta(days=60),
    kind: KeyType = KeyType.ECDSA,
) -> str:
    """A certificate with so much time left; its last day."""
    ends = NOW + left + timedelta(minutes=30)
    site.issuer.put(*names, file=file, kind=kind, begins=NOW - begins, ends=ends)
    return str(ends.date())


def test_the_table_is_sorted_by_the_end(site: Site, run: Shell) -> None:
    late = put(site, "mail.example.org", "a.b", "c.d", file="live/m", left=67 * DAY)
    soon = put(site, "*.example.net", file="net", left=6 * DAY, kind=KeyType.RSA)
    old = put(
        site, "mail.example.org", file="old", left=-DAY, begins=timedelta(days=90)
    )
    older = put(site, "a.b", file="older", left=80 * DAY, begins=timedelta(days=70))
    site.load(DEFAULT + DIRECTORY, DIRECTORY)
    assert run() == (
        0,
        f"""\
NAME                  TYPE       EXPIRES     LEFT     FILE              USED BY
mail.example.org      ECDSA 256  {old}  expired  certs/old.crt     unused: mail.example.org is in a valid one
*.example.net         RSA 2048   {soon}  6d!      certs/net.crt     127.0.0.1:1000, 127.0.0.1:1001
mail.example.org, +2  ECDSA 256  {late}  67d      certs/live/m.crt  127.0.0.1:1000, 127.0.0.1:1001 (default)
a.b                   ECDSA 256  {older}  80d      certs/older.crt   unused: a.b is in a younger one
default.example.org   ECDSA 256  3000-01-01  {(datetime(3000, 1, 1, tzinfo=UTC) - NOW).days}d  default.crt       127.0.0.1:1000 (default)
""",
    )
    assert run.error == ""


def test_nobody_gets_a_default_where_unknown_names_are_refused(
    site: Site, run: Shell
) -> None:
    put(site, "a.example.org", file="a", left=67 * DAY)
    site.load(DIRECTORY + "ssl_reject_handshake on;")
    (row,) = json.loads(run("--json")[1])
    assert row["used_by"] == [{"listen": "127.0.0.1:1000", "default": False}]


def test_the_exit_code_says_whether_one_in_use_ends(site: Site, run: Shell) -> None:
    put(site, "a.example.org", file="a", left=6 * DAY)
    site.load(DEFAULT + DIRECTORY)
    assert [run("--warn", days)[0] for days in ("0", "6", "7")] == [0, 0, 1]
    assert run("--warn", "7", "--name", "b.example.org")[0] == 0
    assert run("--warn", "7", "--name", "a.example.org")[0] == 1
    put(site, "b.example.org", file="b", left=-DAY)
    assert run()[0] == 1


def test_json(site: Site, run: Shell) -> None:
    put(site, "a.example.org", "b.example.org", file="a", left=6 * DAY)
    put(site, "a.example.org", file="old", left=5 * DAY, begins=timedelta(days=70))
    site.load(DIRECTORY)
    code, out = run("--json")
    assert code == 0
    old, new = json.loads(out)
    assert old["unused"] == "a.example.org is in a younger one"
    assert old["used_by"] == []
    ends = NOW + 6 * DAY + timedelta(minutes=30)
    assert new == {
        "file": f"{site.directory}/certs/a.crt",
        "names": ["a.example.org", "b.example.org"],
        "type": "ECDSA",
        "bits": 256,
        "begins": (NOW - 60 * DAY).isoformat(),
        "expires": ends.isoformat(),
        "days_left": 6,
        "used_by": [{"listen": "127.0.0.1:1000", "default": True}],
        "unused": None,
    }


def test_what_a_name_gets_and_why(site: Site, run: Shell) -> None:
    put(site, "a.example.org", file="a", left=67 * DAY)
    put(site, "*.example.net", file="net", left=67 * DAY)
    site.issuer.put("v.example.org", file="../more/v.example.org")
    site.issuer.put("bad.example.org", file="../more/bad.example.org")
    (site.directory / "more" / "bad.example.org.key").unlink()
    strict = f"{DIRECTORY} ssl_reject_handshake on;"
    site.load(DEFAULT + DIRECTORY + VARIABLES, strict)
    listens = {"127.0.0.1:1000", "127.0.0.1:1001"}

    def answers(name: str) -> dict[str, tuple[object, list[str]]]:
        code, out = run("--name", name, "--json")
        assert code == 0
        found = json.loads(out)
        assert {each["listen"] for each in found} == listens
        return {
            each["listen"][-1]: (
                each["by"],
                [
                    certificate["file"].removeprefix(f"{site.directory}/")
                    for certificate in each["certificates"]
                ],
            )
            for each in found
        }

    assert answers("A.example.org") == {
        "0": ("exact name", ["certs/a.crt"]),
        "1": ("exact name", ["certs/a.crt"]),
    }
    assert answers("x.example.net") == {
        "0": ("wildcard", ["certs/net.crt"]),
        "1": ("wildcard", ["certs/net.crt"]),
    }
    assert answers("v.example.org") == {
        "0": ("$ssl_server_name", ["more/v.example.org.crt"]),
        "1": (None, []),
    }
    assert answers("other.example.org") == {
        "0": ("default", ["default.crt"]),
        "1": (None, []),
    }
    _, out = run("--name", "bad.example.org")
    first, second, third, note = out.splitlines()
    assert first.split() == ["LISTEN", "TYPE", "EXPIRES", "LEFT", "FILE", "BY"]
    assert second.split()[-2:] == ["default.crt", "default"]
    assert third.split() == ["127.0.0.1:1001", "-", "-", "-", "-", "refused"]
    key = site.directory / "more" / "bad.example.org.key"
    assert note == (
        f'127.0.0.1:1000: cannot load certificate key "{key}":'
        " open() failed (No such file or directory)"
    )


def test_files_for_each_name_are_listed(site: Site, run: Shell) -> None:
    site.load(DEFAULT + VARIABLES)
    line = run()[1].splitlines()[-1]
    assert line.split() == [
        *("$ssl_server_name", "-", "-", "-"),
        *("more/$ssl_server_name.crt", "127.0.0.1:1000"),
    ]


def test_without_tls_there_is_nothing(site: Site, run: Shell) -> None:
    (site.directory / "main").write_text(
        "pid /dev/null; events {} mail { auth_http 127.0.0.1:9;"
        " server { listen 127.0.0.1:143; } }"
    )
    code, out = run()
    assert (code, out.split()) == (
        0,
        ["NAME", "TYPE", "EXPIRES", "LEFT", "FILE", "USED", "BY"],
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--warn",), 'option "--warn" requires a value'),
        (("--warn", "x"), 'invalid number of days: "x"'),
        (("--name", "\udcff"), 'invalid host name: "'),
        (("--jsn",), 'invalid option: "-"'),
        (("-t",), "this command has no such option"),
        (("-s", "quit"), "this command has no such option"),
        (("x",), 'invalid option: "x"'),
    ],
)
def test_usage(site: Site, run: Shell, words: tuple[str, ...], text: str) -> None:
    site.load(DEFAULT)
    code, out = run(*words)
    assert (code, out) == (2, "")
    assert run.error.startswith(f"mailproxy: {text}")


def test_a_configuration_that_cannot_be_loaded(site: Site, run: Shell) -> None:
    site.load(DEFAULT)
    (site.directory / "main").write_text("events {} mails { }")
    code, out = run()
    assert (code, out) == (2, "")
    assert 'unknown directive "mails"' in run.error


def test_help(site: Site, run: Shell) -> None:
    code, out = run("--help")
    assert code == 0
    assert "--name host" in out

"""Which form runs: the compiled core, or Python."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from mailproxy import compiled

PACKAGE = Path(compiled.__file__).parent
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))

Tell = Callable[..., tuple[str, str]]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, without a build."""
    copy = tmp_path / "mailproxy"
    shutil.copytree(
        PACKAGE, copy, ignore=shutil.ignore_patterns("_core.*.so", "__pycache__")
    )
    return copy


@pytest.fixture
def tell(package: Path) -> Tell:
    """What the copy says: its form, and the problem."""

    def run(pure: str = "") -> tuple[str, str]:
        program = (
            "from mailproxy import compiled; print(compiled.form());"
            "print(compiled.problem() or '')"
        )
        found = subprocess.run(
            [sys.executable, "-c", program],
            cwd=package.parent,
            env={**os.environ, "MAILPROXY_PURE": pure},
            check=True,
            capture_output=True,
            text=True,
        )
        form, problem = found.stdout.splitlines()
        return form, problem

    return run


def digest_of(package: Path) -> str:
    program = "from mailproxy import compiled; print(compiled.digest())"
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=package.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip()


def build(package: Path, digest: str) -> None:
    """What stands for a build of the sources with this digest."""
    (package / "_core.py").write_text(f"SOURCES = {digest!r}\n")


def test_all_modules_have_one_form() -> None:
    modules = [importlib.import_module(f"mailproxy.net.{m}") for m in compiled.MODULES]
    files = {str(module.__file__) for module in modules}
    if compiled.form() == "compiled core":
        assert len(files) == 1
        assert files.pop().endswith(SUFFIX)
    else:
        assert files == {str(PACKAGE / "net" / f"{m}.py") for m in compiled.MODULES}


def test_without_a_build_it_is_python(tell: Tell) -> None:
    assert tell() == ("pure Python", "")


def test_a_build_is_used(package: Path, tell: Tell) -> None:
    build(package, digest_of(package))
    assert tell() == ("compiled core", "")


def test_a_build_can_be_refused(package: Path, tell: Tell) -> None:
    build(package, digest_of(package))
    assert tell(pure="1") == ("pure Python", "")


@pytest.mark.parametrize(
    "name",
    ["_core.pyx", "net/calls.pyx", "net/wire.py", "net/wire.pxd", "net/calls.py"],
)
def test_a_build_of_other_sources_is_not_used(
    package: Path, tell: Tell, name: str
) -> None:
    build(package, digest_of(package))
    with (package / name).open("a") as source:
        source.write("\n")
    form, problem = tell()
    assert form == "pure Python"
    assert problem == (
        "the compiled core is not used, as it was made from other sources than those in "
        f"{package}; build it again, or remove {package}/_core.py"
    )


@pytest.mark.parametrize("name", ["_core.pyx", "net/calls.pyx", "net/wire.pxd"])
def test_a_build_without_its_sources_is_not_used(
    package: Path, tell: Tell, name: str
) -> None:
    build(package, digest_of(package))
    (package / name).unlink()
    form, problem = tell()
    assert form == "pure Python"
    assert problem.startswith("the compiled core is not used, ")


def test_other_modules_are_not_among_the_sources(package: Path) -> None:
    before = digest_of(package)
    with (package / "net" / "idle.py").open("a") as source:
        source.write("\n")
    assert digest_of(package) == before


def test_a_build_that_cannot_be_loaded_is_not_used(package: Path, tell: Tell) -> None:
    (package / f"_core{SUFFIX}").write_bytes(b"no machine code")
    form, problem = tell()
    assert form == "pure Python"
    assert problem.startswith(
        "the compiled core cannot be loaded, Python runs instead: "
    )


def test_it_is_said_to_the_user(package: Path) -> None:
    build(package, "of another version")
    found = subprocess.run(
        [sys.executable, "-m", "mailproxy", "-V"],
        cwd=package.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "(pure Python)\n" in found.stderr
    assert "the compiled core is not used" in found.stderr

"""The borders between the rooms: who may import whom, read from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mailproxy

ROOT = Path(mailproxy.__file__).parent

ALLOWED = {
    "errors": set(),
    "outside": set(),
    "log": {"errors"},
    "conf": {"outside"},
    "net": {"errors", "log", "outside"},
    "mail": {"conf", "errors", "log", "net", "outside"},
    "process": {"conf", "errors", "log", "mail", "net", "outside"},
    "cli": {"conf", "demo", "errors", "inspection", "log", "mail", "process"},
    "inspection": {"conf", "mail", "process"},
    "demo": {"errors", "mail", "net", "process"},
    "__main__": {"cli"},
}
"""Each room (or single file) and what it may import besides itself."""

NGINX_MODULES = {"core", "ssl", "proxy", "realip", "imap", "pop3", "smtp", "auth"}
"""The files of `mail` that stand for an nginx mail module."""

SEE_ALL_MODULES = {"modules", "session"}
"""The files of `mail` that bring the modules together."""


def names(path: Path) -> list[str]:
    """The dotted name of a file below the package: ["mail", "auth", "http"]."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(path: Path) -> Iterator[list[str]]:
    """What a file imports of mailproxy, as dotted names below the package."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            package, *rest = name.split(".")
            if package == "mailproxy" and rest and rest != ["__version__"]:
                yield rest


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(names(path)))
def test_file_imports_only_what_its_room_may(path: Path) -> None:
    room = (names(path) or ["__init__"])[0]
    allowed = ALLOWED.get(room, set()) | {room}
    assert {name[0] for name in imported(path)} <= allowed


def test_only_session_and_modules_see_several_mail_modules() -> None:
    for path in (ROOT / "mail").rglob("*.py"):
        module = names(path)[1:2]
        if module and module[0] not in SEE_ALL_MODULES:
            seen = {
                name[1]
                for name in imported(path)
                # What an auth source is and answers belongs to all modules.
                if name[0] == "mail" and name[1:3] != ["auth", "source"]
            }
            assert len((seen | set(module)) & NGINX_MODULES) <= 1, path


def test_every_room_is_in_the_table() -> None:
    rooms = {names(path)[0] for path in FILES if names(path)}
    assert rooms <= ALLOWED.keys()

"""The borders between the rooms: who may import whom, read from the source."""

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import mailproxy
from mailproxy.mail.protocols import PROTOCOLS

ROOT = Path(mailproxy.__file__).parent

ALLOWED = {
    "errors": set(),
    "outside": set(),
    "frozen": set(),
    "compiled": set(),
    "stats": set(),
    "conf": {"outside"},
    "log": {"conf", "errors"},
    "net": {"compiled", "conf", "errors", "log", "outside", "stats"},
    "auth": {"conf", "errors", "log", "net"},
    "manager": {"conf", "errors", "log", "mail", "net", "stats"},
    "mail": {"auth", "conf", "errors", "log", "net", "outside", "stats"},
    "process": {
        *("compiled", "conf", "errors", "log", "mail", "manager", "net"),
        *("outside", "stats"),
    },
    "arguments": {"conf", "process"},
    "certificates": {"arguments", "mail", "net"},
    "cli": {
        "arguments",
        "certificates",
        "compiled",
        "conf",
        "demo",
        "errors",
        "inspection",
        "log",
        "mail",
        "process",
    },
    "inspection": {"auth", "conf", "mail", "process"},
    "demo": {"auth", "errors", "log", "mail", "net", "process"},
    "__main__": {"cli"},
}
"""Each room (or single file) and what it may import besides itself."""

LIBRARIES = {
    "_ssl": ("net/openssl/",),
    "ctypes": ("net/openssl/", "process/"),
    "cryptography": ("net/openssl/",),
    "lark": ("conf/grammar.py",),
    "setproctitle": ("process/title.py",),
    "structlog": ("log/",),
    "threading": ("demo/", "net/engine.py"),
    "trustme": ("demo/",),
}
"""Modules that one room (or file) knows, and which that is. No worker has threads."""

NET_SEES_OF_LOG = {"Logger", "SessionInfo"}
"""`net` may write to a log, and keeps the list of live sessions; it looks into none."""

FOR_TYPES = {"log.session_info": {"net.proxy_protocol.Header", "net.wire.Wire"}}
"""What a file may name besides, as types of values that it only carries."""

NGINX_MODULES = {"core", "ssl", "proxy", "realip", "imap", "pop3", "smtp"}
"""The files of `mail` that stand for an nginx mail module."""

SEE_ALL_MODULES = {"modules", "protocols", "server", "session"}
"""The files of `mail` that bring the modules together."""


def names(path: Path) -> list[str]:
    """The dotted name of a file below the package: ["net", "openssl", "errors"]."""
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
MODULES = {".".join(names(path)): path for path in FILES}


class _AtImport(ast.NodeVisitor):
    """Finds what is imported when a module is: not in functions, not for types."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        pass

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        pass

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.found |= {f"{node.module}.{alias.name}" for alias in node.names}


def loads(path: Path) -> set[str]:
    """The modules of mailproxy whose import a file waits for, without their packages."""
    visitor = _AtImport()
    visitor.visit(ast.parse(path.read_bytes()))
    found = {name.removeprefix("mailproxy.") for name in visitor.found}
    return {
        name if name in MODULES else name.rpartition(".")[0]
        for name in found
        if name in MODULES or name.rpartition(".")[0] in MODULES
    } - {""}


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(names(path)))
def test_file_imports_only_what_its_room_may(path: Path) -> None:
    room = (names(path) or ["__init__"])[0]
    allowed = ALLOWED.get(room, set()) | {room, "frozen"}
    for_types = FOR_TYPES.get(".".join(names(path)), set())
    seen = {tuple(name) for name in imported(path) if ".".join(name) not in for_types}
    assert {name[0] for name in seen} <= allowed


def test_no_module_waits_for_itself() -> None:
    """Only types may refer to each other, for the checker (`if TYPE_CHECKING`)."""
    graph = {name: loads(path) for name, path in MODULES.items()}
    assert "net.wire" in graph["net.network"]
    assert "demo" not in graph["cli"]
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_net_does_not_know_what_a_session_is() -> None:
    for path in (ROOT / "net").rglob("*.py"):
        seen = {name[-1] for name in imported(path) if name[0] == "log"}
        assert seen <= NET_SEES_OF_LOG, path


def test_a_library_has_its_room() -> None:
    for path in FILES:
        place = path.relative_to(ROOT).as_posix()
        for name in packages(path) & LIBRARIES.keys():
            assert place.startswith(LIBRARIES[name]), f"{place} imports {name}"


def test_only_session_and_modules_see_several_mail_modules() -> None:
    for path in (ROOT / "mail").rglob("*.py"):
        module = names(path)[1:2]
        if module and module[0] not in SEE_ALL_MODULES:
            seen = {name[1] for name in imported(path) if name[0] == "mail"}
            assert len((seen | set(module)) & NGINX_MODULES) <= 1, path


LEAVES = {
    "Backend",
    "Client",
    "ImapSettings",
    "Login",
    "MailProtocol",
    "Pop3Settings",
    "ProxySslSettings",
    "Server",
    "SmtpDialogue",
    "SmtpSettings",
    "SslSettings",
}
"""What files of `mail` may import for the checking of types where that closes a circle."""


def only_for_types(tree: ast.Module) -> set[ast.AST]:
    """The parts of a file that stand under ``if TYPE_CHECKING:``."""
    return {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in ast.walk(node)
    }


def needed(path: Path) -> set[str]:
    """The files that a file imports, dotted, but for the checking of leaf types."""
    tree = ast.parse(path.read_bytes())
    for_types = only_for_types(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name for alias in node.names}
            if node not in for_types or names - LEAVES:
                found |= {node.module, *(f"{node.module}.{name}" for name in names)}
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The ways that lead back to where they begin, one for each file where one ends."""
    done: set[str] = set()
    found = []

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for each in sorted(imports[name]):
                visit(each, [*way, name])
            done.add(name)

    for name in imports:
        visit(name, [])
    return found


def test_nothing_in_mail_imports_itself_by_way_of_others() -> None:
    files = {".".join(["mailproxy", *names(path)]): path for path in FILES}
    inside = {name for name in files if name.startswith("mailproxy.mail.")}
    imports = {name: needed(files[name]) & inside - {name} for name in inside}
    assert circles(imports) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]


def asked_by_name(path: Path) -> Iterator[str]:
    """Where a file compares something with the name of a protocol."""
    protocols = {each.name for each in PROTOCOLS}
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Compare | ast.MatchValue):
            texts = {
                each.value for each in ast.walk(node) if isinstance(each, ast.Constant)
            }
            if not protocols.isdisjoint(texts):
                yield f"{path}:{node.lineno}"


def test_nothing_asks_for_the_name_of_a_protocol() -> None:
    """What differs between protocols is a field, a method or a file of theirs."""
    rooms = ("auth", "log", "mail", "manager", "net", "process")
    found = [
        place
        for path in FILES
        if (names(path) or [""])[0] in rooms
        for place in asked_by_name(path)
    ]
    assert found == []


OF_TRIO = {
    *("CancelScope", "Event", "Nursery", "Semaphore", "TaskStatus"),
    *("current_time", "move_on_after", "open_memory_channel", "open_nursery", "run"),
    *("sleep", "sleep_forever"),
    "lowlevel.checkpoint",
}
"""What a worker uses of trio; the rest waits for descriptors by itself, or with threads."""

AMONG_THE_TASKS = (["net", "engine"], ["net", "driven"], ["process", "manager"])
"""The files that may do more: they know whose turn it is, or are no part of a worker."""

USED_BY_SESSIONS = ("auth", "mail")
"""Rooms whose code runs in driven tasks, where "the current task" of trio is another one:
they do not know trio, and wait through `Wire`, `Timer` and `Relay` only."""


def used_of_trio(path: Path) -> Iterator[str]:
    """The dotted names that a file uses of trio, as in "lowlevel.checkpoint"."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trio"):
            above = (node.module or "").removeprefix("trio").lstrip(".")
            yield from (f"{above}.{each.name}".lstrip(".") for each in node.names)
        elif isinstance(node, ast.Import):
            # Under another name, nobody would find what is used of it.
            yield from (
                f"{each.name} as {each.asname}"
                for each in node.names
                if each.name.startswith("trio") and each.name != (each.asname or "trio")
            )
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("trio.") and name != "trio.lowlevel":
                yield name.removeprefix("trio.")


def test_in_a_worker_only_the_engine_waits_as_trio_does() -> None:
    """Anything else would take the fast path away from all sessions."""
    for path in FILES:
        if names(path)[:1] not in (["demo"], ["manager"]) and (
            names(path) not in AMONG_THE_TASKS
        ):
            assert set(used_of_trio(path)) <= OF_TRIO, path


def test_sessions_do_not_wait_as_trio_s_tasks_do() -> None:
    """A sleep, a scope or an event would take another task for the session."""
    for path in FILES:
        if names(path)[0:1] and names(path)[0] in USED_BY_SESSIONS:
            assert "trio" not in packages(path), path


def test_what_is_used_of_trio_is_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    for text in (
        "from trio import lowlevel",
        "import trio as t",
        "import trio.socket",
        "import trio\nawait_ = trio.to_thread.run_sync(f)",
        "import trio\nawait_ = trio.open_file(f)",
    ):
        path.write_text(text)
        assert not set(used_of_trio(path)) <= OF_TRIO, text


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, list[Path]] = {}
    for path in FILES:
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def packages(path: Path) -> set[str]:
    """The top names of what a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_product_needs_no_more_than_its_dependencies() -> None:
    """What only tests need is not there where mailproxy is installed."""
    text = (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = tomllib.loads(text)["project"]["dependencies"]
    needed = {re.split("[^a-z]", each)[0] for each in dependencies}
    of_trio = {"outcome"}  # a part of trio's interface for instruments and tasks
    ours = {"mailproxy", *sys.stdlib_module_names, *of_trio}
    assert {name for path in FILES for name in packages(path)} - ours == needed


def test_every_room_is_in_the_table() -> None:
    rooms = {names(path)[0] for path in FILES if names(path)}
    assert rooms <= ALLOWED.keys()


def test_functions_of_mail_can_be_seen_whole() -> None:
    for path in (ROOT / "mail").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 30, f"{path}: {node.name}"

"""Writes what is made from the code: docs/directives.md and the table in README.md.

From the declarations comes what there is, and from the tests what proves it: a test
says by ``@pytest.mark.proves("listen", "backlog=")`` which directive, and which of its
parameters, it shows the effect of; a script by the comment ``# proves: listen backlog=``
under its title. ``context="main"`` names one of two directives of the same name.

python docs/generate.py           writes both
python docs/generate.py --check   exits 1 if one of them is not current
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mailproxy.auth.http import AuthHttpSettings
from mailproxy.conf.directive import Declaration, Settings, declarations
from mailproxy.mail.core import CoreSettings
from mailproxy.mail.health_check import HealthCheckSettings
from mailproxy.mail.match import MatchSettings
from mailproxy.mail.modules import MODULES, OF_BLOCKS
from mailproxy.mail.protocols import PROTOCOLS
from mailproxy.mail.proxy import ProxySettings
from mailproxy.mail.realip import RealipSettings
from mailproxy.mail.ssl import SslSettings
from mailproxy.mail.upstream import UpstreamSettings
from mailproxy.process.settings import EventsSettings, MainSettings

ROOT = Path(__file__).parent.parent
BEGIN = "<!-- made by `make docs`, do not edit -->\n"
END = "<!-- end -->\n"

ROWS: dict[str, tuple[type[Settings], ...]] = {
    "core: processes, logs, events": (MainSettings, EventsSettings),
    "mail core: listeners, limits, resolver": (CoreSettings,),
    **{each.name.upper(): (each,) for each in sorted(PROTOCOLS, key=lambda p: p.name)},
    "auth_http": (AuthHttpSettings,),
    "proxy: backends, XCLIENT, PROXY protocol out": (ProxySettings,),
    "upstream: groups of backends, health checks": (
        UpstreamSettings,
        HealthCheckSettings,
        MatchSettings,
    ),
    "realip: PROXY protocol in": (RealipSettings,),
    "TLS, STARTTLS": (SslSettings,),
}


@dataclass(frozen=True)
class Proof:
    """What a test shows the effect of."""

    directive: str
    parameters: tuple[str, ...]
    context: str | None
    test: str
    """The name of the test, or the title of the script."""
    path: Path
    """Its file, from the root."""

    def concerns(self, declaration: Declaration) -> bool:
        """Whether it is about that directive."""
        return self.directive == declaration.name and (
            self.context is None or self.context in declaration.contexts
        )

    def __str__(self) -> str:
        """As a cell of a table has it."""
        what = ", ".join(f"`{each}`" for each in self.parameters)
        return f"{what and f'{what}: '}[{self.test}](../{self.path.as_posix()})"


def proofs() -> list[Proof]:
    """What the tests say that they prove."""
    found: list[Proof] = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found += _marks(node, path.relative_to(ROOT))
    for path in sorted((ROOT / "tests" / "differential" / "scripts").glob("*.txt")):
        found += _comments(path)
    return found


def _marks(
    test: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, path: Path
) -> Iterator[Proof]:
    for mark in test.decorator_list:
        if (
            isinstance(mark, ast.Call)
            and ast.unparse(mark.func) == "pytest.mark.proves"
        ):
            directive, *parameters = map(ast.literal_eval, mark.args)
            named = {each.arg: ast.literal_eval(each.value) for each in mark.keywords}
            yield Proof(
                directive,
                tuple(parameters),
                path=path,
                test=test.name,
                context=named.get("context"),
            )


def _comments(path: Path) -> Iterator[Proof]:
    title = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            title = line.removeprefix("== ").strip()
        elif line.startswith("# proves: "):
            directive, *parameters = line.removeprefix("# proves: ").split()
            yield Proof(
                directive, tuple(parameters), None, title, path.relative_to(ROOT)
            )


def declared() -> Iterator[Declaration]:
    """All directives, in the order of docs/directives.md."""
    for settings in (MainSettings, EventsSettings, *MODULES, *OF_BLOCKS):
        yield from declarations(settings).values()


def unproved() -> list[str]:
    """Directives, and parameters of them, that have an effect which no test shows."""
    known = proofs()
    missing = []
    for each in declared():
        if each.accepted:
            continue
        found = [proof for proof in known if proof.concerns(each)]
        name = f"{each.name} ({', '.join(each.contexts)})"
        if not found:
            missing.append(name)
        shown = {parameter for proof in found for parameter in proof.parameters}
        missing += [
            f"{name} {parameter}"
            for parameter in each.value.parameters
            if parameter not in shown
        ]
    return missing


def pointless() -> list[str]:
    """What tests say that they prove, and that is not declared to have an effect."""
    known = list(declared())
    wrong = []
    for proof in proofs():
        about = [each for each in known if proof.concerns(each)]
        if not about or any(
            each.accepted or not set(proof.parameters) <= set(each.value.parameters)
            for each in about
        ):
            wrong.append(f"{proof.path}: {proof.test}: {proof.directive}")
    return wrong


def table() -> str:
    """What works, module by module."""
    lines = [
        "| nginx's module | directives | effect proved by tests | accepted, no effect |",
        "|---|---:|---:|---:|",
    ]
    known = proofs()
    total: list[Declaration] = []
    for title, classes in ROWS.items():
        found = [
            each for settings in classes for each in declarations(settings).values()
        ]
        lines.append(row(title, found, known))
        total += found
    return "\n".join([*lines, row("**all**", total, known), ""])


def row(title: str, found: Sequence[Declaration], known: Sequence[Proof]) -> str:
    """One line of the table."""
    proved = [each for each in found if any(proof.concerns(each) for proof in known)]
    accepted = [each for each in found if each.accepted]
    return f"| {title} | {len(found)} | {len(proved)} | {len(accepted)} |"


def readme(text: str) -> str:
    """The README with a current table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, "README.md has lost the marks around its table"
    return before + BEGIN + "\n" + table() + "\n" + END + after


def directives() -> str:
    """The text of docs/directives.md: the command line's, and what proves it."""
    command = [sys.executable, "-m", "mailproxy", "--list-directives"]
    listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    known = proofs()
    rest = declared()
    lines = []
    for line in listed.stdout.decode().splitlines():
        cell = ""
        if line.startswith("| directive "):
            cell = " proved by |"
        elif line.startswith("|---"):
            cell = "---|"
        elif line.startswith("| "):
            cell = f" {_proved_by(next(rest), known)} |"
        lines.append(line + cell)
    return "\n".join([*lines, ""])


def _proved_by(declaration: Declaration, known: Sequence[Proof]) -> str:
    if declaration.accepted:
        return "accepted, no effect"
    found = [str(proof) for proof in known if proof.concerns(declaration)]
    return "<br>".join(found)


def stale() -> dict[Path, str]:
    """The files that are not current, and what is to be in them."""
    path = ROOT / "README.md"
    wanted = {
        path: readme(path.read_text()),
        ROOT / "docs" / "directives.md": directives(),
    }
    return {
        path: text
        for path, text in wanted.items()
        if not path.exists() or path.read_text() != text
    }


if __name__ == "__main__":
    for path, text in stale().items():
        path.write_text(text)

"""Scripts: dialogues as RFCs write them, with what stands around a session.

A script begins with `== TITLE`. The first letter of a line says who sends to whom:

    C: client to proxy        S: proxy to client
    P: proxy to backend       B: backend to proxy
    Q: question of the proxy to the auth server     A: its answer
    L: what the error log says of the session

`C| `, `B| ` and `A| ` lines belong to the same segment as the line before, `Q| `
to the same request. A number (`C2:`, `P2:`) means the second session, connection
of a backend, or pending auth request. `⟨open⟩ ⟨close⟩ ⟨fin⟩ ⟨reset⟩ ⟨tls⟩` are events.
`nginx ` or `ours ` in front of a line says that it holds only for that proxy; then
`why:` tells the reason. Ours has `proxy_login literal`, as nginx knows no other way. What else may stand in a script is `Script`.

    Q: plain u p            a whole usual request; see `requests.expand`
    A: OK                   lets the client in; `A| Auth-User: x` adds a header
    A: NO Bad password      refuses, with that text; `A: WAIT` is the third kind
    A: HTTP/1.0 200 OK      anything else is sent as it stands

What stands in a file before the first script holds for all of its scripts:
`protocol:`, `mail:` (directives of the mail block), the steps of an opening, and
`define NAME` with steps that `use: NAME` inserts.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

FOLDER = Path(__file__).parent / "scripts"
NGINX, OURS = "nginx", "ours"

_LINE = re.compile(r"(?:(nginx|ours) )?([CSPBQAL])(\d*)([:|])(?: (.*))?$")
_TIME = re.compile(r"\b(\w*timeout|smtp_greeting_delay) ([0-9]+)(ms|s)(?=;)")
_FIELD = re.compile(r"(?:(nginx|ours) )?([a-z]+): *(.*)$")


@dataclass(frozen=True)
class Step:
    """One line of a dialogue."""

    kind: str
    text: str
    label: int = 1
    joined: bool = False
    """Whether it continues the step before (`C| `)."""
    proxy: str = ""
    """`nginx` or `ours`; empty: both."""
    number: int = 0
    """Number of its line in the file; of the `use:` that inserted it."""
    inserted: bool = False

    def __str__(self) -> str:
        label = "" if self.label == 1 else str(self.label)
        mark = "|" if self.joined else ":"
        proxy = self.proxy and f"{self.proxy} "
        return f"{proxy}{self.kind}{label}{mark} {self.text}".rstrip()


@dataclass
class Script:
    """One dialogue and the server block it is held with."""

    file: Path
    title: str
    number: int
    """Number of its line in the file."""
    head: int = 0
    """Number of the last line before its steps."""
    protocol: str = ""
    address: str = "127.0.0.1"
    """Address of the listener; `unix` for a socket in the file system."""
    listen: str = ""
    """Parameters of `listen`."""
    auth: str = "127.0.0.1:⟨auth⟩/auth"
    """Argument of auth_http; the auth server listens at the port and at `⟨socket⟩`."""
    dns: list[str] = field(default_factory=list)
    """What the DNS server at `⟨dns⟩` knows, as `NAME TYPE VALUE`; see `names.Names`."""
    common: str = ""
    """Directives of the server blocks of the whole file."""
    server: dict[str, list[str]] = field(default_factory=dict)
    """Directives of the server block, by proxy ("" = both)."""
    why: str = ""
    """Why nginx and mailproxy differ here."""
    only: str = ""
    """The proxy that can play this at all."""
    log: str = "yes"
    """`no` and the reason where the lines of the log are not compared."""
    bytewise: str = "yes"
    """`no` and the reason where the script is about segments."""
    steps: list[Step] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Identifies the script in test reports."""
        return f"{self.file.stem}: {self.title}"

    def steps_for(self, proxy: str) -> list[Step]:
        """The steps that hold for one of the two proxies."""
        return [step for step in self.steps if step.proxy in {"", proxy}]

    def is_timed(self) -> bool:
        """Whether time passes in it, so that nothing else should go on meanwhile."""
        pauses = any(step.kind == "pause" for step in self.steps)
        return pauses or any(
            _TIME.search(self.directives(proxy)) for proxy in (NGINX, OURS)
        )

    def slowed(self, times: int) -> "Script":
        """The same with its limits and pauses so many times as long."""

        def slow(text: str) -> str:
            return _TIME.sub(lambda m: f"{m[1]} {int(m[2]) * times}{m[3]}", text)

        return replace(
            self,
            common=slow(self.common),
            server={who: list(map(slow, said)) for who, said in self.server.items()},
            steps=[
                replace(step, text=f"{float(step.text.removesuffix('s')) * times}s")
                if step.kind == "pause"
                else step
                for step in self.steps
            ],
        )

    def differs(self) -> bool:
        """Whether something is expected of one proxy and not of the other."""
        return any(step.proxy for step in self.steps)

    def directives(self, proxy: str) -> str:
        """What the server block holds besides what each has.

        A directive of the script replaces the one of its file.
        """
        own = " ".join(self.server.get("", []) + self.server.get(proxy, []))
        names = {text.split()[0] for text in own.split(";") if text.strip()}
        common = (text.strip() for text in self.common.split(";") if text.strip())
        return (
            "".join(f"{text}; " for text in common if text.split()[0] not in names)
            + own
        )


def read_all() -> list[Script]:
    """All scripts there are."""
    return [script for file in sorted(FOLDER.glob("*.txt")) for script in read(file)]


def read(file: Path) -> list[Script]:
    """The scripts of one file.

    Raises:
      ValueError: a line is none of the language's.
    """
    reader = _Reader(file)
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")):
        if line and not line.startswith("#"):
            try:
                reader.read(number, line)
            except (ValueError, KeyError) as error:
                raise ValueError(f"{file.name}:{number + 1}: {error}") from error
    return reader.finish()


class _Reader:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.common = Script(file, "", 0)
        self.blocks: dict[str, list[Step]] = {}
        self.scripts: list[Script] = []
        self.opening = self.steps = self.common.steps

    def read(self, number: int, line: str) -> None:
        if line.startswith("== "):
            self.script = replace(
                self.common,
                title=line[3:].strip(),
                number=number,
                head=number,
                steps=[
                    replace(step, number=number, inserted=True) for step in self.opening
                ],
                server={},
                dns=[],
            )
            self.scripts.append(self.script)
            self.steps = self.script.steps
        elif line.startswith("define "):
            self.steps = self.blocks.setdefault(line[7:].strip(), [])
        elif found := _LINE.match(line):
            proxy, kind, label, mark, text = found.groups(default="")
            step = Step(kind, text, int(label or 1), mark == "|", proxy, number)
            self.steps.append(step)
        elif found := _FIELD.match(line):
            proxy, key, text = found.groups(default="")
            self.set(number, proxy, key, text)
        else:
            raise ValueError(f"what is this? {line}")

    def set(self, number: int, proxy: str, key: str, text: str) -> None:
        script = self.scripts[-1] if self.scripts else self.common
        if all(step.inserted for step in script.steps):
            script.head = number
        if key == "use":
            self.steps.extend(
                replace(step, number=number, inserted=True)
                for step in self.blocks[text]
            )
        elif key == "pause":
            self.steps.append(Step("pause", text, proxy=proxy, number=number))
        elif key == "opening" and text == "none":
            del script.steps[:]
        elif key == "dns":
            script.dns.append(text)
        elif key == "server" and not self.scripts:
            script.common += text
        elif key == "server":
            script.server.setdefault(proxy, []).append(text)
        elif key in {
            "protocol",
            "address",
            "listen",
            "auth",
            "why",
            "only",
            "log",
            "bytewise",
        }:
            if not proxy:
                before = getattr(script, key) if key == "why" else ""
                setattr(script, key, f"{before} {text}".strip())
        else:
            raise ValueError(f"unknown field {key}")

    def finish(self) -> list[Script]:
        names = [script.name for script in self.scripts]
        doubles = {name for name in names if names.count(name) > 1}
        if doubles:
            raise ValueError(f"{self.file.name}: titles used twice: {doubles}")
        for script in self.scripts:
            if (script.differs() or script.only) and not script.why:
                raise ValueError(f"{script.name}: why do the proxies differ?")
        return self.scripts


def groups(steps: Iterable[Step]) -> Iterator[list[Step]]:
    """Steps put together with those that continue them."""
    group: list[Step] = []
    for step in steps:
        if group and not step.joined:
            yield group
            group = []
        group.append(step)
    if group:
        yield group

"""A directive is a typed field of a frozen settings class.

    @dataclass(frozen=True, kw_only=True)
    class ProxySettings(Settings):
        proxy_timeout: float = directive(duration, default=24 * HOUR)
        '''Idle time after which a relayed session is closed, in seconds.'''

The field is named after the directive. `Value` says how its arguments become the
field's value; `Declaration` adds contexts, repetition and origin. Inheritance needs
no code: a block is read into ``{name: Given}`` with only what is written in it, and
a server uses the union of main, mail and server, in which the inner blocks win.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, Self, TypeVar, cast

from mailproxy.conf.tree import ConfigError, Directive, Position, Word

T = TypeVar("T")
C = TypeVar("C", bound="Settings")
T_co = TypeVar("T_co", covariant=True)

Repeats = Literal["duplicate", "add", "last"]
"""A second one in the same block is an error, is added to the first, or replaces it."""


@dataclass(frozen=True, slots=True)
class Value(Generic[T_co]):
    """How the arguments of a directive become a value."""

    parse: Callable[[Directive, Reading], T_co]
    """Returns the value. Raises ValueError("invalid value") for nginx's `"X" directive
    invalid value`, and ConfigError (with the wrong word) where nginx has its own text."""
    usage: str
    """The arguments as a manual shows them: "on | off", "time"."""
    least: int = 1
    """Fewest arguments."""
    most: int | None = 1
    """Most arguments; None for any number."""
    remedy: str = ""
    """For people: what is accepted."""
    parameters: tuple[str, ...] = ()
    """Arguments, or prefixes of them, that have an effect of their own."""
    means_dollar: Callable[[str], bool] = lambda _: False
    """Whether a ``$name`` in this argument may be meant literally; if not, the user is
    warned that it is not a variable. nginx has no variables in mail."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What is known about a directive, apart from its field's type."""

    name: str
    value: Value[object]
    contexts: tuple[str, ...]
    repeats: Repeats
    accepted: bool
    """Whether it is only accepted, for old configurations, and never has an effect."""
    obsolete: str
    """The text of a warning for each use; empty for most directives."""
    origin: str
    """Which of nginx, Angie, freenginx know it."""
    default: str = ""
    """The default as a manual shows it."""


def directive(
    value: Value[T],
    *,
    default: T,
    contexts: str = "mail server",
    repeats: Repeats = "duplicate",
    shown: str | None = None,
    accepted: bool = False,
    obsolete: str = "",
    origin: str = "nginx",
) -> T:
    """Declare a settings field that is set by the directive of the same name.

    Args:
      value: how arguments become the field's value.
      default: the field's value if the directive is not used.
      contexts: where it may stand: "main", "events", "mail", "server".
      repeats: what a second one in the same block means. With "add", tuples are
        joined and sets are united.
      shown: the default as the manual shows it, if that is not `default`.
      accepted: it is checked and has no effect; its docstring says why. All others
        have a test that proves what they do.
      obsolete: the text of a warning for each use.
      origin: the products that know the directive.
    """
    declaration = Declaration(
        name="",
        value=value,
        contexts=tuple(contexts.split()),
        repeats=repeats,
        accepted=accepted,
        obsolete=obsolete,
        origin=origin,
        default=_shown(default) if shown is None else shown,
    )
    # To a type checker this is the default, as it is for any dataclasses.field.
    return dataclasses.field(default=default, metadata={"directive": declaration})


def _shown(value: object) -> str:
    """Format a default as a configuration would write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, tuple | frozenset):
        parts = map(_shown, value)
        return " ".join(parts if isinstance(value, tuple) else sorted(parts))
    if isinstance(value, float):
        return _shown_time(value)
    return "" if value is None else str(value)


def _shown_time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms" if seconds else "0"


_declarations: dict[type[Settings], dict[str, Declaration]] = {}


def declarations(settings: type[Settings]) -> dict[str, Declaration]:
    """The directives of a settings class, by name, in order of declaration."""
    if settings in _declarations:
        return _declarations[settings]
    found = _declarations[settings] = {}
    for field in dataclasses.fields(settings):
        declaration = field.metadata.get("directive")
        if isinstance(declaration, Declaration):
            found[field.name] = dataclasses.replace(declaration, name=field.name)
    return found


def documented(settings: type[Settings]) -> dict[str, str]:
    """The string literals under the fields of a settings class, by field name.

    They are read from the source, because a class does not keep them.
    """
    import ast  # only the generated table needs them
    import textwrap

    tree = ast.parse(textwrap.dedent(inspect.getsource(settings)))
    body = cast("ast.ClassDef", tree.body[0]).body
    found = {}
    for field, doc in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(doc, ast.Expr)
            and isinstance(doc.value, ast.Constant)
            and isinstance(doc.value.value, str)
        ):
            found[field.target.id] = inspect.cleandoc(doc.value.value)
    return found


class Given:
    """The value that a block gives to one directive."""

    __slots__ = ("_earlier", "directive", "value")

    def __init__(
        self,
        value: object,
        directive: Directive,
        earlier: tuple[Directive, ...] = (),
    ) -> None:
        self.value = value
        self.directive = directive
        """The statement; the last one if several were added."""
        self._earlier = earlier

    @property
    def statements(self) -> tuple[Directive, ...]:
        """All statements that the value comes from, in file order."""
        return (*self._earlier, self.directive)

    @property
    def position(self) -> Position:
        """The position of the statement."""
        return self.directive.position


class Block:
    """What is written in one block, and the blocks around and inside it."""

    __slots__ = (
        "_made",
        "_values",
        "blocks",
        "context",
        "directive",
        "failed",
        "given",
        "parent",
    )

    def __init__(
        self,
        context: str,
        parent: Block | None = None,
        directive: Directive | None = None,
    ) -> None:
        self.context = context
        self.parent = parent
        self.directive = directive
        """The statement that opened it; None for the main context."""
        self.given: dict[str, Given] = {}
        self.failed: set[str] = set()
        """Names of directives that are written here, but with an error."""
        self.blocks: list[Block] = []
        """The blocks inside it, in file order."""
        self._values: dict[type[Settings], dict[str, object]] = {}
        self._made: dict[type[Settings], Settings] = {}

    @property
    def position(self) -> Position | None:
        """The position of the statement that opened the block."""
        return None if self.directive is None else self.directive.position

    def around(self) -> Iterator[Block]:
        """Yield the block itself, then the blocks around it, from the inside out."""
        block: Block | None = self
        while block is not None:
            yield block
            block = block.parent

    def find(self, name: str) -> Given | None:
        """The value that applies here, inherited or not; None: the default applies."""
        for block in self.around():
            given = block.given.get(name)
            if given is not None:
                return given
        return None

    def argument(self, name: str, index: int = -1) -> Word | None:
        """The first argument of the statement that applies; None: the default applies.

        Args:
          index: which statement, of a directive that adds up.
        """
        given = self.find(name)
        return None if given is None else given.statements[index].args[0]

    def written(self, name: str) -> bool:
        """Whether the directive is written here or around, even with an error."""
        return any(name in b.given or name in b.failed for b in self.around())

    def sets(self, settings: type[Settings]) -> bool:
        """Whether this very block has a directive of the class."""
        return not self.given.keys().isdisjoint(declarations(settings))

    def values(self, settings: type[Settings]) -> dict[str, object]:
        """The values that apply here, by field of the class; without defaults."""
        found = self._values.get(settings)
        if found is None:
            found = {} if self.parent is None else dict(self.parent.values(settings))
            given = self.given
            for name in given.keys() & declarations(settings).keys():
                found[name] = given[name].value
            if self.blocks:  # each of them will ask for it again
                self._values[settings] = found
        return found

    def reopen(self) -> None:
        """Forget what was derived from the block: a second one with its name follows."""
        self._values.clear()
        self._made.clear()

    def made(self, settings: type[C]) -> C:
        """The settings of this block, shared by all blocks inside it."""
        found = self._made.get(settings)
        if found is None:
            found = self._made[settings] = settings(**self.values(settings))
        return cast("C", found)


class Reading:
    """One pass over a configuration: what value parsers may ask, and where they warn."""

    __slots__ = (
        "block",
        "directory",
        "messages",
        "name",
        "prefix",
        "state",
        "statement",
    )

    def __init__(
        self,
        prefix: str = "",
        directory: str = "",
        name: str = "mailproxy",
        state: object = None,
    ) -> None:
        self.prefix = prefix
        """P/, which logs and the pid file are relative to; ends in a slash."""
        self.directory = directory
        """C/, the main file's directory; certificates and includes are relative to it."""
        self.name = name
        """The name that the program was called by: nginx, angie, mailproxy."""
        self.block = Block("main")
        """The block that is being read."""
        self.statement: Directive | None = None
        """The directive that is being read."""
        self.messages: list[ConfigError] = []
        """Errors and warnings, in nginx's order."""
        self.state = state
        """What directives share across blocks. Its type is known to the modules that
        declare them; `conf` does not look inside."""

    def in_prefix(self, path: str) -> str:
        """Return the full path of a file name that is relative to P/."""
        return path if path.startswith("/") else self.prefix + path

    def in_directory(self, path: str) -> str:
        """Return the full path of a file name that is relative to C/."""
        return path if path.startswith("/") else self.directory + path

    def warn(
        self,
        message: str,
        position: Position | Word | Directive | None = None,
        remedy: str | None = None,
        *,
        cause: Position | Word | Directive | None = None,
        level: str = "warn",
    ) -> None:
        """Add a warning, which does not prevent the start.

        Args:
          message: the text.
          position: a word of the directive that is being read, or another place.
          remedy: as in `ConfigError`.
          cause: as in `ConfigError`.
          level: "warn", or "notice" for what need not be changed.
        """
        if isinstance(position, Word) and self.statement is not None:
            position = position.position._replace(end=self.statement.position.end)
        self.messages.append(
            ConfigError(message, position, remedy, level=level, cause=cause)
        )


@dataclass(frozen=True)
class Settings:
    """What all settings classes have in common."""

    depends_on: ClassVar[tuple[str, ...]] = ()
    """Directives of other classes that `make` looks at; if one of them has an error,
    these settings are not made."""

    @classmethod
    def applies(cls, block: Block, reading: Reading) -> bool:  # noqa: ARG003 # for subclasses
        """Whether a server block has settings of this class at all."""
        return True

    @classmethod
    def make(cls, block: Block, reading: Reading) -> Self:  # noqa: ARG003 # for subclasses
        """Make the settings that apply in a block.

        Override it to check several directives together: start from
        `block.values(cls)` and `block.find(name)`, check, then make the object.

        Raises:
          ConfigError: the directives do not fit together. Only the first such error
            of a block is reported.
        """
        if block.parent is None or block.sets(cls):
            return cls(**block.values(cls))
        return block.parent.made(cls)

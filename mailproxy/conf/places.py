"""Where each directive and block may stand, and the errors for those out of place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from mailproxy.conf.directive import Block, Declaration, Reading, Settings, declarations
from mailproxy.conf.elsewhere import HTTP
from mailproxy.conf.hints import elsewhere, nearest, reordered
from mailproxy.conf.tree import ConfigError, Directive
from mailproxy.conf.values import c_string


@dataclass(frozen=True, kw_only=True)
class BlockKind:
    """A directive with a block that holds directives."""

    name: str
    parent: str
    """The context that it may stand in."""
    repeats: Literal["duplicate", "add", "merge"] = "duplicate"
    """A second one is an error, is another block, or continues the first."""
    arguments: int = 0
    """How many words stand between its name and the ``{``."""
    open: Callable[[Block, Reading], None] | None = None
    """Runs at the ``{``. If it raises a ConfigError, the block is not read."""
    close: Callable[[Block, Reading], Iterable[ConfigError]] | None = None
    """Runs at the ``}``, and yields what is wrong with the block as a whole. With
    "merge", it runs again after each further block."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """All directives and blocks that a configuration may contain."""

    settings: tuple[type[Settings], ...]
    blocks: tuple[BlockKind, ...]
    skipped: frozenset[str] = frozenset({"http", "stream"})
    """Blocks of the main context that belong to others and are skipped."""


@dataclass
class Table:
    """The directives and blocks that may stand in one context."""

    directives: dict[str, Declaration] = field(default_factory=dict)
    blocks: dict[str, BlockKind] = field(default_factory=dict)

    def names(self) -> list[str]:
        """All names that may stand there, `include` among them."""
        return ["include", *self.directives, *self.blocks]


class Places:
    """Which directives and blocks may stand in which context."""

    def __init__(self, language: Language) -> None:
        self.skipped = language.skipped
        self.tables = {
            "main": Table(),
            **{kind.name: Table() for kind in language.blocks},
        }
        """The tables by the name of their context."""
        for settings in language.settings:
            for name, declaration in declarations(settings).items():
                for context in declaration.contexts:
                    self.tables[context].directives[name] = declaration
        for kind in language.blocks:
            self.tables[kind.parent].blocks[kind.name] = kind

    def unknown(self, statement: Directive, context: str) -> ConfigError:
        """Make the error for a directive that may not stand in `context`."""
        name = c_string(statement.name)
        word = statement.words[0]
        whole = name == statement.name
        places = self._contexts(name, block=statement.block is not None)
        if whole and (places or name in HTTP):
            return ConfigError(
                f'"{name}" directive is not allowed here',
                word,
                f"its place is {_shown(places)}" if places else elsewhere(name),
            )
        remedy = elsewhere(name) if whole else None
        return ConfigError(
            f'unknown directive "{name}"', word, remedy or self._near(name, context)
        )

    def _contexts(self, name: str, *, block: bool | None = None) -> list[str]:
        """The contexts in which a directive may stand.

        Args:
          block: whether it has a block. One of the same name without (or with) it counts
            only if there is no other: `server` is both.
        """
        plain = [c for c, table in self.tables.items() if name in table.directives]
        blocks = [c for c, table in self.tables.items() if name in table.blocks]
        found = {None: plain + blocks, True: blocks or plain, False: plain or blocks}
        return found[block] or (["main"] if name in self._outermost else [])

    @property
    def _outermost(self) -> frozenset[str]:
        return self.skipped | {"load_module"}

    def _near(self, name: str, context: str) -> str | None:
        """Suggest a similar name, preferably one of this context."""
        own = self.tables[context].names()
        own += sorted(self._outermost) if context == "main" else []
        every = [n for each in self.tables.values() for n in each.names()]
        for find in reordered, nearest:
            near = find(name, own)
            if near is not None:
                return f'did you mean "{near}"?'
            near = find(name, every)
            if near is not None:
                place = _shown(self._contexts(near))
                return f'did you mean "{near}"? Its place is {place}'
        return None


def _shown(contexts: Iterable[str]) -> str:
    return " or ".join(
        "outside of all blocks" if context == "main" else f"{context} {{}}"
        for context in contexts
    )

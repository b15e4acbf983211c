"""Statements -> what each block says: placement, arity, duplicates, include.

Statements are taken in the order in which nginx executes them, so the first error is
nginx's first error. Unlike nginx we go on after an error, for the person who reads
the messages; only a syntax error ends the reading.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mailproxy.conf.directive import (
    Block,
    Declaration,
    Given,
    Scope,
    Settings,
    declarations,
)
from mailproxy.conf.elsewhere import HTTP
from mailproxy.conf.syntax import (
    COMMAND_LINE,
    ConfigError,
    Directive,
    Source,
    decode,
    encode,
    parse,
    read_source,
)
from mailproxy.conf.values import c_string

DEEPEST_INCLUDE = 100
"""Files in files; beyond, it is said that too many are open, as nginx says of its own."""


@dataclass(frozen=True, kw_only=True)
class BlockKind:
    """A directive with a block of directives."""

    name: str
    parent: str
    """The context that it stands in."""
    repeats: Literal["duplicate", "add", "merge"] = "duplicate"
    """A second one: is an error; is another; goes on with the first."""
    close: Callable[[Block, Scope], Iterable[ConfigError]] | None = None
    """Runs at its ``}``: what is wrong with it as a whole. With "merge", it runs again
    when another one has been added."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """All that a configuration may say."""

    settings: tuple[type[Settings], ...]
    blocks: tuple[BlockKind, ...]
    skipped: frozenset[str] = frozenset({"http", "stream"})
    """Blocks of the main context that are not for us."""


@dataclass
class _Table:
    """The directives and blocks that may stand in one context."""

    directives: dict[str, Declaration] = field(default_factory=dict)
    blocks: dict[str, BlockKind] = field(default_factory=dict)

    def names(self) -> list[str]:
        return ["include", *self.directives, *self.blocks]


class _SyntaxError(Exception):
    """Reading ends here; the message is in the list."""


class Reader:
    """Reads the files of one configuration, into blocks."""

    def __init__(self, language: Language, scope: Scope) -> None:
        self.scope = scope
        self.main = scope.block
        self.files: dict[str, Source] = {}
        """What was read, by name, in order of first opening; -g is under its name."""
        self._skipped = language.skipped
        self._tables = _tables(language)
        self._open = 0
        self._modules: set[str] = set()
        self._blocks_begun = False
        self._checks: dict[str, tuple[int, int]] = {}

    def read(self, path: str, globals_text: str = "") -> bool:
        """Read the text of -g and the main file; messages go to the scope.

        Returns:
          Whether it was read to its end.
        """
        try:
            if globals_text:
                self._parse(Source(COMMAND_LINE, globals_text), self.main)
            self._include(path, None, self.main)
        except _SyntaxError:
            return False
        return True

    def _include(
        self, path: str, asked_by: Directive | None, block: Block | None
    ) -> None:
        """Read one file; `block` is None inside of what is skipped."""
        if self._open >= DEEPEST_INCLUDE:
            many = OSError(24, os.strerror(24))
            self._say(ConfigError(f'open() "{path}" failed', asked_by, error=many))
            raise _SyntaxError
        try:
            source = read_source(path, asked_by)
        except ConfigError as error:
            self._say(error)
            if asked_by is None:
                raise _SyntaxError from None
            return
        self._open += 1
        self._parse(self.files.setdefault(path, source), block)
        self._open -= 1

    def _parse(self, source: Source, block: Block | None) -> None:
        self.files.setdefault(source.name, source)
        parsed = parse(source)
        if block is None:
            self._skip(parsed.statements)
        else:
            self._run(parsed.statements, block)
        if parsed.error is not None:
            self._say(parsed.error)
            raise _SyntaxError

    def _say(self, message: ConfigError) -> None:
        self.scope.messages.append(message)

    def _run(self, statements: list[Directive], block: Block) -> None:
        for statement in statements:
            try:
                self._statement(statement, block)
            except ConfigError as error:
                position = error.position
                if position is not None and not position.end:
                    end = statement.words[0].source.line(statement.end)
                    error.position = position._replace(end=end)
                # With a ";" forgotten, a directive may be among the arguments.
                block.failed.update(word.value for word in statement.words)
                self._say(error)

    def _statement(self, statement: Directive, block: Block) -> None:
        name = statement.name
        table = self._tables[block.context]
        declaration = table.directives.get(name)
        if declaration is not None:
            _check_form(statement, declaration.value.least, declaration.value.most)
            self._set(statement, declaration, block)
        elif name in table.blocks:
            _check_form(statement, 0, 0, block=True)
            self._enter(statement, table.blocks[name], block)
        elif name == "include":
            _check_form(statement, 1, 1)
            self._include_all(statement, block)
        elif block is not self.main or name not in self._skipped | {"load_module"}:
            raise self._unknown(statement, table)
        elif name == "load_module":
            _check_form(statement, 1, 1)
            self._load_module(statement)
        else:
            _check_form(statement, 0, 0, block=True)
            if name in block.given:
                raise ConfigError(f'"{name}" directive is duplicate', statement)
            block.given[name] = Given(None, statement)
            self._blocks_begun = True
            self.scope.warn(
                f'only mail is served, the "{name}" block is skipped', statement
            )
            self._skip(statement.block or [])

    def _unknown(self, statement: Directive, table: _Table) -> ConfigError:
        name = c_string(statement.name)
        word = statement.words[0]
        places = [
            context
            for context, other in self._tables.items()
            if name in other.directives or name in other.blocks
        ]
        if name == "load_module" or name in self._skipped:
            places.append("main")
        elif name in HTTP:
            places.append("http")
        if places and name == statement.name:
            return ConfigError(
                f'"{name}" directive is not allowed here',
                word,
                f"its place is {' or '.join(_place(context) for context in places)}",
            )
        close = difflib.get_close_matches(name, table.names(), n=1)
        return ConfigError(
            f'unknown directive "{name}"',
            word,
            f'did you mean "{close[0]}"?' if close else None,
        )

    def _set(
        self, statement: Directive, declaration: Declaration, block: Block
    ) -> None:
        name = declaration.name
        before = block.given.get(name)
        if before is not None and declaration.repeats == "duplicate":
            line = before.position
            raise ConfigError(
                f'"{name}" directive is duplicate',
                statement.words[0],
                f"the first is in {line.file}:{line.line}",
            )
        self.scope.block = block
        self.scope.statement = statement
        try:
            value = declaration.value.parse(statement, self.scope)
        except ValueError as reason:
            wrong = statement.words[0 if "duplicate" in str(reason) else 1]
            raise ConfigError(
                f'"{name}" directive {reason}', wrong, declaration.value.remedy
            ) from None
        if before is not None and declaration.repeats == "add":
            value = _add(before.value, value)
            block.given[name] = Given(value, statement, before.statements)
        else:
            block.given[name] = Given(value, statement)
        if declaration.obsolete:
            self.scope.warn(declaration.obsolete, statement)

    def _enter(self, statement: Directive, kind: BlockKind, parent: Block) -> None:
        self._blocks_begun = True
        block: Block | None = None
        if kind.repeats != "add":
            block = next((b for b in parent.blocks if b.context == kind.name), None)
            if block is not None and kind.repeats == "duplicate":
                raise ConfigError(f'"{kind.name}" directive is duplicate', statement)
        if block is None:
            block = Block(kind.name, parent, statement)
            parent.blocks.append(block)
        else:
            block.reopen()
        assert statement.block is not None
        self._run(statement.block, block)
        if kind.close is None or statement.closed is None:
            return
        if kind.repeats == "merge":
            first, last = self._checks.pop(kind.name, (0, 0))
            del self.scope.messages[first:last]
        first = len(self.scope.messages)
        for error in kind.close(block, self.scope):
            self._say(error)
        if kind.repeats == "merge":
            self._checks[kind.name] = first, len(self.scope.messages)

    def _include_all(self, statement: Directive, block: Block | None) -> None:
        word = statement.words[1]
        path = self.scope.in_directory(c_string(word.value))
        if not any(mark in path for mark in "*?["):
            self._include(path, statement, block)
            return
        # What C calls [^…] is [!…] in Python.
        for found in sorted(glob.glob(encode(path.replace("[^", "[!")))):
            self._include(decode(found), statement, block)

    def _load_module(self, statement: Directive) -> None:
        """Modules are built in; only what nginx says of the order is checked."""
        if self._blocks_begun:
            raise ConfigError(
                '"load_module" directive is specified too late',
                statement.words[0],
                "modules are loaded before the first block",
            )
        module = os.path.basename(c_string(statement.words[1].value))
        module = module.removesuffix(".so")
        if module in self._modules:
            raise ConfigError(
                f'module "{module}" is already loaded', statement.words[1]
            )
        self._modules.add(module)

    def _skip(self, statements: list[Directive]) -> None:
        """Pass over what is not ours; but files are read as nginx reads them."""
        left = [iter(statements)]
        while left:
            for statement in left[-1]:
                if statement.block is not None:
                    left.append(iter(statement.block))
                    break
                if statement.name == "include" and len(statement.words) == 2:
                    self._include_all(statement, None)
            else:
                left.pop()


def _tables(language: Language) -> Mapping[str, _Table]:
    contexts = {"main": _Table(), **{kind.name: _Table() for kind in language.blocks}}
    for settings in language.settings:
        for name, declaration in declarations(settings).items():
            for context in declaration.contexts:
                contexts[context].directives[name] = declaration
    for kind in language.blocks:
        contexts[kind.parent].blocks[kind.name] = kind
    return contexts


def _place(context: str) -> str:
    return "outside of all blocks" if context == "main" else f"{context} {{}}"


def _check_form(
    statement: Directive, least: int, most: int | None, *, block: bool = False
) -> None:
    name = statement.name
    if not block and statement.block is not None:
        raise ConfigError(f'directive "{name}" is not terminated by ";"', statement)
    if block and statement.block is None:
        raise ConfigError(f'directive "{name}" has no opening "{{"', statement)
    count = len(statement.words) - 1
    if count < least or (most is not None and count > most):
        wrong, remedy = statement.words[0], _arity(least, most)
        if most is not None and count > most:
            first, wrong = wrong, statement.words[most + 1]
            if wrong.position.line != first.position.line:
                remedy = 'a ";" may be missing before it'
        raise ConfigError(
            f'invalid number of arguments in "{name}" directive', wrong, remedy
        )


def _arity(least: int, most: int | None) -> str:
    if most is None:
        return f"it takes {least} or more"
    return f"it takes {least}" if least == most else f"it takes {least} to {most}"


def _add(before: object, value: object) -> object:
    """What a repeated directive comes to."""
    if isinstance(before, tuple) and isinstance(value, tuple):
        return before + value
    if isinstance(before, frozenset) and isinstance(value, frozenset):
        return before | value
    raise TypeError("only tuples and sets add up")

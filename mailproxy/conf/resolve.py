"""Statements -> the values of each block: placement, arity, duplicates, include.

Statements are taken in the order in which nginx executes them, so the first error is
nginx's first error. Unlike nginx we go on after an error, so that the user sees all of
them; only a syntax error ends the reading.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from mailproxy import outside
from mailproxy.conf.directive import (
    Block,
    Declaration,
    Given,
    Reading,
)
from mailproxy.conf.hints import foreign_encoding, has_variable, unseen, unseen_rest
from mailproxy.conf.places import BlockKind, Language, Places
from mailproxy.conf.syntax import parse, read_source
from mailproxy.conf.tree import (
    COMMAND_LINE,
    ConfigError,
    Directive,
    DuplicateError,
    SourceText,
    decode,
    encode,
)
from mailproxy.conf.values import c_string
from mailproxy.frozen import Frozen

MAX_INCLUDE_DEPTH = 100
"""Files within files; deeper ones get nginx's error for too many open files."""


NO_VARIABLES = "write the value; if a template made the file, it was not filled in"
"""The remedy for a variable in an argument."""


class _SyntaxError(Frozen, Exception):
    """Ends the reading; the message is in the list already."""


class Interpreter:
    """Reads the files of one configuration, into blocks."""

    def __init__(self, language: Language, reading: Reading) -> None:
        self.reading = reading
        self.main = reading.block
        self.files: dict[str, SourceText] = {}
        """The files by name, in the order of first opening; -g is `COMMAND_LINE`."""
        self._places = Places(language)
        self._open: list[str] = []
        self._modules: set[str] = set()
        self._blocks_begun = False
        self._checks: dict[str, tuple[int, int]] = {}

    def read(self, path: str, globals_text: str = "") -> bool:
        """Read the text of -g and the main file; messages go to `reading.messages`.

        Returns:
          Whether it was read to its end.
        """
        try:
            if globals_text:
                self._parse(SourceText(COMMAND_LINE, globals_text), self.main)
            self._include(path, None, self.main)
        except _SyntaxError:
            return False
        finally:
            self._say_once()
        return True

    def _say_once(self) -> None:
        """Leave out what was said of the same place before, if there are errors.

        A file that is included in many places is wrong once; nginx would not have come
        to the second one. Without errors, it repeats its warnings.
        """
        messages = self.reading.messages
        if not all(each.is_warning for each in messages):
            said: dict[object, ConfigError] = {}
            for each in messages:
                said.setdefault(
                    (each.level, each.text, each.position, each.cause), each
                )
            messages[:] = said.values()

    def _include(
        self, path: str, asked_by: Directive | None, block: Block | None
    ) -> None:
        """Read one file; `block` is None inside a skipped block."""
        if len(self._open) >= MAX_INCLUDE_DEPTH:
            many = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            remedy = (
                "this file is being read already: it includes itself"
                if path in self._open
                else f"files are in files {MAX_INCLUDE_DEPTH} deep: does one include itself?"
            )
            failed = f'open() "{path}" failed'
            self._say(ConfigError(failed, asked_by, remedy, error=many))
            raise _SyntaxError
        try:
            source = read_source(path, asked_by)
        except ConfigError as error:
            self._say(error)
            if asked_by is None:
                raise _SyntaxError from None
            return
        self._open.append(path)
        self._parse(self.files.setdefault(path, source), block)
        self._open.pop()

    def _parse(self, source: SourceText, block: Block | None) -> None:
        self.files.setdefault(source.name, source)
        parsed = parse(source)
        unreadable = foreign_encoding(source) is not None
        if block is None:
            self._skip(parsed.statements)
        else:
            # One error says what is wrong; hundreds would hide it.
            self._run(parsed.statements[:1] if unreadable else parsed.statements, block)
            if unreadable and parsed.statements:
                raise _SyntaxError
        if parsed.error is not None:
            place, remedy = parsed.error.position, parsed.error.remedy
            if remedy is None and place == source.position(len(source.text)):
                remedy = unseen_rest(source, whole=not parsed.statements)
            self._say(parsed.error.with_place(place, remedy))
            raise _SyntaxError

    def _say(self, message: ConfigError) -> None:
        self.reading.messages.append(message)

    def _run(self, statements: list[Directive], block: Block) -> None:
        directives = self._places.tables[block.context].directives
        for statement in statements:
            declaration = directives.get(statement.values[0])
            try:
                if declaration is not None:
                    self._set(statement, declaration, block)
                else:
                    self._run_other(statement, block)
            except ConfigError as error:
                position = error.position
                remedy = (
                    unseen(statement, position)
                    or self._unfilled(statement, block)
                    or error.remedy
                )
                if position is not None and not position.end:
                    end = statement.words[0].source.line(statement.end)
                    position = position._replace(end=end)
                # If a ";" was forgotten, a directive may be among the arguments.
                block.failed.update(statement.values)
                self._say(error.with_place(position, remedy))

    def _run_other(self, statement: Directive, block: Block) -> None:
        """Execute a statement that sets no value: a block, an `include`."""
        name = statement.name
        blocks = self._places.tables[block.context].blocks
        if name in blocks:
            kind = blocks[name]
            _check_form(statement, kind.arguments, kind.arguments, block=True)
            _check_nul(statement)
            self._enter(statement, kind, block)
        elif name == "include":
            _check_form(statement, 1, 1)
            _check_nul(statement)
            self._include_all(statement, block)
            self._warn_of_variables(statement)
        elif block is not self.main or name not in self._places.skipped | {
            "load_module"
        }:
            raise self._places.unknown(statement, block.context)
        elif name == "load_module":
            _check_form(statement, 1, 1)
            _check_nul(statement)
            self._load_module(statement)
            self._warn_of_variables(statement)
        else:
            _check_form(statement, 0, 0, block=True)
            if name in block.given:
                raise ConfigError(f'"{name}" directive is duplicate', statement)
            block.given[name] = Given(None, statement)
            self._blocks_begun = True
            self.reading.warn(
                f'only mail is served, the "{name}" block is skipped', statement
            )
            self._skip(statement.block or [])

    def _unfilled(self, statement: Directive, block: Block) -> str | None:
        """The remedy for a value that is wrong because it has a variable."""
        declaration = self._places.tables[block.context].directives.get(statement.name)
        if declaration is None:
            return None
        meant = declaration.value.means_dollar
        words = statement.values[1:]
        found = any(has_variable(word) and not meant(word) for word in words)
        return NO_VARIABLES if found else None

    def _warn_of_variables(
        self,
        statement: Directive,
        meant: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Warn of a ``$`` that is not a variable, without the value, which may be secret."""
        for at, value in enumerate(statement.values):
            if "$" in value and at and has_variable(value) and not meant(value):
                self.reading.statement = statement
                self.reading.warn(
                    f'"{statement.name}" directive has no variables, '
                    '"$" is taken literally',
                    statement.words[at],
                    NO_VARIABLES,
                )
                return

    def _set(
        self, statement: Directive, declaration: Declaration, block: Block
    ) -> None:
        name, value = declaration.name, declaration.value
        _check_form(statement, value.least, value.most)
        _check_nul(statement)
        before = block.given.get(name)
        if before is not None and declaration.repeats == "duplicate":
            line = before.position
            raise ConfigError(
                f'"{name}" directive is duplicate',
                statement.words[0],
                f"the first is in {line.file}:{line.line}",
            )
        self.reading.block = block
        self.reading.statement = statement
        try:
            found = value.parse(statement, self.reading)
        except ValueError as reason:
            wrong = statement.words[0 if isinstance(reason, DuplicateError) else 1]
            raise ConfigError(
                f'"{name}" directive {reason}', wrong, value.remedy
            ) from None
        if before is not None and declaration.repeats == "add":
            found = _add(before.value, found)
            block.given[name] = Given(found, statement, before.statements)
        else:
            block.given[name] = Given(found, statement)
        if declaration.obsolete:
            self.reading.warn(declaration.obsolete, statement)
        self._warn_of_variables(statement, value.means_dollar)

    def _enter(self, statement: Directive, kind: BlockKind, parent: Block) -> None:
        self._blocks_begun = True
        block: Block | None = None
        if kind.repeats != "add":
            block = next((b for b in parent.blocks if b.context == kind.name), None)
            if block is not None and kind.repeats == "duplicate":
                raise ConfigError(f'"{kind.name}" directive is duplicate', statement)
        if block is None:
            block = Block(kind.name, parent, statement)
            if kind.open is not None:
                kind.open(block, self.reading)
            parent.blocks.append(block)
        else:
            block.reopen()
        assert statement.block is not None
        self._run(statement.block, block)
        if kind.close is None or statement.closed is None:
            return
        if kind.repeats == "merge":
            first, last = self._checks.pop(kind.name, (0, 0))
            del self.reading.messages[first:last]
        first = len(self.reading.messages)
        for error in kind.close(block, self.reading):
            self._say(error)
        if kind.repeats == "merge":
            self._checks[kind.name] = first, len(self.reading.messages)

    def _include_all(self, statement: Directive, block: Block | None) -> None:
        path = self.reading.in_directory(c_string(statement.values[1]))
        if not any(mark in path for mark in "*?["):
            self._include(path, statement, block)
            return
        # C writes [^…] where Python writes [!…].
        for found in outside.matching(encode(path.replace("[^", "[!"))):
            self._include(decode(found), statement, block)

    def _load_module(self, statement: Directive) -> None:
        """Check order and duplicates as nginx does; there is nothing to load."""
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
        """Skip statements that are not for us, but read the files that they include."""
        left = [iter(statements)]
        while left:
            for statement in left[-1]:
                if statement.block is not None:
                    self._check_hidden(statement)
                    left.append(iter(statement.block))
                    break
                if statement.name == "include" and len(statement.values) == 2:
                    self._include_all(statement, None)
            else:
                left.pop()

    def _check_hidden(self, statement: Directive) -> None:
        """Refuse a block of the main context inside a skipped one, as nginx does.

        It would serve nothing, without a word to the user. In `map`, `geo` and `types`
        such a word is a value, and has no block.
        """
        name = statement.name
        if name in self._places.skipped or name in self._places.tables["main"].blocks:
            self._say(
                ConfigError(
                    f'"{name}" directive is not allowed here',
                    statement,
                    "its place is outside of all blocks",
                )
            )


def _check_nul(statement: Directive) -> None:
    """Refuse a NUL in an argument: a C string ends there, so it cannot be intended.

    nginx cuts some words there, and refuses or passes on others.
    """
    for at, value in enumerate(statement.values):
        if "\0" in value and at:
            wrong = statement.words[at]
            raise ConfigError(f'"{statement.name}" directive has a NUL', wrong)


def _check_form(
    statement: Directive, least: int, most: int | None, *, block: bool = False
) -> None:
    name, count = statement.name, len(statement.values) - 1
    if not block and statement.block is not None:
        raise ConfigError(f'directive "{name}" is not terminated by ";"', statement)
    if block and statement.block is None:
        raise ConfigError(f'directive "{name}" has no opening "{{"', statement)
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
    """Combine the values of a repeated directive."""
    if isinstance(before, tuple) and isinstance(value, tuple):
        return before + value
    if isinstance(before, frozenset) and isinstance(value, frozenset):
        return before | value
    raise TypeError("only tuples and sets add up")

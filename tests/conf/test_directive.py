"""A directive is declared as a field."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mailproxy.conf.directive import (
    Block,
    Given,
    Reading,
    Settings,
    declarations,
    directive,
    documented,
)
from mailproxy.conf.places import BlockKind, Language
from mailproxy.conf.resolve import Interpreter
from mailproxy.conf.syntax import parse
from mailproxy.conf.tree import Directive, SourceText, Word
from mailproxy.conf.values import HOUR, choices, duration, flag, words
from mailproxy.mail.modules import MODULES
from mailproxy.process.settings import EventsSettings, MainSettings


@dataclass(frozen=True, kw_only=True)
class BirdSettings(Settings):
    """Birds."""

    fly: bool = directive(flag, default=True, contexts="main nest")
    """Whether they fly."""

    sleep: float = directive(duration, default=1.5 * HOUR, contexts="nest")
    """How long they sleep,
    in seconds."""

    song: tuple[bytes, ...] = directive(
        words, default=(b"tweet", b"tit"), contexts="nest", repeats="add"
    )
    food: frozenset[str] = directive(
        choices("seeds", "worms"),
        default=frozenset({"worms", "seeds"}),
        contexts="nest",
    )


def test_a_field_declares_what_the_directive_takes() -> None:
    assert BirdSettings() == BirdSettings(fly=True, sleep=5400)
    known = declarations(BirdSettings)
    assert list(known) == ["fly", "sleep", "song", "food"]
    assert known["fly"].contexts == ("main", "nest")
    assert [each.default for each in known.values()] == [
        "on",
        "90m",
        "tweet tit",
        "seeds worms",
    ]
    assert documented(BirdSettings) == {
        "fly": "Whether they fly.",
        "sleep": "How long they sleep,\nin seconds.",
    }


def read(text: str) -> Reading:
    reading = Reading()
    language = Language(
        settings=(BirdSettings,),
        blocks=(BlockKind(name="nest", parent="main", repeats="add"),),
    )
    interpreter = Interpreter(language, reading)
    interpreter._parse(SourceText("F", text), interpreter.main)  # noqa: SLF001 # without a file
    reading.block = interpreter.main
    return reading


def test_a_block_holds_what_is_written_in_it_and_asks_those_around_it() -> None:
    reading = read("nest { song a; song b; } fly off; nest { fly on; }")
    first, second = reading.block.blocks
    assert BirdSettings.make(first, reading) == BirdSettings(
        fly=False, song=(b"a", b"b")
    )
    assert BirdSettings.make(second, reading) == BirdSettings(fly=True)
    found = first.find("fly")
    assert found is not None
    assert str(found.position) == "F:1"
    assert first.find("sleep") is None


def test_what_applies_can_be_asked_of_a_block_made_by_hand() -> None:
    [statement], _ = parse(SourceText("F", "fly off;"))
    block = Block("nest", Block("main"))
    assert not block.written("fly")
    block.given["fly"] = Given(False, statement)
    assert block.written("fly")
    assert block.values(BirdSettings) == {"fly": False}


def test_words_can_be_made_without_a_file() -> None:
    statement = Directive([Word("a"), Word("é\udcff")])
    assert statement.args[0].octets == b"\xc3\xa9\xff"
    assert repr(statement) == repr(Directive([Word("a"), Word("é\udcff")]))


@pytest.mark.parametrize("settings", [MainSettings, EventsSettings, *MODULES])
def test_every_directive_says_what_it_is_for(settings: type[Settings]) -> None:
    texts = documented(settings)
    assert settings.__doc__
    for name, declaration in declarations(settings).items():
        assert texts.get(name), name
        assert declaration.value.usage, name
        known = {"main", "events", "mail", "server", "upstream"}
        assert set(declaration.contexts) <= known
        default = getattr(settings(), name)
        if declaration.repeats == "add":
            assert isinstance(default, tuple | frozenset), name

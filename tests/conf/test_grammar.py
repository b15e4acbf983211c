"""The table that Lark makes of the grammar, and where it is taken from."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailproxy.conf import grammar, grammar_table

SOURCE = Path(grammar_table.__file__).parents[1] / "grammar" / "nginx.lark"


def test_the_table_is_that_of_the_grammar() -> None:
    written = Path(grammar_table.__file__).read_text(encoding="utf-8")
    made = grammar.format_module(SOURCE.read_text(encoding="utf-8"))
    assert written == made, "say: make grammar"


def test_the_table_gives_what_lark_makes_of_the_grammar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = grammar.load()
    assert loaded.actions is grammar_table.ACTIONS
    monkeypatch.setattr(grammar_table, "SOURCE", "another grammar")
    built = grammar.load()
    assert built.actions is not grammar_table.ACTIONS
    assert built == loaded
    assert list(built.terminals) == list(loaded.terminals)  # their order counts

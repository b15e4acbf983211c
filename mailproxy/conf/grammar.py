"""The grammar as `conf/syntax.py` uses it: terminals, and Lark's LALR table.

Lark reads grammar/nginx.lark and decides what may follow what. To import it and to have
it build its table takes longer than to read a configuration of a hundred servers. So the
table is kept in `conf/grammar_table.py`, beside the text that it was made from. If that
is not the text of the grammar, because the grammar was changed, the table is built anew,
each time; nothing is written. `make grammar` writes it:

    python -m mailproxy.conf.grammar
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, cast

from mailproxy.conf import grammar_table

START = "start"
"""The symbol that stands for a whole text."""
END = "EOF"
"""The terminal that stands for the end of a text."""

Action = int | tuple[int, str]
"""Shift: the state to go to. Reduce: how many symbols become one, and its name."""

_GRAMMAR = os.path.join(os.path.dirname(__file__), "..", "grammar", "nginx.lark")


class Grammar(NamedTuple):
    """A compiled grammar. The first of its states is the one to begin in."""

    terminals: dict[str, str]
    """The regular expressions of tokens, by name, in the order in which to try them."""
    ignored: tuple[str, ...]
    """The expressions of what may stand between tokens."""
    actions: tuple[dict[str, Action], ...]
    """What to do in each state, by the name of the next token; else it is wrong there."""
    gotos: tuple[dict[str, int], ...]
    """The state to go to from each, by the name of the symbol that was made there."""


def load() -> Grammar:
    """Return the grammar of nginx's configuration files."""
    with open(_GRAMMAR, encoding="utf-8") as file:
        text = file.read()
    if text != grammar_table.SOURCE:
        return build(text)
    return Grammar(
        grammar_table.TERMINALS,
        grammar_table.IGNORED,
        grammar_table.ACTIONS,
        grammar_table.GOTOS,
    )


def build(text: str) -> Grammar:
    """Have Lark compile a grammar.

    The same text always gives the same result, unlike in Lark, where the states of a
    table are numbered by chance.

    Args:
      text: in Lark's language. Terminals are tried in the order in which it has them.
    """
    from lark import Lark  # not needed where the table is that of the grammar
    from lark.grammar import Rule

    lark = Lark(text, parser="lalr", lexer="basic", maybe_placeholders=False)
    data, rules = lark.memo_serialize([Rule])  # as Lark.save() writes it
    table = data["parser"]["parser"]
    names = table["tokens"]
    found: dict[int, dict[str, Action]] = {
        state: dict(sorted((names[of], _action(do, rules)) for of, do in row.items()))
        for state, row in table["states"].items()
    }
    order = [table["start_states"][START]]
    for state in order:
        reached = (do for do in found[state].values() if isinstance(do, int))
        order += (each for each in reached if each not in order)
    patterns = {each.name: each.pattern.to_regexp() for each in lark.terminals}
    return Grammar(
        ignored=tuple(patterns.pop(name) for name in lark.ignore_tokens),
        terminals=patterns,
        actions=tuple(
            {
                END if name == "$END" else name: order.index(do)
                if isinstance(do, int)
                else do
                for name, do in found[state].items()
                if name.isupper()
            }
            for state in order
        ),
        gotos=tuple(
            {
                name: order.index(do)
                for name, do in found[state].items()
                if not name.isupper() and isinstance(do, int)
            }
            for state in order
        ),
    )


def _action(found: tuple[int, Any], rules: dict[int, Any]) -> Action:
    reduces, what = found
    if not reduces:
        return cast("int", what)
    rule = rules[what["@"]]
    return len(rule["expansion"]), str(rule["origin"]["name"])


def format_module(text: str) -> str:
    """Format the module that `load` takes the grammar from, if `text` is the grammar."""
    found = build(text)
    terminals = (f"    {name!r}: {each!r},\n" for name, each in found.terminals.items())
    actions = (f"    {each!r},\n" for each in found.actions)
    gotos = (f"    {each!r},\n" for each in found.gotos)
    source = text.replace("\\", "\\\\")
    return f'''\
"""What Lark makes of grammar/nginx.lark; written by `make grammar`, not by hand."""

# fmt: off
TERMINALS = {{
{"".join(terminals)}}}
IGNORED = {found.ignored!r}
ACTIONS: tuple[dict[str, int | tuple[int, str]], ...] = (
{"".join(actions)})
GOTOS: tuple[dict[str, int], ...] = (
{"".join(gotos)})
SOURCE = """\\
{source}"""
'''


def main() -> None:
    """Write the module anew."""
    with open(_GRAMMAR, encoding="utf-8") as file:
        text = file.read()
    with open(grammar_table.__file__, "w", encoding="utf-8") as file:
        file.write(format_module(text))


if __name__ == "__main__":
    main()

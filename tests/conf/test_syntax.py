"""Words, statements and blocks; what nginx says when they are none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.conf.syntax import parse, read_source
from mailproxy.conf.tree import (
    COMMAND_LINE,
    ConfigError,
    Directive,
    Position,
    SourceText,
    Word,
    decode,
    format_tree,
)

Tree = list[tuple[list[str], "Tree | str | None"]]


def shape(statements: list[Directive]) -> Tree:
    """A tree as plain values: words, and the block (or the text of a Lua block)."""
    found: Tree = []
    for each in statements:
        inside: Tree | str | None = each.raw
        if each.raw is None and each.block is not None:
            inside = shape(each.block)
        found.append(([word.value for word in each.words], inside))
    return found


def read(text: str) -> Tree:
    statements, error = parse(SourceText("F", text))
    assert error is None
    return shape(statements)


def wrong(text: str) -> str:
    error = parse(SourceText("F", text)).error
    assert error is not None
    return str(error)


def words(text: str) -> list[str]:
    [(found, block)] = read(text)
    assert block is None
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("worker_processes 1#2;", ["worker_processes", "1#2"]),
        ('debug_points a"b"c;', ["debug_points", 'a"b"c']),
        ('x a"b c;', ["x", 'a"b', "c"]),
        ('x "1");', ["x", "1", ")"]),
        ("x 1};", ["x", "1}"]),
        ("x ${a}b ${{{a a$ A=${B ${;", ["x", "${a}b", "${{{a", "a$", "A=${B", "${"]),
        ("'a' \"b\";", ["a", "b"]),
        ('"a\'b" \'c"d\' ";{}#\n";', ["a'b", 'c"d', ";{}#\n"]),
        ("a\tb\rc\nd;", ["a", "b", "c", "d"]),
        ("a\x0bb\x0cc\xa0d;", ["a\x0bb\x0cc\xa0d"]),
        ("a # b;\n c;", ["a", "c"]),
        ('"" x;', ["", "x"]),
        ("\ufeffa;", ["\ufeffa"]),
    ],
)
def test_words_are_separated_as_nginx_does(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_only_four_characters_are_blanks() -> None:
    for blank in filter(str.isspace, map(chr, range(sys.maxunicode + 1))):
        expected = ["a", "b"] if blank in " \t\r\n" else [f"a{blank}b"]
        assert words(f"a{blank}b;") == expected


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (r"\"\'\\", "\"'\\"),
        (r"\t\r\n", "\t\r\n"),
        (r"c\ d", r"c\ d"),
        (r"\;\{\}\#", r"\;\{\}\#"),
        (r"\$h\xe", r"\$h\xe"),
        ("a\\\nb", "a\\\nb"),
    ],
)
def test_escapes_are_the_same_bare_and_quoted(raw: str, value: str) -> None:
    assert words(f"x {raw};") == ["x", value]
    assert words(f'x "{raw}";') == ["x", value]


def test_blocks_nest_and_need_no_blanks() -> None:
    assert read("a{b{c 1;}d;}e{}# f") == [
        (["a"], [(["b"], [(["c", "1"], None)]), (["d"], None)]),
        (["e"], []),
    ]


@pytest.mark.parametrize("text", ["a$ {}", r"\${}", "$x{}", '"$"{}'])
def test_only_braces_behind_a_dollar_belong_to_the_word(text: str) -> None:
    [(_, block)] = read(text)
    assert block == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\"a\"'b';", 'unexpected "\'" in F:1'),
        ('"a"#c', 'unexpected "#" in F:1'),
        ('"a"}', 'unexpected "}" in F:1'),
        ('x\n"1"x', 'unexpected "x" in F:2'),
        ('"1"é', 'unexpected "\udcc3" in F:1'),
        (";", 'unexpected ";" in F:1'),
        ("mail{};", 'unexpected ";" in F:1'),
        ("events{;}", 'unexpected ";" in F:1'),
        ("{}", 'unexpected "{" in F:1'),
        ("}", 'unexpected "}" in F:1'),
        ("auth_http x }", 'unexpected "}" in F:1'),
        ("auth_http x\n}", 'unexpected "}" in F:2'),
        ("x 1}", 'unexpected end of file, expecting ";" or "}" in F:1'),
        ("x", 'unexpected end of file, expecting ";" or "}" in F:1'),
        ("x {\n y", 'unexpected end of file, expecting ";" or "}" in F:2'),
        ('x "\n\n', 'unexpected end of file, expecting ";" or "}" in F:3'),
        ("x {", 'unexpected end of file, expecting "}" in F:1'),
        ("x { y; # }\n", 'unexpected end of file, expecting "}" in F:2'),
        ("x\\", 'unexpected end of file, expecting ";" or "}" in F:1'),
    ],
)
def test_syntax_errors_have_nginx_s_words_and_line(text: str, message: str) -> None:
    assert wrong(text) == message


def test_a_carriage_return_does_not_end_a_comment() -> None:
    assert read("x;\r# c\revents{}") == [(["x"], None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x " + "a" * 4095 + ";", None),
        ("x " + "a" * 4096 + ";", 'too long parameter "aaaaaaaaaa..." started in F:1'),
        (
            "\n\nx\n" + "a" * 4095 + " b;",
            'too long parameter "aaaaaaaaaa..." started in F:4',
        ),
        ("x " + "a" * 4094 + " b;", None),
        ('x "' + "a" * 4094 + '";', None),
        (
            'x "' + "a" * 4094 + '" ;',
            'too long parameter "aaaaaaaaaa..." started in F:1',
        ),
        (
            'x "' + "a" * 4095 + '";',
            'too long parameter "aaaaaaaaaa..." started in F:1',
        ),
        (
            'x\n"' + "\n" * 4096 + '";',
            'too long parameter, probably missing terminating """ character in F:2',
        ),
        (
            "x '" + "a" * 5000,
            'too long parameter, probably missing terminating "\'" character in F:1',
        ),
        ("x " + "é" * 2048 + ";", 'too long parameter "ééééé..." started in F:1'),
        ("x;" + " " * 10000, None),
        ("x; #" + "a" * 4094 + "\n", None),
        (
            "x; #" + "a" * 4095 + "\n",
            'too long parameter "#aaaaaaaaa..." started in F:1',
        ),
        ("x; #" + "a" * 4095, None),
        (
            "x; #" + "a" * 4095 + '\n"',
            'too long parameter "#aaaaaaaaa..." started in F:1',
        ),
    ],
    ids=lambda value: "",
)
def test_words_and_comments_must_fit_into_nginx_s_buffer(
    text: str, message: str | None
) -> None:
    error = parse(SourceText("F", text)).error
    assert (None if error is None else str(error)) == message


def test_statements_before_a_syntax_error_are_there() -> None:
    statements, error = parse(SourceText("F", "a 1;\nb {\n c;\n d { e; ;"))
    assert shape(statements) == [
        (["a", "1"], None),
        (["b"], [(["c"], None), (["d"], [(["e"], None)])]),
    ]
    assert str(error) == 'unexpected ";" in F:4'
    assert statements[1].closed is None


def test_the_text_of_g_has_no_blocks_and_no_limits() -> None:
    def globals_error(text: str) -> str | None:
        error = parse(SourceText(COMMAND_LINE, text)).error
        return None if error is None else str(error)

    missing = 'unexpected end of parameter, expecting ";" in command line'
    assert globals_error("") is None
    assert globals_error("x " + "a" * 5000 + "; # c") is None
    assert globals_error("a") == missing
    assert globals_error("a '") == missing
    assert globals_error("}") == 'unexpected "}" in command line'
    assert (
        globals_error("a {}")
        == "block directives are not supported in -g option in command line"
    )


def test_a_position_is_that_of_the_word_and_names_the_line_of_the_terminator() -> None:
    [found], _ = parse(SourceText("F", "# é\n\tname 1\n  2\n;"))
    assert found.position == Position("F", 2, 2, 4)
    assert str(found.position) == "F:4"
    assert found.args[1].position == Position("F", 3, 3)


def test_lua_blocks_end_at_their_own_brace() -> None:
    lua = """ -- }
        --[[ } ]] --[==[ ]] } ]==]
        local t = { a = "}", b = '\\'}', c = [[ } ]], d = [=[ ]] } ]=] }
    """
    text = f"set_by_lua_block $x {{{lua}}} access_by_lua 'x';"
    [(_, block), after] = read(f"location / {{ {text} }} y;")
    assert block == [
        (["set_by_lua_block", "$x"], lua),
        (["access_by_lua", "x"], None),
    ]
    assert after == (["y"], None)


def test_a_lua_block_without_end_is_an_unexpected_end_of_file() -> None:
    assert wrong("content_by_lua_block {\n '}' {}") == (
        'unexpected end of file, expecting "}" in F:2'
    )


# -- files -------------------------------------------------------------------------


def test_files_are_read_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.conf"
    path.write_bytes(b"a \xff\xe9\x00;")
    [found], _ = parse(read_source(str(path)))
    assert found.args[0].octets == b"\xff\xe9\x00"


def test_a_missing_file_is_an_error_without_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_source(f"{tmp_path}/x")
    assert str(caught.value) == (
        f'open() "{tmp_path}/x" failed (2: No such file or directory)'
    )


def test_a_directory_is_read_in_vain(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_source(str(tmp_path))
    assert str(caught.value) == f'pread() "{tmp_path}" failed (21: Is a directory)'
    assert caught.value.level == "crit"


def test_a_pipe_is_an_empty_file() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x;")
    try:
        assert read_source(f"/dev/fd/{reading}").text == ""
    finally:
        os.close(reading)
        os.close(writing)


def test_messages_are_cut_where_nginx_cuts_them() -> None:
    place = Position("F", 3, 1)
    assert str(ConfigError("é" * 600, place)) == "é" * 512 + " in F:3"
    failed = ConfigError("x" * 1000, place, error=FileNotFoundError(2, ""))
    assert str(failed) == ("x" * 974 + "... (2: No such file or directory)" + " in F:3")


# -- laws --------------------------------------------------------------------------

PIECES = st.sampled_from(
    [*" \t\r\n;{}#\"'\\$()ab\x00é", "set_by_lua_block", "\udcff", "--[[", "]]", "${"]
)


@given(st.one_of(st.binary(max_size=200).map(decode), st.lists(PIECES).map("".join)))
def test_any_bytes_give_a_tree_or_an_error_with_a_place(text: str) -> None:
    statements, error = parse(SourceText("F", text))
    if error is not None:
        assert error.position is not None
        assert 1 <= error.position.line <= text.count("\n") + 1
        assert str(error).endswith(f" in F:{error.position.line}")
    else:
        assert read(format_tree(statements)) == shape(statements)


def all_words(statements: list[Directive]) -> Iterator[Word]:
    """The words of a tree, in the order of the file."""
    for each in statements:
        yield from each.words
        yield from all_words(each.block or [])


@given(st.one_of(st.binary(max_size=200).map(decode), st.lists(PIECES).map("".join)))
def test_a_word_is_where_it_says(text: str) -> None:
    at = 0
    for word in all_words(parse(SourceText("F", text)).statements):
        assert word.offset >= at
        assert text[word.offset] in f"\"'{word.value[:1]}"
        if "\\" not in text:
            quoted = text[word.offset] in "\"'"
            assert text.startswith(word.value, word.offset + quoted)
        at = word.offset + len(word.value)


VALUES = st.text(
    st.characters(codec="utf-8") | st.sampled_from(" \n\\\"'$;{}#"), max_size=20
)


def statements() -> st.SearchStrategy[list[Directive]]:
    """Trees of any words, with blocks in blocks."""
    head = st.lists(VALUES.map(Word), min_size=1, max_size=3)
    simple = st.builds(Directive, head)

    def with_block(
        inner: st.SearchStrategy[Directive],
    ) -> st.SearchStrategy[Directive]:
        return st.builds(Directive, head, block=st.lists(inner, max_size=3))

    return st.lists(st.recursive(simple, with_block, max_leaves=10), max_size=4)


@given(statements())
def test_parsing_what_was_formatted_gives_the_same_tree(tree: list[Directive]) -> None:
    assert read(format_tree(tree)) == shape(tree)

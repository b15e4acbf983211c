"""ID before the login (RFC 2971): what clients say of themselves."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.mail.commands import BadCommand
from mailproxy.mail.imap_syntax import Field, parse_id
from mailproxy.mail.literals import Literal
from tests.mail.test_imap import TLS, imap

KEY, VALUE = "k" * 30, "v" * 1024


def pairs(count: int) -> str:
    """A list of that many fields."""
    return "(" + " ".join(f'"f{number}" NIL' for number in range(count)) + ")"


# The dialogue


def test_client_is_answered_and_may_log_in() -> None:
    stage = imap(
        """
        C: a ID ("name" "OfflineIMAP" "version" "8.0.0" "vendor" NIL "contact" "x@example.com")
        S: * ID NIL
        S: a OK completed
        C: b LOGIN u p
        Q: plain u p
        L: [info] client id: name="OfflineIMAP" version="8.0.0" while in auth state, …
        """
    )
    assert [level for level, text in stage.log.events if "example.com" in text] == []


@pytest.mark.parametrize(
    "arguments", ["NIL", "nil", "()", '("x" "y")', '("name" NIL)', '("name" "")']
)
def test_what_is_of_no_use_is_answered_and_not_logged(arguments: str) -> None:
    stage = imap(f"C: a ID {arguments}\nS: * ID NIL\nS: a OK completed")
    assert not [text for _, text in stage.log.events if "client id" in text]


def test_names_of_fields_have_no_case() -> None:
    imap(
        """
        C: a id ("OS" "Linux" "NAME" "x")
        S: * ID NIL
        S: a OK completed
        L: [info] client id: name="x" os="Linux" while in auth state, …
        """
    )


def test_only_the_first_is_logged() -> None:
    said = 'C: a ID ("name" "x")\nS: * ID NIL\nS: a OK completed\n'
    stage = imap("C: a ID NIL\nS: * ID NIL\nS: a OK completed\n" + said * 3)
    assert len([text for _, text in stage.log.events if "client id" in text]) == 1


def test_no_line_of_the_log_can_be_forged() -> None:
    imap(
        r"""
        C: a ID ("name" {11}
        S: + OK
        C: x" os="y␍␊\ "version" "\"1\"")
        S: * ID NIL
        S: a OK completed
        L: [info] client id: name="x\x22 os=\x22y\x0D\x0A\x5C" version="\x221\x22" while in auth state, …
        """
    )


def test_literals() -> None:
    imap(
        """
        C: a ID ({4}
        S: + OK
        C: name {4}
        S: + OK
        C: a(b) "os" {2+}⏎OS {7}
        S: + OK
        C: version {0}
        S: + OK
        C: )
        S: * ID NIL
        S: a OK completed
        L: [info] client id: name="a(b)" os="OS" while in auth state, …
        """
    )


def test_starttls_forgets_it() -> None:
    imap(
        """
        C: a ID ("name" "x")
        S: * ID NIL
        S: a OK completed
        C: b STARTTLS
        S: b OK completed
        C: ⟨tls⟩
        C: c ID ("name" "y")
        S: * ID NIL
        S: c OK completed
        L: [info] client id: name="x" while in auth state, …
        L: [info] client id: name="y" while in auth state, client: 127.0.0.1 using starttls, server: 127.0.0.1:1143
        """,
        f"starttls on; {TLS}",
    )


def test_it_is_announced_if_the_configuration_says_so() -> None:
    for directives, more in (
        ("", "IMAP4 IMAP4rev1 UIDPLUS"),
        ("imap_capabilities IMAP4rev1 ID;", "IMAP4rev1 ID"),
    ):
        line = f"* CAPABILITY {more} AUTH=PLAIN"
        imap(f"C: a CAPABILITY\nS: {line}\nS: a OK completed", directives)


# What is refused


@pytest.mark.parametrize(
    "arguments",
    [
        *("", " ", "NIL ", " NIL", "x", "NILs", "NIL NIL", '"name" "x"', "((", "(", ")"),
        *('("name")', '("name" "x"', '("name" "x" )', '( "name" "x")', '("name""x")'),
        *('("name"  "x")', '("name" x)', '(name "x")', '(NIL "x")', '("name" NILs)'),
        *('("name" "x") x', '("name" "x" "os")', r'("name" "\x")', '("name" "x)'),
        *('("name" "␀")', '("name" ("x"))', '("name" "x" "NAME" "y")'),
        f'("{KEY}k" "x")',
        f'("x" "{VALUE}v")',
        pairs(31),
        *("({31}", '("x" {1025}', '("x" {10000}', '("x" {-1}', '("x" {}', '("x" {1} '),
    ],
)  # fmt: skip
def test_what_is_not_well_formed(arguments: str) -> None:
    imap(
        f"C: a ID {arguments}␍␊\nS: a BAD invalid command\nC: b NOOP\nS: b OK completed"
    )


@pytest.mark.parametrize(
    "announced", ["({31+}", '("x" {1025+}', '("x" {10000+}', "{1+}"]
)
def test_literal_that_nobody_asked_for_ends_the_session(announced: str) -> None:
    """What follows is data, and no command (RFC 7888)."""
    imap(f"C: a ID {announced}⏎b NOOP\nS: a BAD invalid command\nS: ⟨close⟩")


def test_nul_in_a_literal() -> None:
    imap('C: a ID ("x" {1}\nS: + OK\nC: ␀)\nS: a BAD invalid command')


def test_it_counts() -> None:
    imap(
        """
        C: a ID NIL
        S: * ID NIL
        S: a OK completed
        C: b ID NIL
        S: b BAD invalid command
        S: ⟨close⟩
        L: [info] client sent too many commands while in auth state, …
        """,
        "max_commands 1;",
    )
    imap(
        """
        C: a ID
        S: a BAD invalid command
        S: ⟨close⟩
        L: [info] client sent too many invalid commands while in auth state, …
        """,
        "max_errors 1;",
    )


def test_all_of_it_has_to_fit_into_the_buffer() -> None:
    imap(
        f"""
        C: a ID ("x" {{40}}
        S: + OK
        C: {"x" * 40} "y" "y")
        S: a BAD invalid command
        S: ⟨close⟩
        L: [info] client sent too long command " \\x22y\\x22 \\x22y\\x22" (increase imap_client_buffer to 8k) while in auth state, …
        """,
        "imap_client_buffer 64;",
    )


# The parser


@pytest.mark.parametrize(
    ("parts", "fields"),
    [
        ([b" NIL"], ()),
        ([b" ()"], ()),
        ([b' ("a" "b")'], ((b"a", b"b"),)),
        ([b' ("" "" "b" nil)'], ((b"", b""), (b"b", None))),
        ([rb' ("a\"\\" "\"")'], ((b'a"\\', b'"'),)),
        ([b' ("a" "\xc3\xa4(){} NIL")'], ((b"a", b"\xc3\xa4(){} NIL"),)),
        ([b" ({1}", b"a", b' "b")'], ((b"a", b"b"),)),
        ([b' ("a" {3}', b"\r\n)", b")"], ((b"a", b"\r\n)"),)),
        ([b" ({1}", b"a", b" {1}", b"b", b")"], ((b"a", b"b"),)),
    ],
)
def test_arguments(parts: list[bytes], fields: tuple[Field, ...]) -> None:
    assert parse_id(parts) == fields


@pytest.mark.parametrize(
    ("parts", "literal"),
    [
        ([b" ({30}"], Literal(30, wait=True)),
        ([b' ("a" {1024+}'], Literal(1024, wait=False)),
        ([b' ("a" {00001}'], Literal(1, wait=True)),
        ([b" ({1}", b"a", b" {0}"], Literal(0, wait=True)),
    ],
)
def test_announced_literals(parts: list[bytes], literal: Literal) -> None:
    assert parse_id(parts) == literal


def test_limits_may_be_reached() -> None:
    fields = parse_id([f' ("{KEY}" "{VALUE}")'.encode()])
    assert fields == ((KEY.encode(), VALUE.encode()),)
    most = tuple((b"f%d" % number, None) for number in range(30))
    assert parse_id([b" " + pairs(30).encode()]) == most


texts = st.binary(max_size=12).map(lambda text: text.replace(b"\0", b"0"))
quotable = texts.map(lambda text: re.sub(rb"[\r\n]", b"-", text))


@st.composite
def written(draw: st.DrawFn) -> tuple[list[bytes], tuple[Field, ...]]:
    """Fields, and the parts of a command that says them."""
    names = draw(st.lists(texts, max_size=6, unique_by=bytes.upper))
    fields = tuple((name, draw(st.none() | texts)) for name in names)
    parts = [b" ("]
    for string in (each for field in fields for each in field):
        parts[-1] += b"" if parts == [b" ("] else b" "
        if string is None:
            parts[-1] += draw(st.sampled_from([b"NIL", b"nil"]))
        elif re.search(rb"[\r\n]", string) or draw(st.booleans()):
            parts[-1] += b"{%d%s}" % (len(string), draw(st.sampled_from([b"", b"+"])))
            parts += [string, b""]
        else:
            parts[-1] += b'"%s"' % re.sub(rb'(["\\])', rb"\\\1", string)
    parts[-1] += b")"
    return parts, fields


@given(written())
def test_what_is_written_is_read(case: tuple[list[bytes], tuple[Field, ...]]) -> None:
    parts, fields = case
    assert parse_id(parts) == fields
    for count in range(1, len(parts), 2):
        assert parse_id(parts[:count]) == Literal(
            len(parts[count]), wait=not parts[count - 1].endswith(b"+}")
        )


@given(st.text('()"\\{+} 01NILnx\0\xff', max_size=20))
def test_anything_is_read_or_refused(text: str) -> None:
    """And nothing is read that a client could not mean."""
    try:
        found = parse_id([text.encode("latin-1")])
    except BadCommand:
        return
    assert isinstance(found, Literal) or text.upper() == " NIL" or text[:2] == " ("

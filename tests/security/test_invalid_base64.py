"""Answers to challenges that are not base64: a bad command, and nothing worse.

What is decoded at all is decoded as nginx does it: up to the first "=", with or
without padding.
"""

import base64
import binascii

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.mail.commands import BadCommand
from mailproxy.mail.sasl.clients import (
    decode,
    parse_oauthbearer,
    parse_plain,
    parse_xoauth2,
    split_cram_md5,
)
from tests.security.acts import Dialogue, act_out, b64

TALK = {
    "imap": ("a AUTHENTICATE", b"a BAD invalid command\r\n"),
    "pop3": ("AUTH", b"-ERR invalid command\r\n"),
    "smtp": ("AUTH", b"500 5.5.1 Invalid command\r\n"),
}
MECHANISMS = "plain cram-md5 external xoauth2 oauthbearer"
INVALID = [
    *(
        "*",
        "A",
        "AAAAA",
        "A=",
        "!AAA",
        "AA-A",
        "AA_A",
        "AAAA!",
        "é",
        "⟨ff⟩",
        "␀",
        "A␀AA",
    ),
    *("(AAA)", '"', "{4", "AAA\\", "␉AAAA", "⟨A*4001⟩", "AAAA,BBBB"),
]


@pytest.mark.parametrize("text", INVALID)
@pytest.mark.parametrize("protocol", TALK)
def test_is_a_bad_command(protocol: str, text: str) -> None:
    command, bad = TALK[protocol]
    for mechanism in (
        "PLAIN",
        "LOGIN",
        "CRAM-MD5",
        "EXTERNAL",
        "XOAUTH2",
        "OAUTHBEARER",
    ):
        dialogue = Dialogue(
            "",
            f"protocol {protocol}; {protocol}_auth {MECHANISMS};",
            f"C: {command} {mechanism}\nC: {text}",
        )
        act = act_out(dialogue, 2)
        assert act is not None
        assert act.wire.outgoing.endswith(bad)
        assert not act.network.wires["Q"]
        assert act.wire.outgoing.count(bad) == 1


@pytest.mark.parametrize("protocol", TALK)
def test_as_a_password_is_a_bad_command(protocol: str) -> None:
    """The user name before it is no login."""
    command, bad = TALK[protocol]
    script = f"C: {command} LOGIN {b64('u')}\nC: *\nC: {b64('p')}"
    act = act_out(Dialogue("", f"protocol {protocol};", script), 3)
    assert act is not None
    assert act.wire.outgoing.count(bad[2:]) == 2  # the third line is none either
    assert not act.network.wires["Q"]


@given(st.binary(max_size=60))
def test_any_octets_are_decoded_or_refused(text: bytes) -> None:
    for parse in (parse_plain, split_cram_md5, parse_xoauth2, parse_oauthbearer):
        for given_text in (text, base64.b64encode(text)):
            try:
                found = parse(given_text)
            except BadCommand:
                continue
            assert isinstance(found.user, bytes)
            assert isinstance(found.secret, bytes)


@given(st.binary(max_size=60), st.binary(max_size=10))
def test_what_is_decoded_is_what_was_encoded(text: bytes, tail: bytes) -> None:
    encoded = base64.b64encode(text)
    assert decode(encoded, "X") == text
    assert decode(encoded.rstrip(b"="), "X") == text
    assert decode(encoded.rstrip(b"=") + b"=" + tail, "X") == text


@given(st.binary(max_size=40))
def test_no_two_decoders_disagree(text: bytes) -> None:
    """Python's own skips what is not of the alphabet, unless it is told not to."""
    try:
        decoded = decode(text, "X")
    except BadCommand:
        return
    digits = text.partition(b"=")[0]
    padded = digits + b"=" * (-len(digits) % 4)
    assert binascii.a2b_base64(padded, strict_mode=True) == decoded

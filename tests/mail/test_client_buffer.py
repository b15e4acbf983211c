"""A command that does not fit into its buffer: what OAuth needs, what the log advises."""

from __future__ import annotations

import base64

import pytest

from mailproxy.log.record import MAX_LINE
from mailproxy.mail.commands import too_long_command
from tests.play import Stage, load_server, play

TOKEN = "t" * 3500
"""As long as those of Microsoft are, with many claims."""
MESSAGE = base64.b64encode(f"user=u\1auth=Bearer {TOKEN}\1\1".encode()).decode()

INITIAL = {
    "imap": f"S: * OK IMAP4 ready\nC: a AUTHENTICATE XOAUTH2 {MESSAGE}",
    "pop3": f"S: +OK POP3 ready\nC: AUTH XOAUTH2 {MESSAGE}",
    "smtp": f"S: 220 mx.test ESMTP ready\nC: AUTH XOAUTH2 {MESSAGE}",
}
ASKED_FOR = {
    "imap": f"S: * OK IMAP4 ready\nC: a AUTHENTICATE XOAUTH2\nS: +␠\nC: {MESSAGE}",
    "pop3": f"S: +OK POP3 ready\nC: AUTH XOAUTH2\nS: +␠\nC: {MESSAGE}",
    "smtp": f"S: 220 mx.test ESMTP ready\nC: AUTH XOAUTH2\nS: 334␠\nC: {MESSAGE}",
}
REFUSED = {
    "imap": "S: a BAD invalid command",
    "pop3": "S: -ERR invalid command",
    "smtp": "S: 500 5.5.1 Invalid command",
}
every_protocol = pytest.mark.parametrize("protocol", REFUSED)
both_ways = pytest.mark.parametrize(
    "dialogues", [INITIAL, ASKED_FOR], ids=["initial response", "asked for"]
)


def directives(protocol: str, buffer: str = "") -> str:
    """A server for tokens; with a buffer of that size, if it is given."""
    sized = f"{protocol}_client_buffer {buffer};" if buffer else ""
    return f"protocol {protocol}; {protocol}_auth xoauth2; {sized}"


def advice(protocol: str, buffer: str, shown: bytes = b"...", needed: int = 0) -> str:
    """What the log says of a command that is longer than `buffer`."""
    settings = load_server(directives(protocol, buffer)).protocol
    bad = too_long_command(settings, shown, needed)
    return bad.event % tuple(
        each.decode() if isinstance(each, bytes) else each for each in bad.values
    )


@every_protocol
@both_ways
def test_a_token_needs_8k(protocol: str, dialogues: dict[str, str]) -> None:
    question = f"Q: xoauth2 u {TOKEN}"
    play(f"{dialogues[protocol]}\n{question}", directives(protocol, "8k"))


@every_protocol
@both_ways
def test_the_log_says_what_a_token_needs(
    protocol: str, dialogues: dict[str, str]
) -> None:
    script = f"{dialogues[protocol]}\n{REFUSED[protocol]}\nS: ⟨close⟩"
    stage = play(script, directives(protocol, "4k"))
    said = last_line(stage)
    assert said.startswith('client sent too long command "')
    assert f'..." (increase {protocol}_client_buffer to 8k) while in auth state' in said
    assert MESSAGE[:8] not in said


def last_line(stage: Stage) -> str:
    level, text = stage.log.events[-1]
    assert level == "info"
    return text


@every_protocol
@pytest.mark.parametrize(
    ("buffer", "advised"),
    [
        ("0", "8k"),
        ("64", "8k"),
        ("4k", "8k"),
        ("5k", "8k"),
        ("8k", "16k"),
        ("32k", "64k"),
    ],
)
def test_advice_is_the_next_size(protocol: str, buffer: str, advised: str) -> None:
    wanted = f'client sent too long command "..." (increase {protocol}_client_buffer to {advised})'
    assert advice(protocol, buffer) == wanted


@every_protocol
def test_no_advice_for_what_is_no_login(protocol: str) -> None:
    assert advice(protocol, "64k") == 'client sent too long command "..."'
    assert (
        advice(protocol, "4k", needed=1 << 60) == 'client sent too long command "..."'
    )


def test_a_literal_says_itself_how_much_it_needs() -> None:
    assert advice("imap", "4k", needed=20_000).endswith("to 32k)")


@pytest.mark.parametrize("octet", ["x", "\1"])
def test_a_long_command_leaves_room_for_the_advice(octet: str) -> None:
    stage = play(
        f"S: * OK IMAP4 ready\nC: a NOOP ⟨{octet}*5000⟩\nS: a BAD invalid command\nS: ⟨close⟩",
        directives("imap", "4k"),
    )
    said = last_line(stage)
    assert (
        '..." (increase imap_client_buffer to 8k) while in auth state, client: ' in said
    )
    assert len(said) < MAX_LINE

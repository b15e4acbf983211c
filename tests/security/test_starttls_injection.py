"""Clear text behind STARTTLS that is taken for what was said in TLS, or the reverse.

An attacker on the way adds a command behind the client's STARTTLS; executed in TLS, it
would be the client's (CVE-2011-0411). What was said in clear text must not matter in
TLS either, because the attacker may have said it.
"""

import pytest

from tests.play import Stage, play
from tests.security.world import TLS, world

IMAP = ("imap", "* OK IMAP4 ready", "a STARTTLS", "a OK completed")
POP3 = ("pop3", "+OK POP3 ready", "STLS", "+OK")
SMTP = ("smtp", "220 mx.test ESMTP ready", "STARTTLS", "220 2.0.0 Start TLS")
NOOP = {
    "imap": "C: z NOOP\nS: z OK completed",
    "pop3": "C: NOOP\nS: +OK",
    "smtp": "C: NOOP\nS: 250 2.0.0 OK",
}
INJECTED = {
    "imap": ["b NOOP", "b LOGIN admin x", "b LOGIN {5}", "b CAP…"],
    "pop3": ["NOOP", "USER admin⏎PASS x", "USER victim", "US…"],
    "smtp": ["NOOP", "AUTH PLAIN AGFkbWluAHg=", "MAIL FROM:<a@b>", "RCPT…"],
}


def sasl(protocol: str) -> str:
    return {"imap": "b AUTHENTICATE", "pop3": "AUTH", "smtp": "AUTH"}[protocol]


def tls(
    dialogue: tuple[str, ...], script: str, directives: str = "starttls on;"
) -> Stage:
    protocol, greeting, *_ = dialogue
    return play(f"S: {greeting}\n{script}", f"protocol {protocol}; {directives} {TLS}")


CASES = [(d, injected) for d in (IMAP, POP3, SMTP) for injected in INJECTED[d[0]]]


@pytest.mark.parametrize(("dialogue", "injected"), CASES)
def test_commands_in_the_same_segment_are_dropped(
    dialogue: tuple[str, ...], injected: str
) -> None:
    protocol, _, command, answer = dialogue
    tls(dialogue, f"C: {command}⏎{injected}\nS: {answer}\nC: ⟨tls⟩\n{NOOP[protocol]}")


@pytest.mark.parametrize("split", range(1, 6))
@pytest.mark.parametrize(("dialogue", "injected"), CASES)
def test_commands_in_split_segments_are_dropped(
    dialogue: tuple[str, ...], injected: str, split: int
) -> None:
    """Whatever is in our buffers when the handshake begins."""
    protocol, _, command, answer = dialogue
    head, tail = command[:-split], command[-split:]
    tls(
        dialogue,
        f"C: {head}…\nC: {tail}⏎{injected}\nS: {answer}\nC: ⟨tls⟩\n{NOOP[protocol]}",
    )


@pytest.mark.parametrize(("dialogue", "injected"), CASES)
def test_commands_in_a_later_segment_break_the_handshake(
    dialogue: tuple[str, ...], injected: str
) -> None:
    _, _, command, answer = dialogue
    stage = tls(dialogue, f"C: {command}\nS: {answer}\nC: {injected}\nS: ⟨close⟩")
    assert "SSL_do_handshake() failed" in stage.log.events[-1][1]
    assert not stage.network.wires["Q"]


@pytest.mark.parametrize("dialogue", [IMAP, POP3, SMTP])
async def test_really_breaks_it(dialogue: tuple[str, ...]) -> None:
    """The same with OpenSSL and the kernel's buffers."""
    protocol, greeting, command, answer = dialogue
    async with world(f"protocol {protocol}; starttls on; {TLS}") as here:
        client = await here.connect()
        await client.expect(greeting.encode() + b"\r\n")
        await client.send(command.encode() + b"\r\n")
        await client.expect(answer.encode() + b"\r\n")
        await client.send(b"b NOOP\r\n")
        assert b"OK" not in await client.rest()
        assert "wrong version number" in here.texts[-1]


@pytest.mark.parametrize("dialogue", [IMAP, POP3, SMTP])
async def test_really_drops_it(dialogue: tuple[str, ...]) -> None:
    protocol, greeting, command, answer = dialogue
    async with world(f"protocol {protocol}; starttls on; {TLS}") as here:
        client = await here.connect()
        await client.expect(greeting.encode() + b"\r\n")
        await client.send(f"{command}\r\n{INJECTED[protocol][0]}\r\n".encode())
        await client.expect(answer.encode() + b"\r\n")
        assert client.seen == b""
        await client.start_tls()
        await client.send(b"z NOOP\r\n" if protocol == "imap" else b"NOOP\r\n")
        wanted = {"imap": b"z OK completed", "pop3": b"+OK", "smtp": b"250 2.0.0 OK"}
        await client.expect(wanted[protocol] + b"\r\n")
        client.close()
        await here.over()
        assert client.seen == b""


def test_a_user_of_the_clear_text_is_forgotten() -> None:
    """USER before STLS is not the user of a PASS in TLS; STLS is refused between them."""
    tls(POP3, "C: USER evil\nS: +OK\nC: STLS\nS: -ERR invalid command")
    tls(
        POP3,
        """
        C: USER evil
        S: +OK
        C: NOPE
        S: -ERR invalid command
        C: STLS
        S: +OK
        C: ⟨tls⟩
        C: PASS x
        S: -ERR invalid command
        """,
    )


def test_an_envelope_of_the_clear_text_is_forgotten() -> None:
    tls(
        SMTP,
        """
        C: EHLO evil
        S: 250-mx.test
        S: 250 STARTTLS
        C: MAIL FROM:<evil@example.com>
        S: 250 2.0.0 OK
        C: STARTTLS
        S: 220 2.0.0 Start TLS
        C: ⟨tls⟩
        C: RCPT TO:<victim@example.com>
        S: 503 5.5.1 Bad sequence of commands
        C: MAIL FROM:<good@example.com>
        S: 250 2.0.0 OK
        C: RCPT TO:<victim@example.com>
        Q: GET /auth HTTP/1.0
        Q| Host: 127.0.0.1
        Q| Auth-Method: none
        Q| Auth-User:␠
        Q| Auth-Pass:␠
        Q| Auth-Protocol: smtp
        Q| Auth-Login-Attempt: 1
        Q| Client-IP: 127.0.0.1
        Q| Client-Host: [UNAVAILABLE]
        Q| Auth-SMTP-Helo:␠
        Q| Auth-SMTP-From: MAIL FROM:<good@example.com>
        Q| Auth-SMTP-To: RCPT TO:<victim@example.com>
        Q| Auth-SSL: on
        Q| Auth-SSL-Protocol: TLSv1.3
        Q| Auth-SSL-Cipher: TLS_AES_256_GCM_SHA384
        A: OK
        B: 220 ready
        P: HELO mx.test
        """,
        "starttls on; smtp_auth none; xclient off;",
    )


@pytest.mark.parametrize("dialogue", [IMAP, POP3, SMTP])
def test_a_half_login_of_the_clear_text_is_no_login(dialogue: tuple[str, ...]) -> None:
    """STARTTLS as the answer to a challenge is a bad answer, and nothing else."""
    protocol, _, command, _ = dialogue
    prompt = "334" if protocol == "smtp" else "+"
    bad = {
        "imap": "b BAD invalid command",
        "pop3": "-ERR invalid command",
        "smtp": "500 5.5.1 Invalid command",
    }[protocol]
    script = f"C: {sasl(protocol)} PLAIN\nS: {prompt}␠\nC: {command}=\nS: {bad}"
    assert tls(dialogue, script).wire.tls is None


@pytest.mark.parametrize("dialogue", [IMAP, POP3, SMTP])
def test_a_second_handshake_is_refused(dialogue: tuple[str, ...]) -> None:
    protocol, _, command, answer = dialogue
    bad = {
        "imap": "a BAD invalid command",
        "pop3": "-ERR invalid command",
        "smtp": "500 5.5.1 Invalid command",
    }[protocol]
    tls(dialogue, f"C: {command}\nS: {answer}\nC: ⟨tls⟩\nC: {command}\nS: {bad}")


@pytest.mark.parametrize(
    ("dialogue", "login"),
    [
        (IMAP, "b LOGIN u p"),
        (IMAP, "b AUTHENTICATE PLAIN AHUAcA=="),
        (POP3, "USER u"),
        (POP3, "AUTH PLAIN AHUAcA=="),
        (SMTP, "AUTH PLAIN AHUAcA=="),
        (SMTP, "MAIL FROM:<a@b>"),
    ],
)
def test_a_login_without_tls_is_refused_where_tls_is_wanted(
    dialogue: tuple[str, ...], login: str
) -> None:
    refusal = {
        "imap": "b BAD invalid command",
        "pop3": "-ERR invalid command",
        "smtp": "500 5.5.1 Invalid command",
    }[dialogue[0]]
    if login.startswith("MAIL"):
        refusal = "530 5.7.0 Must issue a STARTTLS command first"
    none = "smtp_auth plain none;" if dialogue is SMTP else ""
    stage = tls(dialogue, f"C: {login}\nS: {refusal}", f"starttls only; {none}")
    assert not stage.network.wires["Q"]


def test_apop_without_tls_is_refused_where_tls_is_wanted() -> None:
    play(
        """
        S: +OK POP3 ready <⟨salt⟩@mx.test>
        C: APOP u 0123456789abcdef0123456789abcdef
        S: -ERR invalid command
        """,
        f"protocol pop3; pop3_auth apop; starttls only; {TLS}",
    )

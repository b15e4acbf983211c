"""Whole sessions of every kind, to be disturbed at every step.

A dialogue is what the client (C), the auth server (A) and the backend (B) send, in the
notation of `tests.play`; what mailproxy says is not looked at here. Each is followed
from the greeting into the relay. The password is SECRET everywhere, the token TOKEN.
"""

from __future__ import annotations

import base64
import errno
from dataclasses import dataclass

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.log import DEBUG
from tests.differential.notation import line_bytes
from tests.memory import MemoryWire
from tests.play import CLIENT, Stage, Step, answer, load_server, parse
from tests.security.world import BUGS, TLS


def b64(text: str | bytes) -> str:
    octets = text.encode() if isinstance(text, str) else text
    return base64.b64encode(octets).decode()


def plain(user: str, password: str) -> str:
    """The message of PLAIN in base64."""
    return b64(f"\0{user}\0{password}")


@dataclass(frozen=True)
class Dialogue:
    """A kind of session.

    Attributes:
      directives: of its server.
      script: what the others send.
    """

    name: str
    directives: str
    script: str

    @property
    def steps(self) -> list[Step]:
        return parse(self.script)


_IMAP_IN = "A: OK\nB: * OK ready\nB: a OK in\nC: b NOOP\nB: b OK\n"
_LITERALS_IN = _IMAP_IN.replace("ready\n", "ready\nB: + go\nB: + go\n")
_POP3_IN = "A: OK\nB: +OK ready\nB: +OK\nB: +OK in\nC: NOOP\nB: +OK\n"
_SMTP_IN = "A: OK\nB: 220 hi\nB: 250 hi\nB: 220 hi\nB: 235 in\nC: NOOP\nB: 250 OK\n"
_PLAIN = plain("u", "SECRET")
_XOAUTH2 = b64("user=u\1auth=Bearer TOKEN\1\1")
_OAUTHBEARER = b64("n,a=u,\1auth=Bearer TOKEN\1\1")
_CRAM = b64("u 0123456789abcdef0123456789abcdef")
_DIGEST = "0123456789abcdef0123456789abcdef"
SECRETS = (
    *("SECRET", "TOKEN", _DIGEST, b64("SECRET"), b64("TOKEN")),
    *(_PLAIN, _XOAUTH2, _OAUTHBEARER, _CRAM),
)
"""What stands for a secret in the dialogues, in every form in which it is sent."""
_ALL = "plain cram-md5 external xoauth2 oauthbearer"
_EXTERNAL = _IMAP_IN.replace("A: OK", "A: OK\nA| Auth-Pass: SECRET")

DIALOGUES = [
    Dialogue("imap-login", "protocol imap;", f"C: a LOGIN u SECRET\n{_IMAP_IN}"),
    Dialogue(
        "imap-literals",
        "protocol imap; proxy_login literal;",
        f"C: a LOGIN {{1}}\nC: u {{6}}\nC: SECRET\n{_LITERALS_IN}",
    ),
    Dialogue(
        "imap-literal+",
        "protocol imap;",
        """
        C: a LOGIN {1+}⏎u {6+}⏎SECRET
        A: OK
        A| Auth-User: DOMAIN\\u
        B: * OK [CAPABILITY IMAP4 LITERAL+] ready
        B: * CAPABILITY IMAP4⏎a OK in
        C: b NOOP
        """,
    ),
    Dialogue(
        "imap-sasl-login",
        "protocol imap;",
        f"C: a AUTHENTICATE LOGIN\nC: dQ==\nC: {b64('SECRET')}\n{_IMAP_IN}",
    ),
    Dialogue(
        "imap-cram-md5",
        f"protocol imap; imap_auth {_ALL};",
        f"C: a AUTHENTICATE CRAM-MD5\nC: {_CRAM}\n{_EXTERNAL}",
    ),
    Dialogue(
        "imap-external",
        f"protocol imap; imap_auth {_ALL};",
        f"C: a AUTHENTICATE EXTERNAL dQ==\n{_EXTERNAL}",
    ),
    Dialogue(
        "imap-oauth",
        f"protocol imap; imap_auth {_ALL};",
        f"""
        C: a AUTHENTICATE OAUTHBEARER {_OAUTHBEARER}
        A: NO no
        A| Auth-Error-SASL: eyJ9
        A| Auth-Wait: 3
        wait 4
        C: AQ==
        C: a AUTHENTICATE XOAUTH2
        C: {_XOAUTH2}
        {_IMAP_IN}
        """,
    ),
    Dialogue(
        "imap-starttls",
        f"protocol imap; starttls only; {TLS}",
        f"C: x STARTTLS\nC: ⟨tls⟩\nC: a LOGIN u SECRET\n{_IMAP_IN}",
    ),
    Dialogue(
        "imap-tls",
        f"protocol imap; listen 127.0.0.1:1143 ssl; {TLS}",
        f"C: ⟨tls⟩\nC: a LOGIN u SECRET\n{_IMAP_IN}",
    ),
    Dialogue(
        "imap-proxy-protocol",
        "protocol imap; listen 127.0.0.1:1143 proxy_protocol; proxy_protocol on;",
        f"C: PROXY TCP4 192.0.2.1 192…\nC: .0.2.2 1 2\nC: a LOGIN u SECRET\n{_IMAP_IN}",
    ),
    Dialogue(
        "imap-refused-once",
        "protocol imap;",
        f"""
        C: a LOGIN u SECRET
        A: NO try again
        A| Auth-Wait: 5
        wait 6
        C: a LOGIN u SECRET
        {_IMAP_IN}
        """,
    ),
    Dialogue(
        "imap-put-off",
        "protocol imap;",
        f"C: a LOGIN u SECRET\nA: WAIT\nwait 2\n{_IMAP_IN}",
    ),
    Dialogue("pop3-user", "protocol pop3;", f"C: USER u\nC: PASS SECRET\n{_POP3_IN}"),
    Dialogue(
        "pop3-apop",
        "protocol pop3; pop3_auth plain apop;",
        "C: APOP u 0123456789abcdef0123456789abcdef\n"
        + _POP3_IN.replace("A: OK", "A: OK\nA| Auth-Pass: SECRET"),
    ),
    Dialogue("pop3-plain", "protocol pop3;", f"C: AUTH PLAIN\nC: {_PLAIN}\n{_POP3_IN}"),
    Dialogue(
        "pop3-stls",
        f"protocol pop3; starttls on; {TLS}",
        f"C: STLS\nC: ⟨tls⟩\nC: USER u\nC: PASS SECRET\n{_POP3_IN}",
    ),
    Dialogue(
        "smtp-plain",
        "protocol smtp; proxy_smtp_auth on;",
        f"C: EHLO me\nC: AUTH PLAIN {_PLAIN}\n"
        + _SMTP_IN.replace("B: 235", "B: 250 hi\nB: 235"),
    ),
    Dialogue(
        "smtp-login",
        "protocol smtp; proxy_smtp_auth on;",
        f"C: AUTH LOGIN\nC: dQ==\nC: {b64('SECRET')}\n{_SMTP_IN}",
    ),
    Dialogue(
        "smtp-starttls",
        f"protocol smtp; starttls on; proxy_smtp_auth on; {TLS}",
        f"C: EHLO me\nC: STARTTLS\nC: ⟨tls⟩\nC: AUTH PLAIN {_PLAIN}\n{_SMTP_IN}",
    ),
    Dialogue(
        "smtp-none",
        "protocol smtp; smtp_auth none; xclient off; smtp_greeting_delay 3s;",
        """
        wait 4
        C: HELO me
        C: MAIL FROM:<a@b>
        C: RCPT TO:<c@d>
        A: OK
        B: 220 hi
        B: 250 hi
        B: 250 sender
        B: 250 recipient
        C: DATA
        B: 354 go
        """,
    ),
]

LONGEST = 2000.0
"""Seconds after which every timer of a session has gone off."""


class Act(Stage):
    """A session and its neighbours; they say what a dialogue says, up to a point."""

    over = False
    """The session has ended."""

    async def run_session(self) -> None:
        await super().run_session()
        self.over = True

    @property
    def present(self) -> str:
        """Who is there: the client, and perhaps the auth server and the backend."""
        wires = self.network.wires
        return "C" + ("A" if wires["Q"] else "") + ("B" if wires["P"] else "")

    async def follow(self, steps: list[Step]) -> None:
        """Have everyone say their part; who is not there, or has left, says nothing."""
        await wait_all_tasks_blocked()
        for step in steps:
            if self.over:
                return
            if step.kind == "wait":
                await trio.sleep(float(step.text))
            elif step.kind in self.present and not self.wire_of(step.kind).ended:
                self._say(step)
            await wait_all_tasks_blocked()

    def _say(self, step: Step) -> None:
        wire = self.wire_of(step.kind)
        if step.text == "⟨tls⟩":
            wire.shake()
        elif step.kind == "A":
            wire.put(answer(step.texts))
        else:
            wire.put(b"".join(map(line_bytes, step.texts)))

    def wire_of(self, kind: str) -> MemoryWire:
        """The latest connection with one of them."""
        if kind == "C":
            return self.wire
        return self.network.wires["Q" if kind == "A" else "P"][-1]

    def leave(self, who: str, how: str) -> None:
        """Somebody closes the connection, or breaks it."""
        self.wire_of(who).finish(errno.ECONNRESET if how == "reset" else None)

    def check(self) -> None:
        """The session has ended as it should, and everything is closed."""
        wires = [self.wire, *self.network.wires["Q"], *self.network.wires["P"]]
        self.network.close()  # what is kept of the auth server's connections
        assert all(wire.closed for wire in wires)
        log = "\n".join(text for _, text in self.log.events)
        assert not [text for level, text in self.log.events if level in BUGS], log
        everything = "\n".join([log, *self.log.debug])
        for secret in SECRETS:
            assert secret not in everything


def act_out(
    dialogue: Dialogue,
    count: int,
    who: str = "",
    how: str = "",
    *,
    go_on: bool = False,
    client: str = CLIENT,
) -> Act | None:
    """Follow a dialogue up to a step; then somebody leaves, and it has to end.

    Args:
      count: how many steps are taken before.
      who, how: who leaves, and in which way; with "" everyone just falls silent.
      go_on: the others say the rest of their parts.
      client: the address of the client.

    Returns:
      None if `who` was not there to leave.
    """
    server = load_server(f"{dialogue.directives} proxy_timeout 1000;")
    act = Act(server, client=client, level=DEBUG)
    steps = dialogue.steps

    async def run() -> bool:
        with trio.fail_after(LONGEST):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(act.run_session)
                await act.follow(steps[:count])
                if who and (act.over or who not in act.present):
                    nursery.cancel_scope.cancel()
                    return False
                if who:
                    act.leave(who, how)
                if go_on:
                    await act.follow(steps[count:])
        return True

    if not trio.run(run, clock=MockClock(autojump_threshold=0)):
        return None
    act.check()
    return act

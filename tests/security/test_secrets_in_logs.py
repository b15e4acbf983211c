"""Passwords where somebody else can read them: logs, exceptions, reprs.

That ordinary sessions, disturbed at any step, log no secret at any level is looked at
by `acts.Act.check`, for every one of them. Here are the places where a secret stands
beside what is logged.
"""

import dataclasses

import pytest
import trio
from trio.testing import MockClock

from mailproxy.auth.http import AuthHttpSettings
from mailproxy.auth.http_answer import Unusable, parse
from mailproxy.auth.request import AuthRequest
from mailproxy.auth.source import Chain
from mailproxy.auth.verdict import Granted, Route, Unavailable
from mailproxy.errors import AuthError, BackendError, LoginRefused
from mailproxy.log import DEBUG, Logger
from mailproxy.mail.commands import Command, redacted, too_long_command
from mailproxy.mail.imap_syntax import split_arguments
from mailproxy.mail.login import Login
from mailproxy.mail.sasl.clients import UserAndSecret
from mailproxy.net.lines import TooLong
from mailproxy.net.network import Network
from mailproxy.net.timer import Timer
from tests.play import auth_http, load_server
from tests.play import parse as parse_script
from tests.security.acts import DIALOGUES, Act, Dialogue, act_out, b64, plain

SECRET = plain("u", "SECRET")
ROUTE = Route(server="127.0.0.1", port=1)


def log_of(directives: str, script: str) -> str:
    """What is logged, at any level, of a session in which others say this."""
    dialogue = Dialogue("", directives, script)
    act = act_out(dialogue, len(dialogue.steps))  # looks for the secret itself
    assert act is not None
    return "\n".join([text for _, text in act.log.events] + act.log.debug)


@pytest.mark.parametrize(
    "command",
    [
        *(
            "a LOGIN u SECRET",
            "a login u SECRET",
            "a LoGiN u SECRET",
            "  a LOGIN u SECRET",
        ),
        *(
            "a   LOGIN   u SECRET",
            "a LOGIN SECRET",
            "a\tLOGIN\tu\tSECRET",
            " LOGIN u SECRET",
        ),
        *("a AUTHENTICATE PLAIN SECRET", "a  authenticate LOGIN SECRET"),
        *(
            "PASS SECRET",
            "pass SECRET",
            "  PASS SECRET",
            "PASS  SECRET",
            "APOP u SECRET",
        ),
        *("AUTH PLAIN SECRET", "auth LOGIN SECRET", "AUTH\tPLAIN\tSECRET"),
    ],
)
def test_commands_are_shown_without_them(command: str) -> None:
    shown = redacted(command.encode())
    assert b"SECRET" not in shown
    assert shown.endswith(b" ...")


@pytest.mark.parametrize(
    "command",
    [
        *("a NOOP x", "MAIL FROM:<login@auth.example.com> AUTH=<>", ""),
        *("EHLO pass.example.com", "a LOGINS x", "xPASS y", "\xff\x00"),
    ],
)
def test_other_commands_are_shown(command: str) -> None:
    assert redacted(command.encode()) == command.encode()


LONG = "⟨SECRET*700⟩"


@pytest.mark.parametrize(
    ("directives", "script"),
    [
        ("protocol imap;", f"C: a LOGIN u {LONG}…"),
        ("protocol imap;", f"C: a   LOGIN u {LONG}…"),
        ("protocol imap;", f'C: a LOGIN u "{LONG}…'),
        ("protocol imap;", f"C: a LOGIN u {{9999}}\nC: {LONG}…"),
        ("protocol imap;", f"C: a LOGIN {{1+}}⏎u {{9999+}}⏎{LONG}…"),
        ("protocol imap;", f"C: a LOGIN {{1}}\nC: u {LONG}…"),
        ("protocol imap;", f"C: a AUTHENTICATE PLAIN {LONG}…"),
        ("protocol imap;", f"C: a AUTHENTICATE PLAIN\nC: {LONG}…"),
        ("protocol imap;", f"C: a AUTHENTICATE LOGIN\nC: dQ==\nC: {LONG}…"),
        ("protocol imap;", f"C: a AUTHENTICATE {{5}}\nC: PLAIN {LONG}…"),
        ("protocol pop3;", f"C: USER u\nC: PASS {LONG}…"),
        ("protocol pop3;", f"C: pass {LONG}…"),
        ("protocol pop3;", f"C: AUTH PLAIN\nC: {LONG}…"),
        ("protocol pop3;", f"C: AUTH LOGIN\nC: dQ==\nC: {LONG}…"),
        ("protocol smtp;", f"C: AUTH PLAIN {LONG}…"),
        ("protocol smtp;", f"C: AUTH PLAIN\nC: {LONG}…"),
        ("protocol smtp;", f"C: AUTH LOGIN\nC: dQ==\nC: {LONG}…"),
    ],
)
def test_commands_that_are_too_long(directives: str, script: str) -> None:
    log = log_of(directives, script)
    assert "client sent too long command" in log
    assert "SECRE" not in log


@pytest.mark.parametrize(
    "early",
    [
        f"AUTH PLAIN {SECRET}",
        f"HELO me⏎AUTH PLAIN {SECRET}⏎QUIT",
        f"EHLO me⏎AUTH LOGIN⏎dQ==⏎{b64('SECRET')}",
        f"EHLO me␊auth plain {SECRET}␊",
        f"AUTH PLAIN⏎{SECRET}",
        "auth login⏎SECRET",
    ],
)
def test_clients_that_talk_too_early(early: str) -> None:
    log = log_of("protocol smtp; smtp_greeting_delay 5s;", f"C: {early}")
    assert "client was rejected before greeting" in log


def test_commands_behind_a_rejected_one() -> None:
    """nginx shows its whole buffer."""
    script = f"C: MAIL FROM:<a@b>⏎AUTH PLAIN {SECRET}"
    log = log_of("protocol smtp;", script)
    assert 'client was rejected: "MAIL FROM:<a@b>__" while in auth state' in log


@pytest.mark.parametrize(
    "answer",
    [
        "OK\nA| Auth-Pass: SECRET\nA| Auth-User: a␀b",
        "OK\nA| Auth-Pass: SECRET␀",
        "OK\nA| Auth-Pass: SECRET\nA| bad header",
        "OK\nA| Auth-Pass: SECRET\nA| Auth-Port: 0",
        "OK\nA| Auth-Pass: SECRET\nA| Auth-Server: example.com",
        "HTTP/1.0 200 OK\nA| Auth-Pass: SECRET␍x\nA|",
        "HTTP/1.0 200 OK\nA| Auth-Pass: SECRET\nA|",
        "HTTP/1.0 200 OK\nA| Auth-Pass: SECRET…\nA: ⟨SECRET*4000⟩",
    ],
)
def test_answers_of_the_auth_server(answer: str) -> None:
    log = log_of("protocol imap;", f"C: a LOGIN u SECRET\nA: {answer}")
    assert "auth http server" in log


@pytest.mark.parametrize(
    "dialogue",
    [each for each in DIALOGUES if "wait" not in each.script],
    ids=lambda d: d.name,
)
def test_tracebacks(dialogue: Dialogue) -> None:
    """A bug is logged with its traceback, to its last line."""
    server = load_server(dialogue.directives)
    careless = Chain((Careless.of(auth_http(server)),))
    act = Act(dataclasses.replace(server, auth=careless), level=DEBUG)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            await act.follow(parse_script(dialogue.script))
            if not act.over:
                act.leave("C", "close")

    trio.run(run, clock=MockClock(autojump_threshold=0))
    log = "\n".join([text for _, text in act.log.events] + act.log.debug)
    assert "session failed, this is a bug" in log
    assert "RuntimeError: (AuthRequest(" in log
    for secret in ("SECRET", "TOKEN", b64("SECRET"), SECRET, "0123456789abcdef"):
        assert secret not in log


@dataclasses.dataclass(frozen=True, kw_only=True)
class Careless(AuthHttpSettings):
    """An auth source with a bug, and with no care for what it says."""

    @classmethod
    def of(cls, settings: AuthHttpSettings) -> "Careless":
        fields = dataclasses.fields(settings)
        return cls(**{field.name: getattr(settings, field.name) for field in fields})

    async def check(
        self, request: AuthRequest, network: Network, timer: Timer, log: Logger
    ) -> Granted:
        granted = Granted(user=b"u", secret=request.secret, route=ROUTE)
        try:
            raise AuthError("failed", request, granted)
        except AuthError as error:
            raise RuntimeError(request, granted, repr(error), str(timer)) from error


def test_reprs() -> None:
    shown = [
        Login(method="plain", user=b"u", secret=b"SECRET"),
        UserAndSecret(b"u", b"SECRET"),
        Command(b"PASS", [b"SECRET"]),
        split_arguments(b" u SECRET", 2),
        AuthRequest(
            protocol="imap", method="plain", user=b"u", secret=b"SECRET", client="::1"
        ),
        Granted(user=b"u", secret=b"SECRET", route=ROUTE),
        Unavailable(event="%s", values=(b"SECRET",)),
        parse(b"HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Pass: SECRET"),
        Unusable("sent invalid header: ", b"X_Y: SECRET", "something else"),
        TooLong(b"SECRET"),
        too_long_command(load_server("protocol imap;").protocol, b"SECRET"),
        BackendError(
            'upstream sent invalid response: "%s"', b"SECRET", reply=b"SECRET"
        ),
        LoginRefused("%s", b"SECRET", reply=b"SECRET"),
        AuthError("%s", b"SECRET"),
    ]
    for each in shown:
        assert "SECRET" not in f"{each!r} {each}"

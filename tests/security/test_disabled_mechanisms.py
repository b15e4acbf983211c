"""Mechanisms that the configuration does not name, in every form they can be asked in.

nginx lets `AUTH EXTERNAL` with an initial response through, whatever is configured:
the auth server is then asked about any user name, without a password.
"""

import itertools

import pytest

from tests.security.acts import Dialogue, act_out, b64, plain

TALK = {
    "imap": ("a AUTHENTICATE", b"a BAD invalid command\r\n"),
    "pop3": ("AUTH", b"-ERR invalid command\r\n"),
    "smtp": ("AUTH", b"500 5.5.1 Invalid command\r\n"),
}
RESPONSES = {
    "CRAM-MD5": b64("u 0123456789abcdef0123456789abcdef"),
    "EXTERNAL": b64("admin"),
    "XOAUTH2": b64("user=u\1auth=Bearer t\1\1"),
    "OAUTHBEARER": b64("n,a=u,\1auth=Bearer t\1\1"),
    "GSSAPI": "",
    "ANONYMOUS": "YQ==",
    "SCRAM-SHA-256": "YQ==",
    "NTLM": "",
    "NONE": "YQ==",
    "APOP": "YQ==",
    "PLAIN␀": plain("u", "p"),
    "PLAIN,EXTERNAL": b64("admin"),
    "\uff45\uff58\uff54\uff45\uff52\uff4e\uff41\uff4c": b64("admin"),
    "EXTERNAL\u0130": b64("admin"),
}
FORMS = [
    "{auth} {mechanism} {response}",
    "{auth} {lower} {response}",
    "{auth} {mechanism}\nC: {response}",
    "{auth} {mechanism}  {response} ",
    "{auth} {mechanism} {response} {response}",
    "{auth} {mechanism} =",
]
IMAP_FORMS = [
    '{auth} "{mechanism}" {response}',
    "{auth} {{{size}+}}⏎{mechanism} {response}",
    '{auth} "{mechanism}" "{response}"',
]
CASES = [
    *itertools.product(TALK, FORMS),
    *(("imap", form) for form in IMAP_FORMS),
]


def ask_nobody(protocol: str, form: str, mechanism: str, methods: str) -> None:
    """The request is refused, whatever else is said."""
    command, bad = TALK[protocol]
    line = form.format(
        auth=command,
        mechanism=mechanism,
        lower=mechanism.lower(),
        response=RESPONSES[mechanism],
        size=len(mechanism.encode()),
    )
    directives = f"protocol {protocol}; {protocol}_auth {methods};"
    dialogue = Dialogue("", directives, f"C: {line}")
    act = act_out(dialogue, len(dialogue.steps))
    assert act is not None
    assert not act.network.wires["Q"]
    said = bytes(act.wire.outgoing)
    assert not any(line.startswith((b"334", b"+ ")) for line in said.splitlines())
    assert bad in said or said.endswith(b"501 5.5.4 Invalid argument\r\n"), said


@pytest.mark.parametrize("mechanism", RESPONSES)
@pytest.mark.parametrize(("protocol", "form"), CASES)
def test_are_refused(protocol: str, form: str, mechanism: str) -> None:
    ask_nobody(protocol, form, mechanism, "plain")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", TALK)
def test_external_is_refused_where_all_others_are_enabled(
    protocol: str, form: str
) -> None:
    ask_nobody(protocol, form, "EXTERNAL", "plain cram-md5 xoauth2 oauthbearer")


def test_apop_is_refused() -> None:
    dialogue = Dialogue(
        "",
        "protocol pop3; pop3_auth plain cram-md5;",
        "C: APOP u 0123456789abcdef0123456789abcdef",
    )
    act = act_out(dialogue, 1)
    assert act is not None
    assert act.wire.outgoing.endswith(TALK["pop3"][1])
    assert not act.network.wires["Q"]


def test_mail_without_a_login_is_refused() -> None:
    script = "C: MAIL FROM:<a@b>\nC: RCPT TO:<c@d>"
    act = act_out(Dialogue("", "protocol smtp; smtp_auth plain;", script), 2)
    assert act is not None
    assert b"530 5.7.1 " in act.wire.outgoing
    assert b"503 5.5.1 " in act.wire.outgoing
    assert not act.network.wires["Q"]


@pytest.mark.parametrize("protocol", TALK)
def test_nothing_is_left_of_an_earlier_attempt(protocol: str) -> None:
    """The password of one attempt is not sent with the EXTERNAL of the next."""
    command, _ = TALK[protocol]
    dialogue = Dialogue(
        "",
        f"protocol {protocol}; {protocol}_auth plain external cram-md5;",
        f"""
        C: {command} PLAIN {plain("victim", "SECRET")}
        A: NO no
        A| Auth-Wait: 1
        A| Auth-User: other
        A| Auth-Pass: SECRET
        wait 2
        C: {command} EXTERNAL {b64("u")}
        A: NO no
        A| Auth-Wait: 1
        wait 2
        C: {command} CRAM-MD5
        C: {b64("nospace")}
        """,
    )
    act = act_out(dialogue, len(dialogue.steps))
    assert act is not None
    asked = b"".join(bytes(wire.outgoing) for wire in act.network.wires["Q"])
    first, second = asked.split(b"\r\n\r\n")[:2]
    assert b"Auth-Pass: SECRET\r\n" in first
    assert b"Auth-Method: external\r\nAuth-User: u\r\nAuth-Pass: \r\n" in second
    assert asked.count(b"\r\n\r\n") == 2
    assert act.wire.outgoing.endswith(TALK[protocol][1])

"""CR, LF and NUL in credentials, on their way to auth servers and backends.

`AUTH PLAIN` with the user name "a CR LF DELE 1" is two commands to a POP3 backend
behind nginx. Here nobody is asked about such a login, and no backend hears of it.
"""

import pytest

from tests.security.acts import Act, Dialogue, act_out, b64, plain

EVIL = ["\r", "\n", "\r\n", "\0", "\r\nDELE 1", "\nb LOGOUT", "\0admin"]
MECHANISMS = "plain cram-md5 external xoauth2 oauthbearer"
HASH = "0123456789abcdef0123456789abcdef"
AUTH = {"imap": "a AUTHENTICATE", "pop3": "AUTH", "smtp": "AUTH"}
BAD = {
    "imap": b"a BAD invalid command\r\n",
    "pop3": b"-ERR invalid command\r\n",
    "smtp": b"500 5.5.1 Invalid command\r\n",
}
PROTOCOLS = pytest.mark.parametrize("protocol", AUTH)
EVERY_EVIL = pytest.mark.parametrize("evil", EVIL, ids=repr)


def act(protocol: str, script: str, directives: str = "") -> Act:
    """A session as it is left, with all that was said in it."""
    directives = f"protocol {protocol}; {protocol}_auth {MECHANISMS} {directives};"
    dialogue = Dialogue("", directives, script)
    act = act_out(dialogue, len(dialogue.steps))
    assert act is not None
    return act


def refused(protocol: str, *lines: str) -> None:
    """The last line is a bad command, and nobody is asked."""
    stage = act(protocol, "".join(f"C: {line}\n" for line in lines))
    assert stage.wire.outgoing.endswith(BAD[protocol])
    assert stage.wire.outgoing.count(BAD[protocol]) == 1
    assert not stage.network.wires["Q"]


@EVERY_EVIL
@PROTOCOLS
def test_in_plain(protocol: str, evil: str) -> None:
    auth = AUTH[protocol]
    passwords = [f"p{evil}", f"{evil}p"]
    # A NUL behind the user name ends it, and what follows is the password.
    users = [] if "\0" in evil else [f"u{evil}", f"{evil}u"]
    for user in users:
        refused(protocol, f"{auth} PLAIN {plain(user, 'p')}")
    for password in passwords:
        refused(protocol, f"{auth} PLAIN {plain('u', password)}")
        refused(protocol, f"{auth} PLAIN", plain("u", password))


@EVERY_EVIL
@PROTOCOLS
def test_in_login(protocol: str, evil: str) -> None:
    auth = AUTH[protocol]
    refused(protocol, f"{auth} LOGIN {b64(f'u{evil}')}", b64("p"))
    refused(protocol, f"{auth} LOGIN", b64(f"u{evil}"), b64("p"))
    refused(protocol, f"{auth} LOGIN", b64("u"), b64(f"p{evil}"))


@EVERY_EVIL
@PROTOCOLS
def test_in_cram_md5(protocol: str, evil: str) -> None:
    auth = AUTH[protocol]
    hidden = (evil + HASH)[:32]
    refused(protocol, f"{auth} CRAM-MD5", b64(f"u {hidden}"))
    if " " not in evil:
        refused(protocol, f"{auth} CRAM-MD5", b64(f"u{evil} {HASH}"))


@EVERY_EVIL
@PROTOCOLS
def test_in_external(protocol: str, evil: str) -> None:
    auth = AUTH[protocol]
    refused(protocol, f"{auth} EXTERNAL {b64(f'u{evil}')}")
    refused(protocol, f"{auth} EXTERNAL", b64(f"u{evil}"))


@EVERY_EVIL
@PROTOCOLS
def test_in_xoauth2(protocol: str, evil: str) -> None:
    auth = AUTH[protocol]
    for user, token in ((f"u{evil}", "t"), ("u", f"t{evil}")):
        response = b64(f"user={user}\1auth=Bearer {token}\1\1")
        refused(protocol, f"{auth} XOAUTH2 {response}")
        refused(protocol, f"{auth} XOAUTH2", response)


@EVERY_EVIL
@PROTOCOLS
def test_in_oauthbearer(protocol: str, evil: str) -> None:
    auth = AUTH[protocol]
    for user, token in ((f"u{evil}", "t"), ("u", f"t{evil}")):
        response = b64(f"n,a={user},\1auth=Bearer {token}\1\1")
        refused(protocol, f"{auth} OAUTHBEARER {response}")


@pytest.mark.parametrize("evil", ["␍", "␊", "␍␊", "␀", "␍␊x LOGOUT"])
def test_in_imap_literals(evil: str) -> None:
    size = len(evil)
    refused("imap", f"a LOGIN {{{size + 1}}}", f"u{evil} p")
    refused("imap", f"a LOGIN u {{{size + 1}}}", f"p{evil}⏎")
    refused("imap", f"a LOGIN {{{size + 1}+}}⏎u{evil} {{1+}}⏎p")
    refused("imap", f"a LOGIN u {{{size + 1}+}}⏎p{evil}⏎")


def test_in_imap_atoms_and_quoted_strings() -> None:
    refused("imap", "a LOGIN u␀ p")
    refused("imap", "a LOGIN u p␀")
    refused("imap", 'a LOGIN "u␀" "p"')
    refused("imap", 'a LOGIN u "\\␀"')
    refused("imap", 'a LOGIN u "p␍"')
    refused("imap", 'a LOGIN u "p\\␍"')


def test_in_imap_literals_of_a_mechanism() -> None:
    """The initial response may be a literal; it is base64 nevertheless."""
    refused("imap", "a AUTHENTICATE PLAIN {5+}⏎a␍␊b␀")
    refused("imap", "a AUTHENTICATE {7+}⏎PLAIN␍␊⏎")


def test_in_pop3_commands() -> None:
    refused("pop3", "USER u␀")
    refused("pop3", "USER u", "PASS p␀")
    refused("pop3", "USER u␍DELE 1")
    refused("pop3", "USER u", "PASS p␍DELE 1")


@pytest.mark.parametrize("user", ["u␀", "u␍"])
def test_in_apop(user: str) -> None:
    dialogue = Dialogue("", "protocol pop3; pop3_auth apop;", f"C: APOP {user} {HASH}")
    stage = act_out(dialogue, 1)
    assert stage is not None
    assert stage.wire.outgoing.endswith(BAD["pop3"])
    assert not stage.network.wires["Q"]


@pytest.mark.parametrize(
    "line",
    [
        *("HELO a␀b", "EHLO ␀", "EHLO a␍b"),
        *("MAIL FROM:<a␀@b>", "MAIL FROM:<a␍@b>"),
    ],
)
def test_in_smtp_commands(line: str) -> None:
    stage = act("smtp", f"C: {line}", "none")
    assert stage.wire.outgoing.splitlines()[-1].startswith((b"500", b"501"))


@pytest.mark.parametrize("line", ["RCPT TO:<c␀@d>", "RCPT TO:<c␍@d>"])
def test_in_a_recipient(line: str) -> None:
    stage = act("smtp", f"C: MAIL FROM:<a@b>\nC: {line}", "none")
    assert stage.wire.outgoing.splitlines()[-1].startswith((b"500", b"501"))
    assert not stage.network.wires["Q"]


LOGIN = {
    "imap": "C: a LOGIN u p",
    "pop3": "C: USER u\nC: PASS p",
    "smtp": f"C: AUTH PLAIN {plain('u', 'p')}",
}
HELLO = {"imap": "* OK [CAPABILITY LITERAL+] hi", "pop3": "+OK hi", "smtp": "220 hi"}
INTERNAL = {
    "imap": b"* BAD internal server error\r\n",
    "pop3": b"-ERR internal server error\r\n",
    "smtp": b"451 4.3.2 Internal server error\r\n",
}


@pytest.mark.parametrize("header", ["Auth-User", "Auth-Pass"])
@pytest.mark.parametrize("value", ["x␀y", "␀", "x␍y", "x␍␍␊y", "x␊ y"])
@PROTOCOLS
def test_from_the_auth_server(protocol: str, header: str, value: str) -> None:
    stage = act(protocol, f"{LOGIN[protocol]}\nA: OK\nA| {header}: {value}")
    assert stage.wire.outgoing.endswith(INTERNAL[protocol])
    assert not stage.network.wires["P"]


@pytest.mark.parametrize("header", ["Auth-User", "Auth-Pass"])
@pytest.mark.parametrize("value", ["x␊yy", "x␍␊yy"])
@PROTOCOLS
def test_a_line_break_ends_the_header(protocol: str, header: str, value: str) -> None:
    """What follows is a line without a colon, and passed over."""
    script = f"{LOGIN[protocol]}\nA: OK\nA| {header}: {value}"
    stage = act(protocol, f"{script}\nB: {HELLO[protocol]}")
    (backend,) = stage.network.wires["P"]
    assert backend.outgoing
    assert b"yy" not in backend.outgoing


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ("imap", "B: * OK hi\nB: + go\nB: + go\nB: a OK in"),
        ("imap", "B: * OK [CAPABILITY LITERAL+] hi\nB: a OK in"),
        ("pop3", "B: +OK\nB: +OK\nB: +OK"),
        ("smtp", "B: 220 hi\nB: 250 hi\nB: 220 hi\nB: 250 hi\nB: 235 in"),
    ],
)
def test_whatever_else_is_in_a_name_stays_in_its_place(
    protocol: str, said: str
) -> None:
    """Every other octet may be in a name or a password, and none has a meaning."""
    octets = bytes(set(range(1, 256)) - {10, 13})
    login = {
        "imap": "a AUTHENTICATE PLAIN",
        "pop3": "AUTH PLAIN",
        "smtp": "AUTH PLAIN",
    }[protocol]
    response = b64(b"\0" + octets + b"\0" + octets)
    directives = f"protocol {protocol}; {protocol}_auth plain;"
    if protocol == "smtp":
        directives += " proxy_smtp_auth on; xclient off;"
        said = said.replace("B: 220 hi\nB: 250 hi\nB: 235", "B: 235")
    dialogue = Dialogue("", directives, f"C: {login} {response}\nA: OK\n{said}")
    stage = act_out(dialogue, len(dialogue.steps))
    assert stage is not None
    (backend,) = stage.network.wires["P"]
    got = bytes(backend.outgoing)
    size = len(octets)
    if protocol == "pop3":
        assert got == b"USER %s\r\nPASS %s\r\n" % (octets, octets)
    elif protocol == "smtp":
        assert got == b"HELO mx.test\r\nAUTH PLAIN %s\r\n" % response.encode()
    elif "LITERAL" in said:
        wanted = b"a LOGIN {%d+}\r\n%s {%d+}\r\n%s\r\n" % (size, octets, size, octets)
        assert got == wanted
    else:
        wanted = b"a LOGIN {%d}\r\n%s {%d}\r\n%s\r\n" % (size, octets, size, octets)
        assert got == wanted
    request = bytes(stage.network.wires["Q"][0].outgoing)
    head, _, rest = request.partition(b"\r\n\r\n")
    assert not rest
    names = [line.split(b":")[0] for line in head.split(b"\r\n")[1:]]
    assert names[:5] == [
        b"Host",
        b"Auth-Method",
        b"Auth-User",
        b"Auth-Pass",
        b"Auth-Protocol",
    ]

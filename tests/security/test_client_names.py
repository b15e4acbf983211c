"""What clients say of themselves, on its way into auth requests, XCLIENT and PROXY.

Names come from the DNS (PTR), from HELO, from TLS (SNI, certificates) and from PROXY
headers. None of them brings a header, a command or a parameter of its own.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import dns.message
import dns.name
import dns.rdatatype
import dns.rrset
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from trio.testing import MockClock

from mailproxy.conf.addresses import Address
from mailproxy.mail.smtp_login import format_xclient
from mailproxy.net.dns import Resolver
from mailproxy.net.dns_messages import Answer, Question, read_answer, write_query
from mailproxy.net.proxy_protocol import (
    Endpoint,
    ProxyProtocolError,
    Tls,
    format_v2,
    parse,
)
from tests.play import load_server
from tests.play import parse as parse_script
from tests.security.acts import Act, Dialogue, act_out
from tests.security.world import TLS, world

EVIL_LABELS = [
    *(b"a\r\nAuth-Status", b"a\r\nRSET", b"a\nb", b"a\rb", b"a\0b", b"a b", b"a\tb"),
    *(
        b"a_b",
        b"a=b",
        b"a;b",
        b"a,b",
        b"[a]",
        b"<a>",
        b"a%0d%0ab",
        b"\xc3\xa4",
        b"a\x7f",
    ),
]


def header_lines(request: bytes) -> list[bytes]:
    """The lines of one request, which has no line more than it should."""
    head, end, rest = request.partition(b"\r\n\r\n")
    assert (end, rest) == (b"\r\n\r\n", b"")
    assert b"\n" not in head.replace(b"\r\n", b"")
    assert b"\r" not in head.replace(b"\r\n", b"")
    assert b"\0" not in head
    return head.split(b"\r\n")


# The DNS


def resolver_of(label: bytes) -> Resolver:
    """A resolver for which every client is called `label`.example.com."""

    async def ask(server: Address, asked: Question) -> Answer:
        question = dns.message.from_wire(write_query(b"id", asked))
        response = dns.message.make_response(question)
        name = question.question[0].name
        if question.question[0].rdtype == dns.rdatatype.PTR:
            target = dns.name.Name((label, b"example", b"com", b""))
            response.answer.append(
                dns.rrset.from_text(name, 60, "IN", "PTR", target.to_text())
            )
        elif question.question[0].rdtype == dns.rdatatype.A:
            response.answer.append(
                dns.rrset.from_text(name, 60, "IN", "A", "127.0.0.1")
            )
        answer = read_answer(asked, response.to_wire())
        assert answer is not None
        return answer

    settings = load_server("protocol smtp; resolver 127.0.0.1;").core.resolver
    assert settings is not None
    return Resolver(settings, 30.0, ask)


@pytest.mark.parametrize("label", [*EVIL_LABELS, b"mail-1"], ids=repr)
def test_ptr(label: bytes) -> None:
    act = Act(load_server("protocol smtp; resolver 127.0.0.1; smtp_auth none;"))
    script = "C: MAIL FROM:<a@b>\nC: RCPT TO:<c@d>\nA: OK\nB: 220 hi\nB: 250 hi"

    async def run() -> None:
        act.network.known = resolver_of(label)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            await act.follow(parse_script(script))

    trio.run(run, clock=MockClock(autojump_threshold=0))
    name = b"mail-1.example.com" if label == b"mail-1" else b"[TEMPUNAVAIL]"
    lines = header_lines(bytes(act.network.wires["Q"][0].outgoing))
    assert b"Client-Host: " + name in lines
    said = bytes(act.network.wires["P"][0].outgoing)
    assert said == b"EHLO mx.test\r\nXCLIENT ADDR=127.0.0.1 NAME=%s\r\n" % name
    log = "".join(text for _, text in act.log.events)
    assert log.isprintable()


# HELO and user names


@pytest.mark.parametrize(
    "helo",
    [
        "a␉b",
        "a=b",
        "NAME=[UNAVAILABLE]",
        "␉",
        "⟨ff⟩",
        "a;b",
        "a\\r\\nb",
        "a%0D%0Ab",
        "+0D",
    ],
)
def test_helo(helo: str) -> None:
    dialogue = Dialogue(
        "",
        "protocol smtp; smtp_auth none;",
        f"""
        C: EHLO {helo}
        C: MAIL FROM:<a@b>
        C: RCPT TO:<c@d>
        A: OK
        B: 220 hi
        B: 250 hi
        B: 220 hi
        B: 250 hi
        """,
    )
    act = act_out(dialogue, len(dialogue.steps))
    assert act is not None
    lines = header_lines(bytes(act.network.wires["Q"][0].outgoing))
    assert [line for line in lines if line.startswith(b"Auth-SMTP-Helo: ")]
    commands = bytes(act.network.wires["P"][0].outgoing).split(b"\r\n")
    verbs = [command.split(b" ")[0] for command in commands]
    assert verbs == [b"EHLO", b"XCLIENT", b"EHLO", b"MAIL", b""]
    assert commands[1] == b"XCLIENT ADDR=127.0.0.1 NAME=[UNAVAILABLE]"


@pytest.mark.parametrize("helo", ["a b", "a NAME=x", "", " "])
def test_helo_has_one_word(helo: str) -> None:
    dialogue = Dialogue("", "protocol smtp;", f"C: EHLO {helo}")
    act = act_out(dialogue, 1)
    assert act is not None
    assert act.wire.outgoing.endswith(b"501 5.5.4 Invalid argument\r\n")


def test_parameters_in_a_user_name() -> None:
    evil = b"u ADDR=192.0.2.66 NAME=evil\t+0A=\xff\x7f"
    line = format_xclient("192.0.2.1", evil, b"[UNAVAILABLE]")
    assert line == (
        b"XCLIENT ADDR=192.0.2.1"
        b" LOGIN=u+20ADDR+3D192.0.2.66+20NAME+3Devil+09+2B0A+3D+FF+7F"
        b" NAME=[UNAVAILABLE]\r\n"
    )


# PROXY headers from clients


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.1\r\nX: y 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 NAME=x\r\n",
        b"PROXY TCP4 192.0.2.1\t 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1\0 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1\r 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 abc 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 ::1::1 192.0.2.2 1 2\r\n",
        b"PROXY TCP6 2001:db8::7 127.0.0 1 2\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 0300.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 3221225985 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 \xb9\xb92.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
        b"PROXY TCP6 fe80::1%\nx ::1 1 2\r\n",
        b"PROXY TCP6 [::1] ::1 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1_0 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 \xb2 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
        b"PROXY\tTCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    ],
    ids=repr,
)
def test_proxy_header(header: bytes) -> None:
    with pytest.raises(ProxyProtocolError):
        parse(header + b"a LOGIN u p\r\n")


# TLS


@pytest.mark.parametrize("name", [b"a\r\nb", b"x" * 255, b"\xff"])
def test_sni_and_common_name_stay_in_their_places(name: bytes) -> None:
    ends = Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 2)
    tls = Tls("TLSv1.3", "X", common_name=name, server_name=name)
    header = format_v2(*ends, tls)
    found = parse(header + b"\r\nRSET")
    assert found is not None
    assert found.size == len(header)
    assert b"\x02" + len(name).to_bytes(2, "big") + name in header


@pytest.mark.parametrize("size", [1025, 65535, 65536, 100_000])
def test_common_name_that_no_header_holds(size: int) -> None:
    ends = Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 2)
    header = format_v2(*ends, Tls("TLSv1.3", "X", common_name=b"x" * size))
    found = parse(header)
    assert found is not None
    assert found.size == len(header)
    assert b"xx" not in header


def certificate_of(name: str, path: Path) -> Path:
    """A file with a key and a certificate that the client has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, name),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    now = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1 << 158)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=36500))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(pem)
    )
    return path


@pytest.mark.parametrize(
    "name", ["a\r\nAuth-Status: OK", "a\nb", "a\0b", "a,CN=admin", "ä\x7f\x01", "\\\r"]
)
async def test_certificate(name: str, tmp_path: Path) -> None:
    """Anyone can bring one where `optional_no_ca` allows it."""
    directives = (
        f"ssl_verify_client optional_no_ca; auth_http_pass_client_cert on; {TLS}"
    )
    async with world(f"listen 127.0.0.1:1143 ssl; protocol imap; {directives}") as here:
        client = await here.connect()
        await client.start_tls("evil.example.com", certificate_of(name, tmp_path / "x"))
        await client.send(b"a LOGIN u p\r\n")
        auth = await here.auth()
        lines = header_lines(await auth.read_until(b"\r\n\r\n"))
        names = [line.split(b":")[0] for line in lines[1:]]
        assert names == [
            *(b"Host", b"Auth-Method", b"Auth-User", b"Auth-Pass", b"Auth-Protocol"),
            *(b"Auth-Login-Attempt", b"Client-IP", b"Auth-SSL", b"Auth-SSL-Protocol"),
            *(b"Auth-SSL-Cipher", b"Auth-SSL-Verify", b"Auth-SSL-Subject"),
            *(b"Auth-SSL-Issuer", b"Auth-SSL-Serial", b"Auth-SSL-Fingerprint"),
            *(b"Auth-SSL-Cert", b"Connection"),
        ]
        assert b"evil.example.com" not in b"".join(lines)

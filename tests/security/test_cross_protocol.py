"""HTTP, and other languages, at the ports of mail: a browser is led to speak to us.

The page chooses the body of a request, and with it lines that are commands. Before
them come the lines of the browser; each is an error, and a few are too many.
"""

import pytest
import trio

from tests.security.acts import Act, Dialogue, act_out
from tests.security.world import TLS, world

PROTOCOLS = pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
COMMANDS = {
    "imap": "a LOGIN victim SECRET\r\nb LIST",
    "pop3": "USER victim\r\nPASS SECRET\r\nLIST",
    "smtp": "HELO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA",
}
BROWSER = (
    "{method} {path} HTTP/1.1\r\nHost: mx.test:{port}\r\nUser-Agent: Mozilla/5.0\r\n"
    "Accept: */*\r\nAccept-Language: en\r\nContent-Type: text/plain\r\n"
    "Content-Length: {size}\r\nConnection: keep-alive\r\n\r\n{body}\r\n"
)
STRANGERS = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n" + b"\0\0\5\xdc\x06\x14" + bytes(1024),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
    "SIP": b"OPTIONS sip:a@b SIP/2.0\r\nVia: x\r\nTo: y\r\nFrom: z\r\nCall-ID: 1\r\n\r\n",
    "Redis": b"*1\r\n$4\r\nINFO\r\n*1\r\n$4\r\nQUIT\r\n",
    "PROXY": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "noise": bytes(range(256)) * 8,
}


def meet(protocol: str, octets: bytes) -> Act:
    """A session whose client says this, and then waits."""
    dialogue = Dialogue(
        "",
        f"protocol {protocol}; smtp_auth none;",
        "C: " + "".join(f"⟨{octet:02x}⟩" for octet in octets) + "…",
    )
    act = act_out(dialogue, 1)
    assert act is not None
    return act


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/a%20LOGIN%20u%20p", "/%0d%0aNOOP"])
@PROTOCOLS
def test_request_of_a_browser(protocol: str, method: str, path: str) -> None:
    body = COMMANDS[protocol]
    octets = BROWSER.format(
        method=method, path=path, port=143, size=len(body), body=body
    )
    act = meet(protocol, octets.encode())
    assert not act.network.wires["Q"]
    assert "client sent too many invalid commands" in act.log.events[-1][1]
    said = bytes(act.wire.outgoing)
    # The greeting, and five refusals: nothing of the request comes back as it is.
    assert said.count(b"\r\n") == 6
    assert b"<" not in said
    assert b"HTTP" not in said


@pytest.mark.parametrize("stranger", STRANGERS)
@PROTOCOLS
def test_stranger(protocol: str, stranger: str) -> None:
    act = meet(protocol, STRANGERS[stranger])
    assert not act.network.wires["Q"]
    assert b"OK completed" not in act.wire.outgoing


@PROTOCOLS
async def test_request_at_a_tls_port_is_answered_with_an_alert_at_most(
    protocol: str,
) -> None:
    async with world(f"listen 127.0.0.1:1143 ssl; protocol {protocol}; {TLS}") as here:
        client = await here.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: mx.test\r\n\r\n")
        answer = await client.rest()
        assert answer == b"" or answer[:2] == b"\x15\x03"
        assert "http request" in here.texts[-1]


@PROTOCOLS
async def test_request_in_tls(protocol: str) -> None:
    """The certificate is good for the web server of the same name, too (ALPACA)."""
    async with world(f"listen 127.0.0.1:1143 ssl; protocol {protocol}; {TLS}") as here:
        client = await here.connect()
        await client.start_tls()
        body = COMMANDS[protocol]
        request = BROWSER.format(
            method="POST", path="/", port=993, size=len(body), body=body
        )
        await client.send(request.encode())
        assert (await client.rest()).count(b"\r\n") == 6
        await here.over()


@PROTOCOLS
async def test_browser_with_alpn_gets_no_handshake(protocol: str) -> None:
    """RFC 7301, section 3.2: who wants to speak HTTP is told that nobody does."""
    async with world(f"listen 127.0.0.1:1143 ssl; protocol {protocol}; {TLS}") as here:
        client = await here.connect()
        with pytest.raises(trio.BrokenResourceError):
            await client.start_tls(alpn="http/1.1")
        await here.over()
        assert "no application protocol" in here.texts[-1]


async def test_request_at_a_port_with_proxy_protocol() -> None:
    async with world("listen 127.0.0.1:1143 proxy_protocol; protocol imap;") as here:
        client = await here.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: mx.test\r\n\r\n")
        assert await client.rest() == b""
        assert here.texts[-1].startswith('broken header: "GET / HTTP/1.1"')

"""The PROXY headers of a session: the one that its client sends, and that for its backend.

The directives are in `mail/realip.py`, `mail/proxy.py` and `mail/listen.py`, the formats
in `net/proxy_protocol.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailproxy.errors import ClientError
from mailproxy.net import faults, openssl, proxy_protocol
from mailproxy.net.proxy_protocol import Endpoint, ProxyProtocolError, Tls

if TYPE_CHECKING:
    from mailproxy.mail.client import Client


async def read_header(client: Client) -> None:
    """Read the PROXY header of a new connection, and no octet of the TLS behind it.

    Raises:
      ClientError: the client left, or sent something else.
    """
    seen = b""
    while True:
        try:
            data = await client.wire.peek(proxy_protocol.MAX_HEADER, len(seen))
        except OSError as error:
            raise faults.broken(ClientError, "recv", error) from None
        try:
            header = proxy_protocol.parse(data)
        except ProxyProtocolError as error:
            raise ClientError(error.message, *error.sent, level="error") from None
        if header is not None:
            break
        if len(data) <= len(seen):
            raise ClientError("client closed connection")
        seen = data
    client.wire.drop(header.size)
    if client.trace is not None:
        client.trace.show("from client", data[: header.size].removesuffix(b"\r\n"))
    info = client.info
    info.header = header
    if header.source is not None and client.server.realip.believes(info.client):
        info.client = header.source.text
        info.client_port = header.source.port


def format_header(client: Client) -> bytes:
    """Format the PROXY header that tells a backend the address of its client."""
    source = destination = None
    if client.info.client_port is not None:
        local = client.wire.socket.getsockname()
        source = Endpoint(client.info.client, client.info.client_port)
        destination = Endpoint(*local[:2]) if isinstance(local, tuple) else None
    if client.server.proxy.proxy_protocol == "v2":
        return proxy_protocol.format_v2(source, destination, _tls(client))
    return proxy_protocol.format_v1(source, destination)


def _tls(client: Client) -> Tls | None:
    """Describe the client's TLS for the backend; None without TLS."""
    tls = client.wire.tls
    if tls is None:
        return None
    cipher = tls.cipher()
    certificate = openssl.peer_certificate(tls)
    own = openssl.server_certificate(tls)
    return Tls(
        version=tls.version() or "",
        cipher=cipher[0] if cipher else "",
        certificate=certificate is not None,
        resumed=bool(tls.session_reused),
        verify=1 if certificate is None else openssl.verify_result(tls)[0],
        common_name=certificate.common_name or None if certificate else None,
        signature=own.signature.decode() if own else None,
        key=own.key.decode() if own else None,
        server_name=openssl.server_name(tls),
        alpn=(tls.selected_alpn_protocol() or "").encode() or None,
    )

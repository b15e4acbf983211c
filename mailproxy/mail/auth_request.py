"""The request to the auth sources, made once for each login."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailproxy.auth.request import AuthRequest, ClientCertificate, ClientTls
from mailproxy.net import openssl

if TYPE_CHECKING:
    import ssl

    from mailproxy.mail.login import Login
    from mailproxy.mail.protocol import Dialogue
    from mailproxy.mail.server import Server


def make_auth_request(dialogue: Dialogue, login: Login) -> AuthRequest:
    """Make the request about a login."""
    client = dialogue.client
    server, protocol, tls = client.server, client.server.protocol, client.wire.tls
    return AuthRequest(
        protocol=protocol.name,
        method=login.method,
        user=login.user,
        secret=login.secret,
        salt=login.salt,
        envelope=login.envelope,
        needs_password=protocol.needs_password,
        needs_backend_tls=server.proxy_ssl.proxy_ssl != "off",
        attempt=client.info.attempts,
        destinations=server.destinations,
        client=client.info.client,
        client_port=client.info.client_port,
        client_host=dialogue.host,
        helo=client.info.helo,
        proxy_header=client.info.header,
        listen=client.listen.address,
        server_name=server.core.server_name,
        sni=client.wire.server_name,
        tls=None if tls is None else _describe(tls, server),
    )


def _describe(tls: ssl.SSLSocket, server: Server) -> ClientTls:
    """Describe the client's TLS for auth sources."""
    cipher = tls.cipher()
    verify = ""
    certificate = None
    if server.ssl.ssl_verify_client != "off":
        verify, certificate = _find_certificate(tls)
    return ClientTls(
        version=tls.version() or "",
        cipher=cipher[0] if cipher else "",
        verify=verify,
        certificate=certificate,
    )


def _find_certificate(tls: ssl.SSLSocket) -> tuple[str, ClientCertificate | None]:
    """The result of verifying the client's certificate, and the certificate, if any."""
    found = openssl.peer_certificate(tls)
    if found is None:
        return "NONE", None
    code, reason = openssl.verify_result(tls)
    return f"FAILED:{reason}" if code else "SUCCESS", ClientCertificate(
        subject=found.subject,
        issuer=found.issuer,
        serial=found.serial,
        fingerprint=found.fingerprint,
        pem=found.pem,
    )

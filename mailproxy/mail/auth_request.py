"""Makes the request to the auth sources, once for each login."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailproxy.auth.request import AuthRequest, ClientCertificate
from mailproxy.net import openssl

if TYPE_CHECKING:
    import ssl

    from mailproxy.mail.client import Client
    from mailproxy.mail.login import Login


def make_auth_request(client: Client, login: Login) -> AuthRequest:
    """Put together what auth sources are told about a login."""
    server, protocol = client.server, client.server.protocol
    version = cipher = verify = ""
    certificate = None
    tls = client.wire.tls
    if tls is not None:
        version = tls.version() or ""
        suite = tls.cipher()
        cipher = suite[0] if suite else ""
        if server.ssl.ssl_verify_client != "off":
            verify, certificate = _find_certificate(tls)
    return AuthRequest(
        protocol=protocol.name,
        method=login.method,
        user=login.user,
        secret=login.secret,
        salt=login.salt,
        envelope=login.envelope,
        needs_password=protocol.needs_password,
        attempt=client.info.attempts,
        client=client.info.client,
        client_port=client.info.client_port,
        client_host=client.host if protocol.names_clients else None,
        helo=client.info.helo,
        proxy_header=client.info.header,
        listen=client.listen.address,
        server_name=server.core.server_name,
        tls=version,
        cipher=cipher,
        verify=verify,
        certificate=certificate,
    )


def _find_certificate(tls: ssl.SSLSocket) -> tuple[str, ClientCertificate | None]:
    """The verdict on the client's certificate, and the certificate if there is one."""
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

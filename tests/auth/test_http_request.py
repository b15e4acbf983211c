"""The request to an auth server is that of nginx, whatever is known of the client."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from mailproxy.auth.http import AUTO, AuthHttpSettings, AuthUrl
from mailproxy.auth.http_request import escape, format_request
from mailproxy.auth.request import AuthRequest, ClientCertificate, ClientTls, Envelope
from mailproxy.net.proxy_protocol import Endpoint, Header

octets = st.binary(max_size=20)
texts = st.text(st.characters(codec="ascii"), max_size=20)
endpoints = st.builds(Endpoint, texts, st.integers(0, 65535))
certificates = st.builds(
    ClientCertificate,
    subject=octets,
    issuer=octets,
    serial=octets,
    fingerprint=octets,
    pem=octets,
)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    source = draw(st.none() | endpoints)
    return Header(0, source, draw(endpoints) if source else None)


requests = st.builds(
    AuthRequest,
    protocol=texts,
    method=texts,
    user=octets,
    secret=st.none() | octets,
    salt=octets,
    envelope=st.none() | st.builds(Envelope, mail=octets, rcpt=octets),
    attempt=st.integers(0, 10**9),
    client=texts,
    client_host=st.none() | octets,
    helo=octets,
    proxy_header=st.none() | headers(),
    tls=st.none()
    | st.builds(
        ClientTls,
        version=texts,
        cipher=texts,
        verify=texts,
        certificate=st.none() | certificates,
    ),
)


@st.composite
def all_settings(draw: st.DrawFn) -> AuthHttpSettings:
    url = AuthUrl(
        text="",
        host=draw(octets),
        uri=draw(octets),
        family=socket.AF_INET,
        sockaddr=("127.0.0.1", 80),
        address="127.0.0.1:80",
    )
    return AuthHttpSettings(
        auth_http=url,
        auth_http_header=tuple(draw(st.lists(st.tuples(octets, octets), max_size=3))),
        auth_http_pass_client_cert=draw(st.booleans()),
        auth_http_keepalive=draw(st.sampled_from((None, AUTO))),
    )


def lines(settings: AuthHttpSettings, request: AuthRequest) -> list[bytes]:
    """The request line by line, as ngx_mail_auth_http_create_request writes it."""
    url, tls = settings.auth_http, request.tls
    assert url is not None
    found = [b"GET " + url.uri + b" HTTP/1.0"]

    def say(name: str, value: bytes | str | int) -> None:
        text = value if isinstance(value, bytes) else str(value).encode()
        found.append(name.encode() + b": " + text)

    say("Host", url.host)
    say("Auth-Method", request.method)
    say("Auth-User", escape(request.user))
    say("Auth-Pass", escape(request.secret or b""))
    if request.salt:
        say("Auth-Salt", request.salt)
    say("Auth-Protocol", request.protocol)
    say("Auth-Login-Attempt", request.attempt)
    say("Client-IP", request.client)
    if request.client_host is not None:
        say("Client-Host", request.client_host)
    header = request.proxy_header
    if header is not None and header.source and header.destination:
        say("Proxy-Protocol-Addr", header.source.address)
        say("Proxy-Protocol-Port", header.source.port)
        say("Proxy-Protocol-Server-Addr", header.destination.address)
        say("Proxy-Protocol-Server-Port", header.destination.port)
    if request.envelope is not None:
        say("Auth-SMTP-Helo", request.helo)
        say("Auth-SMTP-From", request.envelope.mail)
        say("Auth-SMTP-To", request.envelope.rcpt)
    if tls is not None:
        say("Auth-SSL", "on")
        say("Auth-SSL-Protocol", tls.version)
        say("Auth-SSL-Cipher", tls.cipher)
    if tls is not None and tls.verify:
        say("Auth-SSL-Verify", tls.verify)
    if tls is not None and tls.certificate is not None:
        say("Auth-SSL-Subject", tls.certificate.subject)
        say("Auth-SSL-Issuer", tls.certificate.issuer)
        say("Auth-SSL-Serial", tls.certificate.serial)
        say("Auth-SSL-Fingerprint", tls.certificate.fingerprint)
        if settings.auth_http_pass_client_cert:
            say("Auth-SSL-Cert", escape(tls.certificate.pem))
    for name, value in settings.auth_http_header:
        found.append(name + b": " + value)
    if settings.auth_http_keepalive is not None:
        say("Connection", "keep-alive")
    return found


@given(all_settings(), requests)
def test_each_line_in_its_place(
    settings: AuthHttpSettings, request: AuthRequest
) -> None:
    wanted = b"".join(line + b"\r\n" for line in (*lines(settings, request), b""))
    assert format_request(settings, request) == wanted
    assert format_request(settings, request) == wanted  # what is kept has not changed

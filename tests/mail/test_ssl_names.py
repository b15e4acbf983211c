"""Certificates by name: what is written in a configuration shows in handshakes."""

from __future__ import annotations

import os
import re
import ssl
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from trustme import KeyType

from mailproxy.mail.ssl import SslSettings
from mailproxy.net import openssl
from mailproxy.net.openssl import by_name
from mailproxy.net.openssl.choice import DEFAULT as DEFAULT_PLACE
from mailproxy.net.openssl.headers.prototype import has
from mailproxy.net.openssl.variable_files import VariableFiles
from mailproxy.process.configuration import ConfigErrors, Loader
from tests.named import Issuer, Site, ask, names_shown

TLS1_2, TLS1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
DIRECTORY = "ssl_certificate_directory certs;"
DEFAULT = "ssl_certificate default.crt; ssl_certificate_key default.key;"
VARIABLES = (
    "ssl_certificate certs/$ssl_server_name.crt;"
    "ssl_certificate_key certs/${ssl_server_name}.key;"
)
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(params=[TLS1_2, TLS1_3], ids=["TLSv1.2", "TLSv1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    found: ssl.TLSVersion = request.param
    return found


def context(settings: SslSettings) -> ssl.SSLContext:
    assert settings.context is not None
    return settings.context


Shown = Callable[[str | None], str]


def shown_by(settings: SslSettings, client: ssl.SSLContext) -> Shown:
    """Returns the first name of the certificate that a client gets, or "alert"."""

    def shown(name: str | None) -> str:
        try:
            return min(names_shown(ask(context(settings), client, name)))
        except ssl.SSLError as error:
            assert error.reason == "CALLBACK_FAILED"  # noqa: PT017 # or it is "alert"
            return "alert"

    return shown


# -- which certificate -------------------------------------------------------------


def test_without_new_directives_nothing_is_installed(site: Site) -> None:
    settings = site.serve(DEFAULT)
    assert settings.own is not None
    assert settings.own.by_name is None
    assert by_name.server_of(openssl.ctx_of(context(settings))) is None
    shown = shown_by(settings, site.issuer.client())
    assert {shown(name) for name in ("a.example.org", "default.example.org", None)} == {
        "default.example.org"
    }
    assert site.messages == []


@pytest.mark.proves("ssl_certificate_directory")
def test_the_name_chooses_the_certificate(site: Site, version: ssl.TLSVersion) -> None:
    site.issuer.put("a.example.org")
    site.issuer.put("b.example.org", "*.wild.example.org")
    site.issuer.put("x.wild.example.org")
    site.issuer.put("xn--bcher-kva.example")
    settings = site.serve(DEFAULT + DIRECTORY)
    shown = shown_by(settings, site.issuer.client(version))
    assert {
        name: shown(name)
        for name in (
            "a.example.org",
            "A.Example.ORG",
            "b.example.org",
            "y.wild.example.org",
            "x.wild.example.org",
            "x.y.wild.example.org",
            "wild.example.org",
            "xn--bcher-kva.example",
            "unknown.example.org",
            "127.0.0.1",
            None,
        )
    } == {
        "a.example.org": "a.example.org",
        "A.Example.ORG": "a.example.org",
        "b.example.org": "*.wild.example.org",
        "y.wild.example.org": "*.wild.example.org",
        "x.wild.example.org": "x.wild.example.org",
        "x.y.wild.example.org": "default.example.org",
        "wild.example.org": "default.example.org",
        "xn--bcher-kva.example": "xn--bcher-kva.example",
        "unknown.example.org": "default.example.org",
        "127.0.0.1": "default.example.org",
        None: "default.example.org",
    }


def hello(name: bytes) -> bytes:
    """A client's hello with this name, as another library might send it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    placeholder = "z" * max(len(name), 1)
    if len(placeholder) > 63:
        placeholder = ".".join(
            placeholder[at : at + 63] for at in range(0, len(placeholder), 64)
        )[: len(name)]
    client = ssl.create_default_context()
    client.check_hostname = False
    client.maximum_version = TLS1_2  # there is no binder that covers the name
    tls = client.wrap_bio(incoming, outgoing, server_hostname=placeholder)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    sent = outgoing.read()
    assert placeholder.encode() in sent
    return sent.replace(placeholder.encode(), name.ljust(len(placeholder), b"z"))


@pytest.mark.parametrize(
    "name",
    [b"../x", b"a/b", b"\xff\xfe", "bücher.example".encode(), b"a..b", b"a b", b"."],
)
def test_what_is_no_name_gets_the_default_or_an_alert(site: Site, name: bytes) -> None:
    site.issuer.put("a.example.org")
    for reject in ("off", "on"):
        settings = site.serve(
            f"{DEFAULT} {DIRECTORY} {VARIABLES} ssl_reject_handshake {reject};"
        )
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(hello(name))
        tls = context(settings).wrap_bio(incoming, outgoing, server_side=True)
        if reject == "off":
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
        else:
            with pytest.raises(ssl.SSLError) as caught:
                tls.do_handshake()
            assert caught.value.reason == "CALLBACK_FAILED"
            assert outgoing.read()[-2:] == bytes((2, 112))
            (note,) = openssl.handshake_notes(tls)
            assert note.values == (name,)


def test_a_name_is_served_with_the_key_that_the_client_can_use(
    site: Site, version: ssl.TLSVersion
) -> None:
    site.issuer.put("a.example.org", file="ec")
    site.issuer.put("a.example.org", "rsa.example.org", file="rsa", kind=KeyType.RSA)
    site.issuer.put("ec.example.org")
    settings = site.serve(DEFAULT + DIRECTORY)
    kinds: dict[str, int] = {}
    for signatures in ("rsa_pss_rsae_sha256:RSA+SHA256", "ECDSA+SHA256"):
        client = site.issuer.client(version)
        set_signatures(client, signatures)
        done = ask(context(settings), client, "a.example.org")
        kinds[signatures[:3].upper()] = len(names_shown(done))
        if signatures.startswith("rsa"):
            with pytest.raises(ssl.SSLError):
                ask(context(settings), client, "ec.example.org")
    assert kinds == {"RSA": 2, "ECD": 1}


def set_signatures(client: ssl.SSLContext, text: str) -> None:
    """What a client can check; Python 3.11 has no method for it."""
    from mailproxy.net.openssl.headers import ssl_h

    command = 98  # SSL_CTRL_SET_SIGALGS_LIST
    assert ssl_h.SSL_CTX_ctrl(openssl.ctx_of(client), command, 0, text.encode())


def test_the_valid_one_is_used_and_the_others_are_named(site: Site) -> None:
    put = site.issuer.put
    put("a.example.org", "old.example.org", file="old", begins=NOW - 9 * DAY, ends=NOW)
    put("a.example.org", file="young", begins=NOW - DAY, ends=NOW + 300 * DAY)
    put("a.example.org", file="older", begins=NOW - 8 * DAY, ends=NOW + 300 * DAY)
    settings = site.serve(DEFAULT + DIRECTORY)
    assert settings.own is not None
    assert settings.own.by_name is not None
    place = settings.own.by_name.choose(b"a.example.org", lambda _: None)
    assert [os.path.basename(pair.file) for pair in place.pairs] == ["young.crt"]
    assert site.messages == [
        '[notice] name "a.example.org" is in several certificates,'
        ' "certs/young.crt" is used in main:5',
        f'[warn] certificate "certs/old.crt" has expired on {NOW.date()}',
    ]


def test_without_a_default_the_servers_name_has_it(site: Site) -> None:
    site.issuer.put("a.example.org")
    site.issuer.put("mail.example.org")
    shown = shown_by(site.serve(DIRECTORY), site.issuer.client())
    assert shown(None) == shown("unknown.example.org") == "mail.example.org"
    assert site.messages == []


def test_or_else_the_first_in_the_alphabet_which_is_said(site: Site) -> None:
    site.issuer.put("b.example.net")
    site.issuer.put("a.example.net")
    shown = shown_by(site.serve(DIRECTORY), site.issuer.client())
    assert shown(None) == "a.example.net"
    assert site.messages == [
        '[notice] default certificate of 127.0.0.1:1000 is "certs/a.example.net.crt"'
        " (a.example.net) in main:5"
    ]


def test_servers_share_what_a_directory_has_but_not_the_default(site: Site) -> None:
    site.issuer.put("mail.example.org")
    site.issuer.put("other.example.org")
    one, two, three = (
        server.ssl
        for server in site.load(
            DIRECTORY, DIRECTORY, DIRECTORY + "ssl_prefer_server_ciphers on;"
        ).servers
    )
    assert one.own is two.own
    assert one.own is not None
    assert three.own is not None
    assert one.own.by_name is not None
    assert three.own.by_name is not None
    assert one.own.by_name is not three.own.by_name
    assert one.own.by_name.shelf is three.own.by_name.shelf


def test_servers_with_other_names_have_other_defaults(site: Site) -> None:
    site.issuer.put("a.example.org")
    site.issuer.put("b.example.org")
    (site.directory / "main").write_text(
        f"pid {os.devnull}; events {{}} mail {{ auth_http 127.0.0.1:9; {DIRECTORY}"
        "server { listen 127.0.0.1:143; starttls on; server_name a.example.org; }"
        "server { listen 127.0.0.1:144; protocol imap; starttls on;"
        " server_name b.example.org; } }"
    )
    prefix = f"{site.directory}/"
    loader = Loader(prefix=prefix, path=f"{prefix}main", name="mailproxy")
    servers = loader.load().servers
    client = site.issuer.client()
    assert [shown_by(server.ssl, client)(None) for server in servers] == [
        "a.example.org",
        "b.example.org",
    ]


@pytest.mark.parametrize(
    ("own", "name", "without_name"),
    [
        (DEFAULT, "alert", "default.example.org"),
        ("", "alert", "alert"),
    ],
)
@pytest.mark.proves("ssl_reject_handshake")
def test_unknown_names_are_rejected(
    site: Site, version: ssl.TLSVersion, own: str, name: str, without_name: str
) -> None:
    site.issuer.put("a.example.org")
    settings = site.serve(f"{own} {DIRECTORY} ssl_reject_handshake on;")
    shown = shown_by(settings, site.issuer.client(version))
    assert shown("a.example.org") == "a.example.org"
    assert shown("unknown.example.org") == name
    assert shown(None) == without_name


def test_the_alert_says_that_the_name_is_unknown(site: Site) -> None:
    site.issuer.put("a.example.org")
    settings = site.serve(f"{DIRECTORY} ssl_reject_handshake on;")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = site.issuer.client().wrap_bio(outgoing, incoming, server_hostname="x.org")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    tls = context(settings).wrap_bio(incoming, outgoing, server_side=True)
    with pytest.raises(ssl.SSLError):
        tls.do_handshake()
    with pytest.raises(ssl.SSLError) as caught:
        client.do_handshake()
    assert caught.value.reason == "TLSV1_UNRECOGNIZED_NAME"
    assert [each.event for each in openssl.handshake_notes(tls)] == [
        'client asked for "%s", which has no certificate'
    ]
    assert openssl.handshake_notes(tls) == []


# -- sessions ----------------------------------------------------------------------


def test_a_session_of_one_name_at_another(site: Site, version: ssl.TLSVersion) -> None:
    """Names have no rights of their own, so it does not matter."""
    site.issuer.put("a.example.org")
    site.issuer.put("b.example.org")
    client = site.issuer.client(version)
    settings = site.serve(DEFAULT + DIRECTORY)
    done = ask(context(settings), client, "a.example.org")
    assert ask(context(settings), client, "b.example.org", done.session).resumed


def test_no_session_without_a_certificate_where_one_is_wanted(
    site: Site, version: ssl.TLSVersion
) -> None:
    """The class of CVE-2025-23419."""
    site.issuer.put("a.example.org")
    site.issuer.put("b.example.org")
    site.issuer.ca.cert_pem.write_to_path(site.directory / "ca.pem")
    shared = f"{DEFAULT} {DIRECTORY} ssl_session_cache shared:s:1m;"
    lax, strict = (
        server.ssl
        for server in site.load(
            shared, f"{shared} ssl_verify_client on; ssl_client_certificate ca.pem;"
        ).servers
    )
    client = site.issuer.client(version)
    session = ask(context(lax), client, "a.example.org").session
    for name in ("a.example.org", "b.example.org", None):
        assert not ask(context(strict), client, name, session).resumed


# -- variables ---------------------------------------------------------------------


@pytest.mark.proves("ssl_certificate", "$ssl_server_name")
@pytest.mark.proves("ssl_certificate_key", "$ssl_server_name")
def test_variables_name_files(site: Site, version: ssl.TLSVersion) -> None:
    settings = site.serve(DEFAULT + VARIABLES)
    shown = shown_by(settings, site.issuer.client(version))
    assert shown("a.example.org") == "default.example.org"
    site.issuer.put("a.example.org")
    assert shown("a.example.org") == "a.example.org"
    assert shown("A.EXAMPLE.org") == "a.example.org"
    (site.directory / "certs" / "a.example.org.crt").unlink()
    assert shown("a.example.org") == "default.example.org"
    assert shown(None) == "default.example.org"


def test_directories_come_first_and_wildcards_after_variables(site: Site) -> None:
    site.issuer.put("a.example.org")
    other = Issuer(site.directory / "other")
    other.ca = site.issuer.ca
    other.put("a.example.org", "wrong.example.org", file="a.example.org")
    other.put("b.example.org")
    site.issuer.put("*.example.org")
    settings = site.serve(DEFAULT + DIRECTORY + VARIABLES.replace("certs/", "other/"))
    client = site.issuer.client()
    assert names_shown(ask(context(settings), client, "a.example.org")) == {
        "a.example.org"
    }
    shown = shown_by(settings, client)
    assert shown("b.example.org") == "b.example.org"
    assert shown("c.example.org") == "*.example.org"


@pytest.mark.proves("ssl_certificate_cache", "max=", "valid=", "inactive=")
def test_the_cache_spares_the_files(site: Site) -> None:
    settings = site.serve(
        f"{DEFAULT} {VARIABLES} ssl_certificate_cache max=10 valid=1h inactive=1h;"
    )
    shown = shown_by(settings, site.issuer.client())
    assert shown("absent.example.org") == "default.example.org"
    site.issuer.put("a.example.org")
    assert shown("a.example.org") == "a.example.org"
    (site.directory / "certs" / "a.example.org.crt").unlink()
    assert shown("a.example.org") == "a.example.org"
    site.issuer.put("absent.example.org")
    assert shown("absent.example.org") == "default.example.org"


@pytest.mark.proves("ssl_certificate_cache", "off")
def test_without_a_cache_files_are_read_each_time(site: Site) -> None:
    settings = site.serve(f"{DEFAULT} {VARIABLES} ssl_certificate_cache off;")
    shown = shown_by(settings, site.issuer.client())
    for _ in range(2):
        site.issuer.put("a.example.org")
        assert shown("a.example.org") == "a.example.org"
        (site.directory / "certs" / "a.example.org.crt").unlink()
        assert shown("a.example.org") == "default.example.org"


def test_a_file_that_cannot_be_used_is_named(site: Site) -> None:
    settings = site.serve(DEFAULT + VARIABLES)
    site.issuer.put("a.example.org")
    wrong = site.issuer.issue("b.example.org").private_key_pem.bytes()
    (site.directory / "certs" / "a.example.org.key").write_bytes(wrong)
    done = ask(context(settings), site.issuer.client(), "a.example.org")
    assert names_shown(done) == {"default.example.org"}
    (note,) = openssl.handshake_notes(done.server)
    key = site.directory / "certs" / "a.example.org.key"
    assert note.level == "error"
    assert note.event % note.values == (
        f'cannot load certificate key "{key}": key does not match'
    )
    done = ask(context(settings), site.issuer.client(), "a.example.org")
    assert openssl.handshake_notes(done.server) == []  # once in a minute


# -- what the configuration test says ----------------------------------------------


@pytest.mark.parametrize(
    ("directives", "text"),
    [
        ("", 'no "ssl_certificate" is defined for the "listen ... ssl" directive'),
        (
            "ssl_reject_handshake on;",
            'no "ssl_certificate" is defined for the "listen ... ssl" directive',
        ),
        (
            "ssl_certificate_directory absent;",
            'open() "absent" failed (2: No such file or directory)',
        ),
        ("ssl_certificate_directory main;", '"main" is not a directory'),
        (DIRECTORY, 'no certificate with its key is in "certs"'),
        (
            "ssl_certificate $name.crt; ssl_certificate_key $ssl_server_name.key;",
            'unknown "name" variable',
        ),
        (
            "ssl_certificate $ssl_server_name.crt; ssl_certificate_key ${x}.key;",
            'unknown "x" variable',
        ),
        (
            "ssl_certificate $ssl_server_name.crt; ssl_certificate_key default.key;",
            'variables in "ssl_certificate" need one in "ssl_certificate_key"',
        ),
        (
            "ssl_certificate default.crt; ssl_certificate_key $ssl_server_name.key;",
            'variables in "ssl_certificate_key" need one in "ssl_certificate"',
        ),
        (
            f"{DEFAULT} ssl_certificate_cache inactive=10s;",
            '"ssl_certificate_cache" must have the "max" parameter',
        ),
        (f"{DEFAULT} ssl_certificate_cache max=0;", 'invalid parameter "max=0"'),
        (f"{DEFAULT} ssl_certificate_cache max=9 x;", 'invalid parameter "x"'),
        (
            f"{DEFAULT} ssl_certificate_cache max=9 valid=x;",
            'invalid parameter "valid=x"',
        ),
    ],
)
def test_errors(site: Site, directives: str, text: str) -> None:
    assert site.fails(directives) == [f"[emerg] {text} in main:5"]


def test_starttls_needs_a_certificate_as_well(site: Site) -> None:
    (site.directory / "main").write_text(
        "events {} mail { auth_http 127.0.0.1:9;\n"
        "server { listen 127.0.0.1:143; starttls on; } }"
    )
    loader = Loader(prefix="/", path=str(site.directory / "main"), name="mailproxy")
    with pytest.raises(ConfigErrors) as errors:
        loader.load()
    (error,) = errors.value.messages
    assert str(error).startswith(
        'no "ssl_certificate" is defined for the "starttls" directive in '
    )


def test_an_empty_directory_beside_a_default_is_a_warning(site: Site) -> None:
    site.serve(DEFAULT + DIRECTORY)
    assert site.messages == [
        '[warn] no certificate with its key is in "certs" in main:5'
    ]


def test_an_empty_directory_is_good_if_names_are_to_be_rejected(site: Site) -> None:
    shown = shown_by(
        site.serve(f"{DIRECTORY} ssl_reject_handshake on;"), site.issuer.client()
    )
    assert shown("a.example.org") == "alert"


def test_to_reject_without_names_is_a_warning(site: Site) -> None:
    shown = shown_by(
        site.serve(f"{DEFAULT} ssl_reject_handshake on;"), site.issuer.client()
    )
    assert site.messages == [
        '[warn] "ssl_reject_handshake" without names refuses everybody in main:5'
    ]
    assert shown("default.example.org") == "alert"
    assert shown(None) == "default.example.org"


def test_what_is_passed_over_is_named_but_not_without_end(site: Site) -> None:
    site.issuer.put("a.example.org")
    for number in range(25):
        leaf = site.issuer.issue(f"n{number}.example.org")
        site.issuer.write(leaf, f"n{number:02}.crt", f"n{number:02}.key")
        (site.directory / "certs" / f"n{number:02}.key").unlink()
    site.load(DEFAULT + DIRECTORY, DEFAULT + DIRECTORY)
    assert site.messages == [
        *(
            f'[warn] "certs/n{number:02}.crt" is passed over: no key in main:5'
            for number in range(20)
        ),
        '[warn] and 5 more in "certs" in main:5',
    ]


def test_remarks_about_usable_files(site: Site) -> None:
    site.issuer.put("a.example.org")
    (site.directory / "certs" / "a.example.org.key").chmod(0o644)
    with pytest.raises(ConfigErrors) as caught:
        site.load(DIRECTORY + "ssl_certificate_directory absent;")
    remedies = {each.message: each.remedy for each in caught.value.messages}
    key = site.directory / "certs" / "a.example.org.key"
    assert remedies[f'key "{key}" is readable by everybody'] == f"chmod 600 {key}"


def test_a_key_that_openssl_refuses_is_passed_over(site: Site) -> None:
    site.issuer.put("a.example.org", kind=KeyType.RSA)
    site.issuer.put("b.example.org")
    settings = site.serve(f"{DEFAULT} {DIRECTORY} ssl_ciphers DEFAULT:@SECLEVEL=3;")
    (said,) = site.messages
    assert re.fullmatch(
        r'\[warn\] "certs/a\.example\.org\.crt" is passed over: '
        r"SSL_use_cert_and_key\(\) failed \(SSL: .*ee key too small\) in main:5",
        said,
    )
    shown = shown_by(settings, site.issuer.client())
    assert shown("a.example.org") == "default.example.org"
    assert shown("b.example.org") == "b.example.org"


def test_one_listener_has_one_server(site: Site) -> None:
    (site.directory / "main").write_text(
        "events {} mail { auth_http 127.0.0.1:9;\n"
        "server { listen 127.0.0.1:143; }\n server { listen 127.0.0.1:143; } }"
    )
    loader = Loader(prefix="/", path=str(site.directory / "main"), name="mailproxy")
    with pytest.raises(ConfigErrors) as errors:
        loader.load()
    (error,) = errors.value.messages
    assert error.message == 'duplicate "127.0.0.1:143" address and port pair'
    assert error.remedy == (
        "one server per address: it shows a certificate per name with "
        "ssl_certificate_directory"
    )


def test_an_openssl_that_lacks_something_is_an_error(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.issuer.put("a.example.org")
    monkeypatch.setattr(by_name, "has", lambda function: has(function) and False)
    assert site.fails(DEFAULT + DIRECTORY) == [
        "[emerg] certificates by name are not supported by this OpenSSL in main:5"
    ]


def test_inner_directories_replace_outer_ones(site: Site) -> None:
    site.issuer.put("a.example.org")
    inner = Issuer(site.directory / "inner")
    inner.ca = site.issuer.ca
    inner.put("b.example.org")
    both, one = (
        server.ssl
        for server in site.load(
            DEFAULT,
            DEFAULT + "ssl_certificate_directory inner;",
            mail=DIRECTORY,
        ).servers
    )
    client = site.issuer.client()
    assert shown_by(both, client)("a.example.org") == "a.example.org"
    assert shown_by(one, client)("a.example.org") == "default.example.org"
    assert shown_by(one, client)("b.example.org") == "b.example.org"


# -- what else may happen ----------------------------------------------------------


def test_a_bug_ends_the_handshake_and_nothing_else(
    site: Site,
) -> None:
    settings = site.serve(DEFAULT + VARIABLES)
    site.issuer.put("a.example.org")
    server = by_name.server_of(openssl.ctx_of(context(settings)))
    assert server is not None
    files, server.files = server.files, cast("VariableFiles", Broken())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = site.issuer.client().wrap_bio(outgoing, incoming, server_hostname="a.b")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    tls = context(settings).wrap_bio(incoming, outgoing, server_side=True)
    with pytest.raises(ssl.SSLError, match="CALLBACK_FAILED"):
        tls.do_handshake()
    with pytest.raises(ssl.SSLError, match="ALERT_INTERNAL_ERROR"):
        client.do_handshake()
    (note,) = openssl.handshake_notes(tls)
    assert note.level == "alert"
    assert note.event == "choosing a certificate failed, this is a bug"
    assert isinstance(note.bug, ZeroDivisionError)
    server.files = files
    shown = shown_by(settings, site.issuer.client())
    assert shown("a.example.org") == "a.example.org"


class Broken:
    """Files by name, with a bug."""

    def find(self, *_: object) -> None:
        raise ZeroDivisionError


def test_random_names_push_nothing_out(site: Site) -> None:
    for name in ("a.example.org", "b.example.org"):
        site.issuer.put(name)
    settings = site.serve(DEFAULT + DIRECTORY)
    shown = shown_by(settings, site.issuer.client())
    assert shown("a.example.org") == "a.example.org"
    server = by_name.server_of(openssl.ctx_of(context(settings)))
    assert server is not None

    def ask_for_many() -> None:
        for number in range(20_000):
            name = b"x%d.example.org" % number
            assert server.choose(name, lambda _: None).place == DEFAULT_PLACE

    ask_for_many()
    tracemalloc.start()
    try:
        ask_for_many()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 4 << 20  # what was asked for last is remembered
    assert server.is_recent(b"a.example.org")


def test_must_staple_is_a_warning(site: Site) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s.example.org")])
    wanted = x509.TLSFeature([x509.TLSFeatureType.status_request])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 300 * DAY)
        .add_extension(wanted, False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path = site.directory / "certs" / "s.pem"
    path.write_bytes(
        made.public_bytes(pem)
        + key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    path.chmod(0o600)
    site.load(DEFAULT + DIRECTORY, DEFAULT + DIRECTORY)
    assert site.messages == [
        '[warn] certificate "certs/s.pem" has no subjectAltName in main:5',
        '[warn] certificate "certs/s.pem" wants OCSP stapling,'
        " which mail does not have",
    ]

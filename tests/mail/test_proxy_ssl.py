"""The directives of TLS with backends: what they accept, and the contexts they make."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from mailproxy.conf.tree import ConfigError
from mailproxy.mail.proxy_ssl import ProxySslSettings
from mailproxy.mail.ssl_values import host_name
from mailproxy.net.openssl import library
from mailproxy.process.configuration import ConfigErrors, Configuration, Loader
from tests.tls import Certificates

Load = Callable[..., Configuration]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def load(files: Certificates, tmp_path: Path) -> Load:
    """Loads a configuration whose mail block has these directives, and these servers."""

    def load(directives: str, *servers: str) -> Configuration:
        blocks = "".join(
            f"server {{ listen {number}; protocol imap; {each} }}"
            for number, each in enumerate(servers or [""], 10143)
        )
        path = tmp_path / "nginx.conf"
        text = f"events {{}}\nmail {{ auth_http 127.0.0.1; {directives}\n{blocks} }}"
        path.write_text(text.replace("$d", str(files.directory)))
        return Loader(prefix="/", path=str(path), name="mailproxy").load()

    return load


@pytest.fixture
def made(load: Load) -> Callable[..., ProxySslSettings]:
    def made(directives: str) -> ProxySslSettings:
        (server,) = load(directives).servers
        return server.proxy_ssl

    return made


@pytest.fixture
def error(load: Load) -> Callable[[str], ConfigError]:
    """The one error of these directives."""

    def error(directives: str) -> ConfigError:
        with pytest.raises(ConfigErrors) as caught:
            load(directives)
        (found,) = caught.value.exceptions
        assert isinstance(found, ConfigError)
        return found

    return error


def said(message: ConfigError) -> str:
    """The text of a message, without the place."""
    text, _, _ = message.text.partition(f" in {message.position}")
    return text


needs_openssl = pytest.mark.skipif(
    library.unreachable() is not None, reason="OpenSSL is inside Python"
)
TRUST = "proxy_ssl_trusted_certificate $d/ca.pem;"
ON = f"proxy_ssl on; {TRUST}"

Made = Callable[[str], ProxySslSettings]
Error = Callable[[str], ConfigError]


def test_defaults(made: Made) -> None:
    settings = made("")
    assert settings.proxy_ssl == "off"
    assert settings.proxy_ssl_verify
    assert settings.proxy_ssl_server_name
    assert settings.proxy_ssl_session_reuse
    assert settings.proxy_ssl_verify_depth == 3
    assert settings.loaded is None


@pytest.mark.proves("proxy_ssl", "off")
@pytest.mark.parametrize("directives", ["", "proxy_ssl off;"])
def test_nothing_is_loaded_where_nothing_is_said(made: Made, directives: str) -> None:
    assert made(directives).loaded is None


@pytest.mark.parametrize("directives", ["", "proxy_ssl off;"])
@pytest.mark.parametrize(
    ("mode", "loaded"), [("on", True), ("starttls", True), ("off", False)]
)
def test_context_is_there_for_members_with_tls_of_their_own(
    made: Made, directives: str, mode: str, *, loaded: bool
) -> None:
    group = f"upstream g {{ server 127.0.0.1:1; server 127.0.0.1:2 ssl={mode}; }}"
    assert (made(directives + group).loaded is not None) == loaded


def test_context_that_verifies(made: Made) -> None:
    context = made(ON).context
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert not context.hostname_checks_common_name
    assert context.protocol is ssl.PROTOCOL_TLS_CLIENT
    assert len(context.get_ca_certs()) == 1


def test_context_is_there_for_auth_sources_too(made: Made) -> None:
    assert made(TRUST).loaded is not None


def test_context_of_a_configuration_that_says_nothing(made: Made) -> None:
    settings = made("")
    assert settings.context is settings.context
    assert settings.context.verify_mode is ssl.CERT_REQUIRED
    assert settings.context.check_hostname
    assert made("proxy_ssl off;").context is settings.context


@pytest.mark.proves("proxy_ssl_trusted_certificate")
def test_trusted_certificates_take_the_place_of_the_system_s(made: Made) -> None:
    context = made(ON).context
    assert [each["issuer"] for each in context.get_ca_certs()]
    system = ssl.create_default_context()
    assert len(system.get_ca_certs()) != 1


@pytest.mark.proves("proxy_ssl_verify")
def test_context_that_believes_anyone(load: Load) -> None:
    configuration = load("proxy_ssl on; proxy_ssl_verify off;", "", "")
    context = configuration.servers[0].proxy_ssl.context
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname
    (warning,) = configuration.messages
    assert said(warning) == (
        '"proxy_ssl_verify off" without "proxy_ssl_pinned_sha256" accepts any server'
    )
    assert warning.position is not None
    assert warning.position.line == 2


def test_pin_is_enough_not_to_be_warned(load: Load) -> None:
    configuration = load(
        f"proxy_ssl on; proxy_ssl_verify off; proxy_ssl_pinned_sha256 {'a' * 64};"
    )
    assert not list(configuration.messages)


def test_servers_with_the_same_settings_share_a_context(load: Load) -> None:
    same = "proxy_ssl_name a.test; proxy_ssl_session_reuse off;"
    one, two, three, four = load(
        ON, "", same, "proxy_ssl starttls;", "proxy_ssl_verify_depth 2;"
    ).servers
    assert one.proxy_ssl.context is two.proxy_ssl.context is three.proxy_ssl.context
    assert four.proxy_ssl.context is not one.proxy_ssl.context
    assert four.proxy_ssl.proxy_ssl == "on"


@pytest.mark.proves("proxy_ssl_pinned_sha256")
def test_pins_add_up(made: Made) -> None:
    settings = made(
        f"{ON} proxy_ssl_pinned_sha256 {'aB' * 32} {'00' * 32};"
        f" proxy_ssl_pinned_sha256 {'11' * 32};"
    )
    assert settings.proxy_ssl_pinned_sha256 == {
        b"\xab" * 32,
        b"\0" * 32,
        b"\x11" * 32,
    }


REFUSALS = {
    "SSLv3": ssl.OP_NO_SSLv3,
    "TLSv1": ssl.OP_NO_TLSv1,
    "TLSv1.1": ssl.OP_NO_TLSv1_1,
    "TLSv1.2": ssl.OP_NO_TLSv1_2,
    "TLSv1.3": ssl.OP_NO_TLSv1_3,
}


@pytest.mark.proves("proxy_ssl_protocols", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2")
@pytest.mark.proves("proxy_ssl_protocols", "TLSv1.3")
@pytest.mark.parametrize("version", REFUSALS)
def test_versions(made: Made, version: str) -> None:
    options = made(f"{ON} proxy_ssl_protocols {version};").context.options
    assert [name for name, no in REFUSALS.items() if not options & no] == [version]


@pytest.mark.proves("proxy_ssl_protocols", "SSLv2")
def test_version_that_openssl_does_not_know(made: Made) -> None:
    options = made(f"{ON} proxy_ssl_protocols SSLv2;").context.options
    assert all(options & no for no in REFUSALS.values())


@needs_openssl
@pytest.mark.proves("proxy_ssl_certificate_key", "store:")
def test_key_behind_a_uri(made: Made) -> None:
    pair = "proxy_ssl_certificate $d/ec.pem; proxy_ssl_certificate_key store:file:$d/ec.key;"
    assert made(f"{ON} {pair}").loaded is not None


@needs_openssl
@pytest.mark.proves("proxy_ssl_certificate_key", "engine:")
def test_key_in_an_engine(error: Error) -> None:
    pair = "proxy_ssl_certificate $d/ec.pem; proxy_ssl_certificate_key engine:none:x;"
    start = 'cannot load certificate key "engine:none:x": ENGINE_by_id() failed'
    assert error(f"{ON} {pair}").text.startswith(start)


@pytest.mark.proves("proxy_ssl_ciphers")
def test_ciphers(made: Made) -> None:
    names = [
        each["name"]
        for each in made(f"{ON} proxy_ssl_ciphers AES256-SHA256;").context.get_ciphers()
        if each["protocol"] != "TLSv1.3"
    ]
    assert names == ["AES256-SHA256"]


@needs_openssl
@pytest.mark.proves("proxy_ssl_conf_command")
def test_commands_are_applied_last(made: Made) -> None:
    context = made(f"{ON} proxy_ssl_conf_command CipherString AES256-SHA256;").context
    names = [each["name"] for each in context.get_ciphers()]
    assert "AES256-SHA256" in names
    assert "AES128-SHA256" not in names


@pytest.mark.parametrize(
    ("directives", "text", "remedy"),
    [
        ("proxy_ssl maybe;", 'invalid value "maybe"', "accepted are on, off, starttls"),
        (
            "proxy_ssl_pinned_sha256 12ab;",
            'invalid pin "12ab"',
            "64 hex digits: openssl x509 -pubkey -noout "
            "| openssl pkey -pubin -outform der | sha256sum",
        ),
        (
            f"{ON} proxy_ssl_certificate $d/ec.pem;",
            'no "proxy_ssl_certificate_key" is defined for certificate "$d/ec.pem"',
            "add: proxy_ssl_certificate_key FILE;",
        ),
        (
            f"{ON} proxy_ssl_certificate $d/ec.pem; proxy_ssl_certificate_key $d/none;",
            'cannot load certificate key "$d/none": BIO_new_file() failed (SSL: …)',
            "there is no file $d/none",
        ),
        (
            f"{ON} proxy_ssl_certificate $d/none; proxy_ssl_certificate_key $d/ec.key;",
            'cannot load certificate "$d/none": BIO_new_file() failed (SSL: …)',
            "there is no file $d/none",
        ),
        (
            "proxy_ssl on; proxy_ssl_trusted_certificate $d/none;",
            'cannot load certificate "$d/none": BIO_new_file() failed (SSL: …)',
            "there is no file $d/none",
        ),
        (
            f"{ON} proxy_ssl_crl $d/none;",
            'cannot load CRL "$d/none": BIO_new_file() failed (SSL: …)',
            "there is no file $d/none",
        ),
        (
            f"{ON} proxy_ssl_ciphers NONE-SUCH;",
            'SSL_CTX_set_cipher_list("NONE-SUCH") failed (SSL: …)',
            None,
        ),
        (
            f"proxy_ssl_alpn {'a' * 256};",
            '"proxy_ssl_alpn" directive protocol too long',
            None,
        ),
        ("proxy_ssl_name a..b;", '"proxy_ssl_name" directive invalid value', None),
        ('proxy_ssl_alpn "";', '"proxy_ssl_alpn" directive invalid value', None),
    ],
)
def test_errors(
    error: Error, files: Certificates, directives: str, text: str, remedy: str | None
) -> None:
    found = error(directives)
    text = text.replace("$d", str(files.directory))
    if text.endswith("(SSL: …)"):
        assert found.position is None
        assert found.cause is not None
        assert found.text.partition("(SSL: ")[0] == text.removesuffix("(SSL: …)")
    else:
        assert said(found) == text
        assert found.text != text
    wanted = remedy and remedy.replace("$d", str(files.directory))
    assert (found.remedy or None) == wanted


@pytest.mark.parametrize("directory", [None, "empty"])
def test_nobody_is_trusted(
    error: Error, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, directory: str | None
) -> None:
    where = tmp_path / "none" if directory is None else tmp_path
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(where))
    found = error("proxy_ssl on;")
    assert said(found) == 'no trusted certificates for "proxy_ssl_verify"'
    assert found.position is not None
    assert found.position.line == 2
    assert found.remedy == "proxy_ssl_trusted_certificate FILE;"


@pytest.mark.parametrize("mode", ["on", "starttls"])
def test_nobody_is_trusted_though_a_member_has_tls(
    error: Error, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    found = error(f"upstream g {{ server 127.0.0.1:1 ssl={mode}; }}")
    assert said(found) == 'no trusted certificates for "proxy_ssl_verify"'
    assert found.position is not None
    assert found.position.line == 2


GROUP = "upstream Far {{ server 127.0.0.1:1; server unix:/s; server {} {}; }}"
CLEAR = 'passwords go to "{}" in clear text'


@pytest.mark.parametrize(
    ("directives", "server", "names"),
    [
        (GROUP.format("192.0.2.1:143", ""), "", ["Far"]),
        (GROUP.format("[2001:db8::1]:143", "backup"), "proxy_pass far;", ["Far"]),
        (GROUP.format("192.0.2.1:143", "ssl=off") + ON, "", ["Far"]),
        (GROUP.format("192.0.2.1:143", "") + ON, "proxy_ssl off;", ["Far"]),
        (GROUP.format("192.0.2.1:143", "") + ON, "", []),
        (GROUP.format("192.0.2.1:143", "ssl=starttls"), "", []),
        (GROUP.format("127.0.0.2:143", ""), "", []),
        (GROUP.format("[::1]:143", ""), "", []),
        ("proxy_pass 192.0.2.1:143;", "", ["192.0.2.1:143"]),
        ("proxy_pass 192.0.2.1:143;", ON, ["192.0.2.1:143"]),
        ("proxy_pass 127.0.0.1:143;", "", []),
        ("proxy_pass unix:/s;", "", []),
        (f"proxy_pass 192.0.2.1:143; {ON}", "", []),
    ],
)
def test_passwords_in_clear_text_are_warned_of(
    load: Load, directives: str, server: str, names: list[str]
) -> None:
    messages = list(load(directives, "", server).messages)
    assert [said(message) for message in messages] == [CLEAR.format(n) for n in names]
    for message in messages:
        assert message.position is not None
        assert message.position.line == 2
        assert message.remedy == "proxy_ssl on; or proxy_ssl starttls;"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mail.test", "mail.test"),
        ("mail.test.", "mail.test"),
        ("Mail_1.test", "Mail_1.test"),
        ("bücher.test", "xn--bcher-kva.test"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("", None),
        (".", None),
        ("a..b", None),
        (".a", None),
        ("a b", None),
        ("a\0b", None),
        ("*.a", None),
        ("a" * 64, None),
        (("a" * 60 + ".") * 5, None),
        ("/run/mail.sock", None),
        ("ü" * 300, None),
    ],
)
def test_names_that_a_certificate_may_have(text: str, name: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert host_name(text) == name

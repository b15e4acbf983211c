"""TLS directives: what is written in a configuration shows in handshakes."""

from __future__ import annotations

import os
import ssl
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from warnings import catch_warnings, simplefilter

import pytest
import trustme
from trustme import KeyType

from mailproxy.conf.report import explanation
from mailproxy.conf.tree import SourceText
from mailproxy.mail.ssl import SslSettings
from mailproxy.mail.ssl_values import Key, PasswordFile, SessionCache
from mailproxy.net import openssl
from mailproxy.net.openssl.headers import ssl_h
from mailproxy.net.openssl.headers.prototype import has
from mailproxy.process.configuration import ConfigErrors, Configuration, Loader
from tests.tls import Certificates, shake_hands

TLS1_2, TLS1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
PAIR = "ssl_certificate ec.pem; ssl_certificate_key ec.key;"

Load = Callable[..., Configuration]
Serve = Callable[..., SslSettings]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("tls"))
    made.issue("other")
    return made


@pytest.fixture
def load(files: Certificates) -> Load:
    """Reads a configuration: the inside of mail, the servers in it."""

    def read(mail: str, *servers: str) -> Configuration:
        blocks = "\n".join(
            f"server {{ listen 127.0.0.1:{1000 + number}; protocol imap; {server} }}"
            for number, server in enumerate(servers)
        )
        files.write(
            "main",
            f"pid {os.devnull};\nevents {{ worker_connections 2000; }}\nmail {{\nauth_http 127.0.0.1:9;\n"
            f"{mail}\n{blocks}\n}}\n",
        )
        prefix = f"{files.directory}/"
        loader = Loader(
            prefix=prefix,
            path=f"{prefix}main",
            name="mailproxy",
        )
        return loader.load()

    return read


@pytest.fixture
def serve(load: Load) -> Serve:
    """The TLS settings of one server, which has a certificate."""

    def read(directives: str = "", mail: str = "", pair: str = PAIR) -> SslSettings:
        (server,) = load(mail, f"starttls on; {pair} {directives}").servers
        return server.ssl

    return read


@pytest.fixture(params=[TLS1_2, TLS1_3], ids=["TLSv1.2", "TLSv1.3"])
def client(request: pytest.FixtureRequest, files: Certificates) -> ssl.SSLContext:
    return files.client(version=request.param)


def context(settings: SslSettings) -> ssl.SSLContext:
    assert settings.context is not None
    return settings.context


def resumable(
    first: SslSettings, client: ssl.SSLContext, second: SslSettings | None = None
) -> bool:
    done = shake_hands(context(first), client)
    if not done.client.session:
        return False
    return shake_hands(context(second or first), client, done.session).resumed


def messages(caught: pytest.ExceptionInfo[ConfigErrors]) -> list[str]:
    return [str(error) for error in caught.value.messages if error.level != "warn"]


# -- which servers have TLS --------------------------------------------------------


@pytest.mark.parametrize(
    ("directives", "tls"),
    [
        ("", False),
        ("starttls off;", False),
        ("starttls on;", True),
        ("starttls only;", True),
        ("listen 127.0.0.1:2000 ssl;", True),
        ("ssl on;", True),
        ("ssl off;", False),
    ],
)
def test_only_servers_with_tls_have_a_context(
    load: Load, directives: str, tls: bool
) -> None:
    (server,) = load("", PAIR + directives).servers
    assert (server.ssl.context is not None) == tls


def test_ssl_on_means_all_addresses(load: Load) -> None:
    text = f"{PAIR} listen 127.0.0.1:2000; starttls off;"
    for mail, tls in (("ssl on;", True), ("ssl off;", False)):
        (server,) = load(mail, text).servers
        assert [each.ssl for each in server.core.listen] == [tls, tls]


def test_what_no_server_uses_is_not_looked_at(load: Load) -> None:
    load("ssl_certificate nothing; ssl_ciphers NOTHING;", "")


def test_servers_with_the_same_settings_share_a_context(load: Load) -> None:
    whole = load(
        f"{PAIR} starttls on; ssl_session_cache shared:s:1m;",
        "",
        "starttls only;",
        "ssl_ciphers HIGH;",
        "protocol pop3;",
        "listen 127.0.0.1:2000 ssl;",
    )
    first, only, ciphers, pop3, listen = (
        server.ssl.context for server in whole.servers
    )
    assert first is only is listen
    assert len({first, ciphers, pop3}) == 3


def test_a_configuration_that_is_read_again_reads_files_again(
    serve: Serve, files: Certificates
) -> None:
    pair = "ssl_certificate new.pem; ssl_certificate_key new.key;"
    found = []
    for _ in range(2):
        files.issue("new")
        done = shake_hands(context(serve(pair=pair)), files.client())
        found.append(done.client.getpeercert(binary_form=True))
        assert found[-1] == ssl.PEM_cert_to_DER_cert(files.text("new.pem"))
    assert found[0] != found[1]


def test_many_servers_with_one_certificate_load_quickly(load: Load) -> None:
    started = time.process_time()
    whole = load(
        f"{PAIR} starttls on;",
        *(f"server_name host{number}.example.com;" for number in range(1000)),
    )
    assert time.process_time() - started < 3
    assert len({server.ssl.context for server in whole.servers}) == 1


def test_a_fault_that_servers_share_is_said_once(load: Load) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(f"{PAIR} starttls on; ssl_ciphers NONE;", "", "", "")
    text = "error:0A0000B9:SSL routines::no cipher match"
    assert messages(caught) == [f'SSL_CTX_set_cipher_list("NONE") failed (SSL: {text})']


# -- where a fault is ----------------------------------------------------------------


@pytest.fixture
def explain(load: Load, files: Certificates) -> Callable[[str], str]:
    """What stands below the only error of a server."""

    def read(server: str) -> str:
        with pytest.raises(ConfigErrors) as caught:
            load("", server)
        (error,) = [e for e in caught.value.messages if e.level != "warn"]
        assert error.position is None, "nginx names no place"
        main = files.path("main")
        text = explanation(error, {main: SourceText(main, files.text("main"))})
        return text.replace(f"{files.directory}/", "")

    return read


@pytest.mark.parametrize(
    ("before", "written", "word", "remedy"),
    [
        (
            "",
            "ssl_certificate none.pem; ssl_certificate_key ec.key;",
            "none.pem",
            " there is no file none.pem",
        ),
        (
            "",
            "ssl_certificate ec.pem; ssl_certificate_key none.key;",
            "none.key",
            " there is no file none.key",
        ),
        ("", "ssl_certificate ec.key; ssl_certificate_key ec.key;", "ec.key", ""),
        ("", "ssl_certificate ec.pem; ssl_certificate_key other.key;", "other.key", ""),
        (
            PAIR,
            "ssl_certificate ec.pem; ssl_certificate_key other.key;",
            "other.key",
            "",
        ),
        (
            PAIR,
            "ssl_certificate no.pem; ssl_certificate_key ec.key;",
            "no.pem",
            " there is no file no.pem",
        ),
        (PAIR, "ssl_ciphers NONE;", "NONE", ""),
        (PAIR, "ssl_dhparam none;", "none", " there is no file none"),
        (PAIR, "ssl_ecdh_curve flat;", "flat", ""),
        (PAIR, "ssl_conf_command Nothing x;", "Nothing", ""),
        (PAIR, "ssl_verify_client on;", "on", ""),
        (
            PAIR,
            "ssl_verify_client on; ssl_client_certificate no;",
            "no",
            " there is no file no",
        ),
        (
            PAIR,
            "ssl_verify_client on; ssl_trusted_certificate no;",
            "no",
            " there is no file no",
        ),
        (
            PAIR,
            "ssl_verify_client on; ssl_client_certificate ca.pem; ssl_crl ec.key;",
            "ec.key",
            "",
        ),
    ],
)
def test_the_word_behind_an_error_of_openssl_is_shown(
    explain: Callable[[str], str], before: str, written: str, word: str, remedy: str
) -> None:
    place, line, mark = explain(f"starttls on; {before}\n{written}").splitlines()
    assert place == "  in main:7"
    assert line == f"    7 | {written} }}"
    at = mark.index("^")
    assert line[at:].startswith(f"{word};") or word in {"on", "Nothing"}
    assert line[at : at + len(word)] == word
    assert mark[at:] == "^" * len(word) + remedy


def test_an_unreadable_key_is_said_to_be_so(
    explain: Callable[[str], str], files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write("dir.key", "")
    monkeypatch.setattr(os, "access", lambda path, mode: "dir.key" not in path)
    text = explain("starttls on; ssl_certificate ec.pem; ssl_certificate_key dir.key;")
    assert f"user {os.geteuid()} may not read dir.key" in text


def test_a_key_in_the_configuration_is_not_shown_with_its_fault(
    explain: Callable[[str], str], files: Certificates
) -> None:
    key = files.text("other.key")
    text = explain(
        f'starttls on;\nssl_certificate ec.pem; ssl_certificate_key "data:{key}";'
    )
    assert text.startswith("  in main:7\n")
    assert not any(line in text for line in key.splitlines()[1:-1])


# -- every directive ---------------------------------------------------------------


@pytest.mark.proves("ssl_session_tickets")
def test_the_defaults(serve: Serve, client: ssl.SSLContext) -> None:
    settings = serve()
    done = shake_hands(context(settings), client)
    assert done.server.version() == client.minimum_version.name.replace("_", ".")
    assert resumable(settings, client)
    assert not resumable(serve("ssl_session_tickets off;"), client)


def test_alpn_is_the_protocol_of_the_server(load: Load, files: Certificates) -> None:
    whole = load(f"{PAIR} starttls on;", "", "protocol pop3;", "protocol smtp;")
    for server, name in zip(whole.servers, ("imap", "pop3", "smtp"), strict=True):
        client = files.client()
        client.set_alpn_protocols(["h2", name])
        done = shake_hands(context(server.ssl), client)
        assert done.client.selected_alpn_protocol() == name
        client.set_alpn_protocols(["h2"])
        with pytest.raises(ssl.SSLError, match="NO_APPLICATION_PROTOCOL"):
            shake_hands(context(server.ssl), client)


def test_a_protocol_that_the_port_tells_is_known_to_alpn(
    load: Load, files: Certificates
) -> None:
    whole = load(PAIR)
    assert not whole.servers
    files.write("one", "")
    text = f"{PAIR} server {{ listen 127.0.0.1:995 ssl; }}"
    (server,) = load(text).servers
    client = files.client()
    client.set_alpn_protocols(["pop3"])
    done = shake_hands(context(server.ssl), client)
    assert done.client.selected_alpn_protocol() == "pop3"


@pytest.mark.proves("ssl_certificate_key")
@pytest.mark.proves("ssl_certificate")
def test_several_certificates(serve: Serve, files: Certificates) -> None:
    files.issue("rsa", KeyType.RSA)
    settings = serve("ssl_certificate rsa.pem; ssl_certificate_key rsa.key;")
    for kind in ("RSA", "ECDSA"):
        client = files.client(version=TLS1_2)
        client.set_ciphers(f"ECDHE-{kind}-AES128-GCM-SHA256")
        assert kind in shake_hands(context(settings), client).cipher


def test_certificates_and_keys_are_inherited_each_for_itself(
    load: Load, files: Certificates
) -> None:
    (server,) = load(
        "starttls on; ssl_certificate other.pem; ssl_certificate_key ec.key;",
        "ssl_certificate ec.pem;",
    ).servers
    shake_hands(context(server.ssl), files.client())


@pytest.mark.proves("ssl_certificate_key", "data:")
@pytest.mark.proves("ssl_certificate", "data:")
def test_a_certificate_written_in_the_configuration(
    serve: Serve, files: Certificates
) -> None:
    certificate, key = files.text("ec.pem"), files.text("ec.key")
    pair = f'ssl_certificate "data:{certificate}"; ssl_certificate_key "data:{key}";'
    settings = serve(pair=pair)
    shake_hands(context(settings), files.client())
    assert key[60:90] not in repr(settings)
    assert key[60:90] not in str(settings.ssl_certificate_key[0])


@pytest.mark.proves("ssl_certificate_key", "store:")
def test_a_key_behind_a_uri(serve: Serve, files: Certificates) -> None:
    key = files.path("ec.key")
    pair = f"ssl_certificate ec.pem; ssl_certificate_key store:file:{key};"
    shake_hands(context(serve(pair=pair)), files.client())


@pytest.mark.proves("ssl_password_file")
def test_passwords(serve: Serve, files: Certificates) -> None:
    encrypt = ["openssl", "pkcs8", "-topk8", "-passout", "pass:open sesame"]
    encrypt += ["-in", files.path("ec.key"), "-out", files.path("encrypted.key")]
    subprocess.run(encrypt, check=True)
    files.write("passwords", b"wrong\r\n\nopen sesame\r\nother")
    pair = "ssl_certificate ec.pem; ssl_certificate_key encrypted.key;"
    settings = serve("ssl_password_file passwords;", pair=pair)
    shake_hands(context(settings), files.client())
    assert "sesame" not in repr(settings)
    files.write("passwords", b"wrong\n")
    with pytest.raises(ConfigErrors) as caught:
        serve("ssl_password_file passwords;", pair=pair)
    (message,) = messages(caught)
    name = files.path("encrypted.key")
    start = f'cannot load certificate key "{name}": PEM_read_bio_PrivateKey() failed ('
    assert message.startswith(start)
    assert "wrong)" not in message.replace("wrong password)", "")


@pytest.mark.proves("ssl_protocols", "TLSv1.2", "TLSv1.3")
def test_protocols(serve: Serve, client: ssl.SSLContext) -> None:
    version = {TLS1_2: "TLSv1.2", TLS1_3: "TLSv1.3"}[client.minimum_version]
    other = {TLS1_2: "TLSv1.3", TLS1_3: "TLSv1.2"}[client.minimum_version]
    settings = serve(f"ssl_protocols SSLv3 {version};", mail=f"ssl_protocols {other};")
    assert shake_hands(context(settings), client).server.version() == version
    with pytest.raises(ssl.SSLError):
        shake_hands(context(serve(f"ssl_protocols {other};")), client)


@pytest.mark.proves("ssl_prefer_server_ciphers")
@pytest.mark.parametrize("prefer", [True, False])
def test_ciphers(serve: Serve, files: Certificates, prefer: bool) -> None:
    theirs, ours = "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"
    client = files.client(version=TLS1_2)
    client.set_ciphers(f"{theirs}:{ours}")
    word = "on" if prefer else "off"
    settings = serve(f"ssl_ciphers {ours}:{theirs}; ssl_prefer_server_ciphers {word};")
    done = shake_hands(context(settings), client)
    assert done.cipher == (ours if prefer else theirs)


@pytest.mark.proves("ssl_ciphers")
def test_ciphers_that_are_not_named_are_refused(
    serve: Serve, files: Certificates
) -> None:
    client = files.client(version=TLS1_2)
    client.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    shake_hands(context(serve()), client)
    with pytest.raises(ssl.SSLError):
        shake_hands(context(serve("ssl_ciphers AES256;")), client)


@pytest.mark.proves("ssl_ecdh_curve")
def test_curves(serve: Serve, files: Certificates) -> None:
    client = files.client()
    client.set_ecdh_curve("secp521r1")
    shake_hands(context(serve("ssl_ecdh_curve X25519:secp521r1;")), client)
    with pytest.raises(ssl.SSLError):
        shake_hands(context(serve("ssl_ecdh_curve X25519;")), client)


@pytest.mark.proves("ssl_dhparam")
def test_dh_parameters(serve: Serve, files: Certificates) -> None:
    files.issue("rsa", KeyType.RSA)
    make = ["openssl", "genpkey", "-genparam", "-algorithm", "DH"]
    make += ["-pkeyopt", "group:ffdhe2048", "-out", files.path("dh")]
    subprocess.run(make, check=True, capture_output=True)
    client = files.client(version=TLS1_2)
    client.set_ciphers("DHE-RSA-AES256-GCM-SHA384")
    pair = "ssl_certificate rsa.pem; ssl_certificate_key rsa.key;"
    settings = serve("ssl_dhparam dh;", pair=pair)
    assert shake_hands(context(settings), client).cipher.startswith("DHE")
    emptied = serve('ssl_dhparam "";', mail="ssl_dhparam nothing;", pair=pair)
    with pytest.raises(ssl.SSLError):
        shake_hands(context(emptied), client)


@pytest.mark.proves("ssl_session_cache", "off", "none", "builtin", "shared:")
@pytest.mark.parametrize(
    ("cache", "resumed"),
    [
        ("off", False),
        ("none", False),
        ("builtin", True),
        ("builtin:10", True),
        ("shared:cache:1m", True),
        ("builtin:10 shared:cache:1m", True),
        ("shared:cache:1m none", False),
    ],
)
def test_session_caches(
    serve: Serve, client: ssl.SSLContext, cache: str, resumed: bool
) -> None:
    settings = serve(f"ssl_session_cache {cache}; ssl_session_tickets off;")
    assert resumable(settings, client) == resumed
    assert set(str(settings.ssl_session_cache).split()) <= set(
        cache.replace("1m", str(1024 * 1024)).split()
    )


@pytest.mark.parametrize(
    ("mail", "server", "effective"),
    [
        ("", "", SessionCache("none")),
        ("shared:s:1m", "", SessionCache("on", None, ("s", 1048576))),
        ("shared:s:1m", "builtin", SessionCache("on", -1, ("s", 1048576))),
        ("shared:s:1m", "off", SessionCache("off", None, ("s", 1048576))),
        ("builtin:5", "shared:s:1m", SessionCache("on", None, ("s", 1048576))),
        ("builtin:5", "none", SessionCache("none")),
        ("off", "shared:s:1m builtin", SessionCache("on", -1, ("s", 1048576))),
    ],
)
def test_both_parts_of_the_session_cache_are_inherited(
    serve: Serve, mail: str, server: str, effective: SessionCache
) -> None:
    settings = serve(
        server and f"ssl_session_cache {server};",
        mail=mail and f"ssl_session_cache {mail};",
    )
    assert settings.ssl_session_cache == effective


def test_a_shared_cache_outlives_a_reload(serve: Serve, client: ssl.SSLContext) -> None:
    text = "ssl_session_cache shared:reload:1m; ssl_session_tickets {};"
    for tickets in ("on", "off"):
        before = serve(text.format(tickets))
        after = serve(text.format(tickets))
        assert before.context is not after.context
        assert resumable(before, client, after)


@pytest.mark.proves("ssl_session_timeout")
def test_sessions_last_as_long_as_told(serve: Serve, client: ssl.SSLContext) -> None:
    settings = serve("ssl_session_timeout 1h;")
    assert shake_hands(context(settings), client).session.ticket_lifetime_hint == 3600
    longest = serve("ssl_session_timeout 1000y;")
    assert shake_hands(context(longest), client).session.ticket_lifetime_hint > 3600


@pytest.mark.proves("ssl_session_ticket_key")
def test_ticket_keys_rotate(
    serve: Serve, client: ssl.SSLContext, files: Certificates
) -> None:
    files.write("old", os.urandom(48))
    files.write("new", os.urandom(80))
    old = serve("ssl_session_ticket_key old;")
    both = serve("ssl_session_ticket_key new; ssl_session_ticket_key old;")
    new = serve("ssl_session_ticket_key new;")
    assert resumable(old, client, both)
    assert resumable(both, client, new)
    assert not resumable(old, client, new)


@pytest.mark.parametrize("content", [None, b"", b"x" * 47, b"x" * 49, b"x" * 81])
def test_ticket_keys_that_are_none(
    serve: Serve, files: Certificates, content: bytes | None
) -> None:
    name = files.path("nothing")
    if content is not None:
        name = files.write("broken", content)
    files.write("good", os.urandom(80))
    keys = f"ssl_session_ticket_key good;\nssl_session_ticket_key {name};"
    with pytest.raises(ConfigErrors) as caught:
        serve(keys)
    if content is None:
        said = f'open() "{name}" failed (2: No such file or directory)'
        remedy = f"make one: openssl rand -out {name} 80"
    else:
        said = f'"{name}" must be 48 or 80 bytes'
        has = len(content) if len(content) <= 80 else "more than 80"
        remedy = f"it has {has}; for a new key, name a file that does not exist yet"
    main, end_of_mail = files.path("main"), 8
    assert messages(caught) == [f"{said} in {main}:{end_of_mail}"]
    # nginx's line names the brace; people are shown the directive.
    [error] = caught.value.messages
    source = SourceText(main, files.text("main"))
    shown = explanation(error, {main: source}).splitlines()
    assert shown[0] == f"  in {main}:7"
    assert shown[1].startswith(f"    7 | ssl_session_ticket_key {name};")
    blank = " " * len("ssl_session_ticket_key ")
    assert shown[2] == f"      | {blank}{'^' * len(name)} {remedy}"


def test_a_ticket_key_of_all_servers_is_complained_of_once(
    load: Load, files: Certificates
) -> None:
    server = f"starttls on; {PAIR}"
    with pytest.raises(ConfigErrors) as caught:
        load(f"ssl_session_ticket_key {files.path('none')};", server, server)
    assert len(messages(caught)) == 1


def test_to_make_a_missing_ticket_key_is_one_command(
    serve: Serve, files: Certificates
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        serve('ssl_session_ticket_key "a new key";')
    [error] = caught.value.messages
    command = (error.remedy or "").removeprefix("make one: ")
    subprocess.run(command, shell=True, check=True)
    serve('ssl_session_ticket_key "a new key";')
    assert os.path.getsize(files.path("a new key")) == 80


@pytest.mark.proves("ssl_client_certificate")
@pytest.mark.parametrize("wanted", ["on", "optional", "optional_no_ca"])
def test_client_certificates(serve: Serve, files: Certificates, wanted: str) -> None:
    settings = serve(f"ssl_verify_client {wanted}; ssl_client_certificate ca.pem;")
    done = shake_hands(context(settings), files.client(own="other"))
    found = openssl.peer_certificate(done.server)
    assert found is not None
    assert found.pem.decode() == files.text("other.pem")
    assert openssl.verify_result(done.server) == (0, "ok")
    done = shake_hands(context(settings), files.client())
    assert openssl.peer_certificate(done.server) is None


def test_without_verify_client_files_of_cas_are_not_opened(serve: Serve) -> None:
    serve("ssl_client_certificate no; ssl_trusted_certificate no; ssl_crl no;")


@pytest.mark.proves("ssl_trusted_certificate")
def test_trusted_cas_suffice(serve: Serve, files: Certificates) -> None:
    settings = serve("ssl_verify_client on; ssl_trusted_certificate ca.pem;")
    done = shake_hands(context(settings), files.client(own="other"))
    assert openssl.verify_result(done.server)[0] == 0


@pytest.mark.proves("ssl_verify_depth")
def test_verify_depth(serve: Serve, files: Certificates) -> None:
    child = files.ca.create_child_ca(key_type=KeyType.ECDSA)
    files.issue("deep", ca=child.create_child_ca(key_type=KeyType.ECDSA))
    text = "ssl_verify_client on; ssl_client_certificate ca.pem; "
    for depth, good in (("", False), ("ssl_verify_depth 2;", True)):
        settings = serve(text + depth)
        done = shake_hands(context(settings), files.client(own="deep"))
        assert (openssl.verify_result(done.server)[0] == 0) == good


@pytest.mark.proves("ssl_crl")
def test_a_crl_must_name_the_ca(serve: Serve, files: Certificates) -> None:
    """Without a list of its CA, a certificate is not known to be good."""
    config = files.write("ca.cnf", "[ca]\ndefault_ca=c\n[c]\ndatabase=index\n")
    files.write("index", "")
    stranger = trustme.CA(key_type=KeyType.ECDSA)
    stranger.cert_pem.write_to_path(files.path("stranger.pem"))
    stranger.private_key_pem.write_to_path(files.path("stranger.key"))
    make = ["openssl", "ca", "-gencrl", "-config", config, "-md", "sha256"]
    make += ["-crldays", "1", "-keyfile", "stranger.key", "-cert", "stranger.pem"]
    subprocess.run(
        [*make, "-out", "list"], check=True, cwd=files.directory, capture_output=True
    )
    settings = serve(
        "ssl_verify_client on; ssl_client_certificate ca.pem; ssl_crl list;"
    )
    done = shake_hands(context(settings), files.client(own="other"))
    assert openssl.verify_result(done.server) == (
        3,
        "unable to get certificate CRL",
    )


# -- sessions and client certificates ----------------------------------------------


SHARED = {
    "ticket key": "ssl_session_ticket_key tickets;",
    "two ticket keys": "ssl_session_ticket_key tickets; ssl_session_ticket_key second;",
    "cache": "ssl_session_cache shared:verify:1m; ssl_session_tickets off;",
    "key of the cache": "ssl_session_cache shared:verify:1m;",
}
"""How servers come to know the sessions of each other."""

STRICT = "ssl_verify_client on; ssl_trusted_certificate ca.pem;"


@pytest.fixture
def verifying(files: Certificates) -> Certificates:
    """Files of two CAs, of which one issued what the client shows."""
    files.write("tickets", b"k" * 80)
    files.write("second", b"s" * 48)
    stranger = trustme.CA(key_type=KeyType.ECDSA)
    stranger.cert_pem.write_to_path(files.path("stranger-ca.pem"))
    files.issue("stranger", ca=stranger)
    both = files.text("ca.pem") + files.text("stranger-ca.pem")
    files.write("both.pem", both)
    return files


@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED.keys())
@pytest.mark.parametrize(
    "lax",
    [
        "ssl_verify_client off;",
        "ssl_verify_client on; ssl_trusted_certificate stranger-ca.pem;",
        "ssl_verify_client on; ssl_client_certificate ca.pem; ssl_trusted_certificate stranger-ca.pem;",
        "ssl_verify_client on; ssl_trusted_certificate both.pem;",
        "ssl_verify_client optional; ssl_trusted_certificate ca.pem;",
        "ssl_verify_client optional_no_ca; ssl_trusted_certificate ca.pem;",
        "ssl_verify_client on; ssl_trusted_certificate ca.pem; ssl_verify_depth 9;",
    ],
)
def test_a_session_of_a_laxer_server_is_worthless_at_a_stricter_one(
    serve: Serve, verifying: Certificates, client: ssl.SSLContext, lax: str, shared: str
) -> None:
    client.load_cert_chain(
        verifying.path("stranger.pem"), verifying.path("stranger.key")
    )
    begun = shake_hands(context(serve(lax + shared)), client)
    strict = serve(STRICT + shared)
    done = shake_hands(context(strict), client, begun.session)
    assert not done.resumed
    assert openssl.verify_result(done.server)[0]


@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED.keys())
def test_a_revoked_client_does_not_come_back_by_its_session(
    serve: Serve, verifying: Certificates, client: ssl.SSLContext, shared: str
) -> None:
    """The list has a new entry; then the configuration is read again."""
    client.load_cert_chain(verifying.path("other.pem"), verifying.path("other.key"))
    text = f"{STRICT} ssl_crl revoked; {shared}"
    verifying.write("revoked", verifying.revoke())
    before = shake_hands(context(serve(text)), client)
    assert openssl.verify_result(before.server)[0] == 0
    assert shake_hands(context(serve(text)), client, before.session).resumed
    verifying.write("revoked", verifying.revoke("other"))
    after = shake_hands(context(serve(text)), client, before.session)
    assert not after.resumed
    assert openssl.verify_result(after.server) == (23, "certificate revoked")


@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED.keys())
def test_servers_that_ask_the_same_of_clients_know_their_sessions(
    serve: Serve, verifying: Certificates, client: ssl.SSLContext, shared: str
) -> None:
    client.load_cert_chain(verifying.path("other.pem"), verifying.path("other.key"))
    first = serve(f"{STRICT} ssl_crl revoked; {shared}", mail="ssl_ciphers ALL;")
    second = serve(f"{STRICT} ssl_crl revoked; {shared}")
    assert first.context is not second.context
    assert resumable(first, client, second)


def test_commands_about_client_certificates_keep_sessions_to_themselves(
    serve: Serve, verifying: Certificates, client: ssl.SSLContext
) -> None:
    """What OpenSSL reads by itself cannot be compared."""
    text = f"ssl_conf_command VerifyCAFile ca.pem; {SHARED['ticket key']}"
    settings = serve(text)
    assert resumable(settings, client)
    assert not resumable(settings, client, serve(text))
    assert not resumable(serve(SHARED["ticket key"]), client, settings)


# -- versions that OpenSSL refuses -------------------------------------------------


def old_client(files: Certificates, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client of the last century."""
    client = files.client()
    client.set_ciphers("ALL:@SECLEVEL=0")
    with catch_warnings():
        simplefilter("ignore", DeprecationWarning)
        client.minimum_version = client.maximum_version = version
    return client


@pytest.mark.parametrize(
    ("protocols", "ciphers", "warned"),
    [
        ("TLSv1 TLSv1.2", "HIGH:!aNULL:!MD5", "TLSv1"),
        ("TLSv1.1 TLSv1", "HIGH:!aNULL:!MD5:@SECLEVEL=1", "TLSv1 and TLSv1.1"),
        ("TLSv1 TLSv1.1", "HIGH:!aNULL:!MD5:@SECLEVEL=0", None),
        ("TLSv1.2 TLSv1.3", "HIGH:!aNULL:!MD5", None),
    ],
)
def test_versions_below_the_security_level_are_warned_of(
    load: Load, files: Certificates, protocols: str, ciphers: str, warned: str | None
) -> None:
    """And the warning is true: so ends a handshake; and so does the remedy."""
    server = f"starttls on; {PAIR} ssl_protocols {protocols}; ssl_ciphers {ciphers};"
    whole = load("", server, f"{server} protocol pop3;")
    level = context(whole.servers[0].ssl).security_level
    said = warnings(whole)
    if warned is None:
        assert said == []
    else:
        remedy = "ssl_ciphers HIGH:!aNULL:!MD5:@SECLEVEL=0;"
        text = f"{warned} cannot be used at OpenSSL's security level {level}"
        for number, (message, advice) in enumerate(said):
            assert message == f"{text} in {files.path('main')}:{6 + number}"
            assert advice == f"for clients that need them: {remedy}"
        assert len(said) == 2
    for name in set(protocols.split()) & {"TLSv1", "TLSv1.1"}:
        client = old_client(files, ssl.TLSVersion[name.replace(".", "_")])
        if warned is None:
            done = shake_hands(context(whole.servers[0].ssl), client)
            assert done.server.version() == name
        else:
            with pytest.raises(ssl.SSLError):
                shake_hands(context(whole.servers[0].ssl), client)


@pytest.mark.parametrize(
    ("directives", "remedy"),
    [
        ("ssl_ciphers HIGH@SECLEVEL=1;", "ssl_ciphers HIGH:@SECLEVEL=0;"),
        ("ssl_ciphers @SECLEVEL=1:HIGH;", "ssl_ciphers HIGH:@SECLEVEL=0;"),
        ("ssl_ciphers HIGH,@SECLEVEL=1,!MD5;", "ssl_ciphers HIGH,!MD5:@SECLEVEL=0;"),
        (
            "ssl_ciphers 'HIGH @SECLEVEL=2 !MD5';",
            'ssl_ciphers "HIGH !MD5:@SECLEVEL=0";',
        ),
        ("ssl_ciphers DEFAULT@SECLEVEL=1;", "ssl_ciphers DEFAULT:@SECLEVEL=0;"),
        (
            "ssl_ciphers HIGH:@SECLEVEL=0; ssl_conf_command CipherString HIGH:@SECLEVEL=1;",
            "ssl_conf_command CipherString HIGH:@SECLEVEL=0; (it overrules ssl_ciphers)",
        ),
        (
            "ssl_conf_command cipherstring @SECLEVEL=2:HIGH;",
            "ssl_conf_command cipherstring HIGH:@SECLEVEL=0; (it overrules ssl_ciphers)",
        ),
        (
            "ssl_conf_command CipherString ALL:@SECLEVEL=0; ssl_conf_command"
            " CipherString HIGH:@SECLEVEL=1; ssl_conf_command Options Bugs;",
            "ssl_conf_command CipherString HIGH:@SECLEVEL=0; (it overrules ssl_ciphers)",
        ),
    ],
)
def test_the_advice_names_what_decides_on_the_level(
    load: Load, files: Certificates, directives: str, remedy: str
) -> None:
    """And is right: with it, there is no warning, and the client is served."""
    server = f"starttls on; {PAIR} ssl_protocols TLSv1;"
    [(_, advice)] = warnings(load("", f"{server} {directives}"))
    assert advice == f"for clients that need them: {remedy}"
    advised, _, _ = remedy.partition("; (")
    name = advised.partition(" ")[0]
    others = [f"{each};" for each in directives.split(";")[:-1] if name not in each]
    whole = load("", f"{server} {' '.join(others)} {advised.removesuffix(';')};")
    assert warnings(whole) == []
    client = old_client(files, ssl.TLSVersion.TLSv1)
    done = shake_hands(context(whole.servers[0].ssl), client)
    assert done.server.version() == "TLSv1"


def test_of_inherited_versions_it_is_said_once(load: Load) -> None:
    whole = load(f"{PAIR} ssl_protocols TLSv1; starttls on;", "", "protocol pop3;")
    assert len(warnings(whole)) == 1


def test_a_command_may_lower_the_level(load: Load, files: Certificates) -> None:
    server = f"starttls on; {PAIR} ssl_protocols TLSv1.1;"
    command = 'ssl_conf_command CipherString "ALL:@SECLEVEL=0";'
    whole = load("", server + command)
    assert warnings(whole) == []
    client = old_client(files, ssl.TLSVersion.TLSv1_1)
    shake_hands(context(whole.servers[0].ssl), client)


@pytest.mark.proves("ssl_conf_command")
def test_commands_overrule_directives(
    serve: Serve, client: ssl.SSLContext, files: Certificates
) -> None:
    settings = serve(
        "ssl_session_tickets off; ssl_conf_command Options SessionTicket;"
        "ssl_conf_command Certificate other.pem; ssl_conf_command PrivateKey other.key;"
    )
    assert resumable(settings, client)
    done = shake_hands(context(settings), client)
    shown = done.client.getpeercert(binary_form=True)
    assert shown == ssl.PEM_cert_to_DER_cert(files.text("other.pem"))


@pytest.mark.proves("ssl_certificate_compression")
def test_certificate_compression_is_there_or_warned_of(load: Load) -> None:
    whole = load("", f"starttls on; {PAIR} ssl_certificate_compression on;")
    said = [str(message) for message in whole.messages]
    if not has(ssl_h.SSL_CTX_compress_certs):
        assert said == [
            '"ssl_certificate_compression" is not supported on this platform, ignored'
        ]


def warnings(whole: Configuration) -> list[tuple[str, str | None]]:
    return [(str(message), message.remedy) for message in whole.messages]


def test_an_expired_certificate_is_used_and_said_once(
    load: Load, files: Certificates
) -> None:
    files.issue("old", ends=datetime(2001, 2, 3, 23, 59, 59, tzinfo=UTC))
    old = "starttls on; ssl_certificate old.pem; ssl_certificate_key old.key;"
    whole = load("", old, f"{old} ssl_ciphers HIGH;", f"{old} protocol pop3;")
    assert warnings(whole) == [
        (
            f'certificate "{files.path("old.pem")}" has expired on 2001-02-03',
            "clients will refuse it: renew it, then reload",
        )
    ]
    assert len({server.ssl.context for server in whole.servers}) == 3
    client = files.client()
    with pytest.raises(ssl.SSLCertVerificationError, match="has expired"):
        shake_hands(context(whole.servers[0].ssl), client)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    shake_hands(context(whole.servers[0].ssl), client)


def test_a_certificate_of_the_future_is_used_and_said(
    load: Load, files: Certificates
) -> None:
    begins = datetime(2101, 12, 1, tzinfo=UTC)
    files.issue("new", begins=begins, ends=begins.replace(year=2102))
    whole = load(
        "", "starttls on; ssl_certificate new.pem; ssl_certificate_key new.key;"
    )
    assert warnings(whole) == [
        (
            f'certificate "{files.path("new.pem")}" is not valid before 2101-12-01',
            "clients will refuse it until then; is this machine's clock right?",
        )
    ]


def test_each_certificate_that_has_expired_is_said(
    load: Load, files: Certificates
) -> None:
    ends = datetime(2001, 2, 3, tzinfo=UTC)
    files.issue("old-rsa", KeyType.RSA, ends=ends)
    files.issue("old-ec", ends=ends)
    server = f"""starttls on;
        ssl_certificate old-rsa.pem; ssl_certificate_key old-rsa.key;
        ssl_certificate "data:{files.text("old-ec.pem")}"; ssl_certificate_key old-ec.key;"""
    assert [text for text, _ in warnings(load("", server))] == [
        f'certificate "{files.path("old-rsa.pem")}" has expired on 2001-02-03',
        'certificate "data:..." has expired on 2001-02-03',
    ]


def test_a_certificate_that_is_valid_to_the_end_of_time_is_not_said(
    load: Load, files: Certificates
) -> None:
    # RFC 5280, section 4.1.2.5: no date of expiry.
    files.issue("lasting", ends=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    pair = "ssl_certificate lasting.pem; ssl_certificate_key lasting.key;"
    assert warnings(load("", f"starttls on; {pair}")) == []


def test_a_python_that_cannot_is_a_configuration_error(
    serve: Serve, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "OpenSSL 1.1.1 is not supported, TLS needs OpenSSL 3.0"
    monkeypatch.setattr("mailproxy.net.openssl.contexts.unsupported", lambda: reason)
    load(PAIR, "")
    with pytest.raises(ConfigErrors) as caught:
        serve()
    assert messages(caught) == [reason]


def test_secrets_do_not_show() -> None:
    assert "x" not in repr(Key("x"))
    assert "x" not in repr(PasswordFile("f", (b"x",)))
    assert str(Key("data:-----BEGIN PRIVATE KEY-----")) == "data:..."

"""curl, swaks and openssl s_client as clients."""

import subprocess
from collections.abc import Sequence

import pytest

from tests.peers.dovecot import PASSWORD, Dovecot
from tests.peers.messages import message
from tests.peers.postfix import DOMAIN
from tests.peers.site import Site, plain
from tests.peers.test_smtp import wait_for_mail
from tests.processes import need_program


def run(command: Sequence[str], stdin: bytes = b"") -> bytes:
    """What a program prints; fails with all of it when the program fails."""
    ended = subprocess.run(command, input=stdin, capture_output=True, timeout=60)
    assert ended.returncode == 0, (ended.args, ended.stdout, ended.stderr)
    return ended.stdout


def curl(proxy: Site, user: str, *arguments: str) -> bytes:
    login = ["--cacert", proxy.ca, "--user", f"{user}:{PASSWORD}"]
    return run(
        [
            need_program("curl"),
            "--silent",
            "--show-error",
            "--max-time",
            "30",
            *login,
            *arguments,
        ]
    )


@pytest.mark.parametrize(
    ("scheme", "port", "more"),
    [("imap", "imap", []), ("imap", "imap", ["--ssl-reqd"]), ("imaps", "imaps", [])],
    ids=["plain", "starttls", "tls"],
)
def test_curl_reads_mail_by_imap(
    scheme: str, port: str, more: list[str], proxy: Site, store: Dovecot
) -> None:
    sent = message(100_000, "curl")
    user = f"curl-{port}-{len(more)}"
    store.deliver(user, sent)
    url = f"{scheme}://localhost:{proxy.ports[port]}/INBOX;MAILINDEX=1"
    assert curl(proxy, user, url, *more) == sent


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_curl_logs_in_by_sasl(mechanism: str, proxy: Site) -> None:
    url = f"imap://localhost:{proxy.ports['imap']}"
    answer = curl(
        proxy, "curl", url, "--login-options", f"AUTH={mechanism}", "--request", "NOOP"
    )
    assert answer == b""


@pytest.mark.parametrize(
    ("scheme", "port", "more"),
    [("pop3", "pop3", []), ("pop3", "pop3", ["--ssl-reqd"]), ("pop3s", "pop3s", [])],
    ids=["plain", "starttls", "tls"],
)
def test_curl_reads_mail_by_pop3(
    scheme: str, port: str, more: list[str], proxy: Site, store: Dovecot
) -> None:
    sent = message(100_000, "curl")
    user = f"curl-{port}-{len(more)}"
    store.deliver(user, sent)
    url = f"{scheme}://localhost:{proxy.ports[port]}/1"
    assert curl(proxy, user, url, *more) == sent


@pytest.mark.usefixtures("smtp_backend")
@pytest.mark.parametrize(
    ("scheme", "port", "more"),
    [("smtp", "smtp", []), ("smtp", "smtp", ["--ssl-reqd"]), ("smtps", "smtps", [])],
    ids=["plain", "starttls", "tls"],
)
def test_curl_submits_mail(
    scheme: str, port: str, more: list[str], proxy: Site, store: Dovecot
) -> None:
    subject = f"curl {scheme} {more}"
    sent = message(100_000, subject)
    (store.mail / "upload").write_bytes(sent)
    envelope = ["--mail-from", f"eve@{DOMAIN}", "--mail-rcpt", f"bob@{DOMAIN}"]
    upload = ["--upload-file", str(store.mail / "upload")]
    curl(
        proxy,
        "eve",
        f"{scheme}://localhost:{proxy.ports[port]}",
        *envelope,
        *upload,
        *more,
    )
    assert wait_for_mail(store, "bob", subject).endswith(sent.replace(b"\r\n", b"\n"))


@pytest.mark.usefixtures("smtp_backend")
@pytest.mark.parametrize(
    ("port", "more"),
    [
        ("smtp", ["--auth", "PLAIN"]),
        ("smtp", ["--auth", "LOGIN", "--tls"]),
        ("smtp", ["--auth", "CRAM-MD5"]),
        ("smtps", ["--auth", "PLAIN", "--tls-on-connect"]),
        ("submission", ["--auth", "LOGIN", "--tls"]),
        ("smtp", ["--auth", "PLAIN", "--pipeline"]),
    ],
    ids=["plain", "starttls", "cram-md5", "tls", "submission", "pipelined"],
)
def test_swaks_submits_mail(
    port: str, more: list[str], proxy: Site, store: Dovecot
) -> None:
    subject = f"swaks {port} {' '.join(more)}"
    envelope = ["--from", f"ann@{DOMAIN}", "--to", f"bob@{DOMAIN}"]
    login = ["--auth-user", "ann", "--auth-password", PASSWORD]
    server = [
        "--server",
        "127.0.0.1",
        "--port",
        str(proxy.ports[port]),
        "--timeout",
        "30s",
    ]
    run(
        [
            need_program("swaks"),
            *server,
            *envelope,
            *login,
            *more,
            "--h-Subject",
            subject,
        ]
    )
    assert b"This is a test mailing" in wait_for_mail(store, "bob", subject)


@pytest.mark.parametrize(
    ("port", "starttls", "say", "answer"),
    [
        ("imap", "imap", f"a LOGIN ann {PASSWORD}\nb LOGOUT\n", b"b OK"),
        ("imaps", "", f"a LOGIN ann {PASSWORD}\nb LOGOUT\n", b"b OK"),
        ("pop3", "pop3", f"USER ann\nPASS {PASSWORD}\nQUIT\n", b"+OK Logging out"),
        ("pop3s", "", f"USER ann\nPASS {PASSWORD}\nQUIT\n", b"+OK Logging out"),
    ],
)
def test_openssl(
    port: str, starttls: str, say: str, answer: bytes, proxy: Site
) -> None:
    where = ["-connect", f"localhost:{proxy.ports[port]}", "-CAfile", proxy.ca]
    how = [
        "-quiet",
        "-verify_return_error",
        "-crlf",
        "-no_ign_eof",
        "-servername",
        "localhost",
    ]
    upgrade = ["-starttls", starttls] if starttls else []
    command = [need_program("openssl"), "s_client", *where, *how, *upgrade]
    assert answer in converse(command, say, answer)


@pytest.mark.usefixtures("smtp_backend")
@pytest.mark.parametrize(("port", "starttls"), [("smtp", "smtp"), ("smtps", "")])
def test_openssl_with_smtp(port: str, starttls: str, proxy: Site) -> None:
    say = f"EHLO x\nAUTH PLAIN {plain('ann')}\nquit\n"
    test_openssl(port, starttls, say, b"221 2.0.0", proxy)


def converse(command: Sequence[str], say: str, answer: bytes) -> bytes:
    """Say line by line, each after an answer to the one before; what was heard."""
    heard = b""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(say.encode())
        client.stdin.flush()
        while line := client.stdout.readline():
            heard += line
            if answer in line:
                break
        client.stdin.close()
    return heard

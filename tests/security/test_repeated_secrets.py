"""Peers that repeat a secret: no log shows it, at any level, in any usual spelling."""

from __future__ import annotations

import base64

import pytest

from tests.play import play

FAILED = """
        S: * BAD internal server error
        S: ⟨close⟩
        L: [error] upstream sent invalid response: "..." while reading response from upstream, …, login: "raw", upstream: 127.0.0.1:9143
"""


@pytest.mark.parametrize(
    ("password", "repeated"),
    [
        ("RawPassw0rd", "failed RawPassw0rd"),
        ("RawPassw0rd", 'LOGIN "raw" "RawPassw0rd" failed'),
        ("RawPassw0rd", "failed RAWPASSW0RD"),
        ("RawPassw0rd", "failed " + base64.b64encode(b"RawPassw0rd").decode()),
        ("RawPassw0rd", base64.b64encode(b"\0raw\0RawPassw0rd").decode()),
        ("Raw%Passw0r", "failed Raw%25Passw0r"),
        ('Raw"Passw0r', 'LOGIN "raw" "Raw\\"Passw0r" failed'),
    ],
)
@pytest.mark.parametrize("how", ["quoted", "literal"])
def test_of_an_imap_backend(password: str, repeated: str, how: str) -> None:
    request = password.replace("%", "%25")
    login = f'P: a LOGIN "raw" "{password}"'
    if how == "literal" or '"' in password:
        login = f"P: a LOGIN {{3}}\nB: +\nP: raw {{11}}\nB: +\nP: {password}"
    play(
        f"""
        S: * OK IMAP4 ready
        C: a LOGIN {{3+}}
        C| raw {{11+}}
        C| {password}
        Q: plain raw {request}
        A: OK
        B: * OK ready
        {login}
        B: a NO {repeated}
        {FAILED}
        """,
        f"protocol imap; proxy_login {how};",
    )


def test_of_a_pop3_backend() -> None:
    play(
        """
        S: +OK POP3 ready
        C: USER u
        S: +OK
        C: PASS PopPassw0rd
        Q: plain u PopPassw0rd
        A: OK
        B: +OK
        P: USER u
        B: +OK
        P: PASS PopPassw0rd
        B: -ERR wrong PopPassw0rd
        S: -ERR internal server error
        S: ⟨close⟩
        L: [error] upstream sent invalid response: "..." while reading response from upstream, …, login: "u", upstream: 127.0.0.1:9143
        """,
        "protocol pop3;",
    )


def test_of_an_auth_server() -> None:
    play(
        """
        S: * OK IMAP4 ready
        C: a LOGIN u BadPassw0rd
        Q: plain u BadPassw0rd
        A: NO No such login BadPassw0rd go away
        S: a NO No such login BadPassw0rd go away
        L: [info] client login failed: "..." while in http auth state, …, login: "u"
        """,
        "protocol imap;",
    )


def test_other_texts_are_shown() -> None:
    play(
        """
        S: * OK IMAP4 ready
        C: a LOGIN u BadPassw0rd
        Q: plain u BadPassw0rd
        A: NO wrong password
        S: a NO wrong password
        L: [info] client login failed: "wrong password" while in http auth state, …, login: "u"
        """,
        "protocol imap;",
    )

"""Auth requests in the short form of scripts: `Q: plain u p`."""

import re

_EMPTY = '""'
_NAMES = {"plain", "apop", "cram-md5", "external", "none", "xoauth2", "oauthbearer"}
_TLS = [
    "Auth-SSL: on",
    "Auth-SSL-Protocol: TLSv1.3",
    "Auth-SSL-Cipher: TLS_AES_256_GCM_SHA384",
]


def expand(text: str, protocol: str) -> list[str]:
    """The lines of a request that a `Q:` line means.

    `METHOD USER PASSWORD [salt] [tls] [#N]`; `""` is an empty value. `salt` adds
    Auth-Salt, `tls` what is said of a client in TLS, `#2` makes it the second attempt.
    Other texts are lines themselves.
    """
    method, *words = text.split(" ")
    if method not in _NAMES:
        return [text]
    user, password, *more = ("" if word == _EMPTY else word for word in words)
    attempts = [word[1:] for word in more if word.startswith("#")]
    return [
        "GET /auth HTTP/1.0",
        "Host: 127.0.0.1",
        f"Auth-Method: {method}",
        f"Auth-User: {user}",
        f"Auth-Pass: {password}",
        *(["Auth-Salt: <⟨salt⟩@mx.test>"] if "salt" in more else []),
        f"Auth-Protocol: {protocol}",
        f"Auth-Login-Attempt: {attempts[0] if attempts else 1}",
        "Client-IP: 127.0.0.1",
        *(["Client-Host: [UNAVAILABLE]"] if protocol == "smtp" else []),
        *(_TLS if "tls" in more else []),
    ]


def shorten(lines: list[str], protocol: str) -> list[str]:
    """A request with its first lines in the short form where they have one."""
    whole = [re.sub("␠$", " ", line) for line in lines]
    values = dict(line.split(": ", 1) for line in whole if ": " in line)
    names = ("Auth-Method", "Auth-User", "Auth-Pass")
    words = [values.get(name, "") or _EMPTY for name in names]
    words += ["salt"] if "Auth-Salt" in values else []
    words += ["tls"] if "Auth-SSL" in values and words[0] != "none" else []
    attempt = values.get("Auth-Login-Attempt", "1")
    words += [f"#{attempt}"] if attempt != "1" else []
    short = " ".join(words)
    usual = expand(short, protocol)
    return [short, *lines[len(usual) :]] if whole[: len(usual)] == usual else lines

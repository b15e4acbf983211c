"""Regular expressions take no longer than their text is long.

One that backtracks over a peer's octets stops a worker with all its sessions: its
time grows with the square of a line's length, or worse. Every pattern of the package
is found and tried, in the way that it is used, against texts made of its own parts;
those over a peer's octets have a bound for their length besides.
"""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from re import _parser as sre

import pytest

import mailproxy

ROOT = Path(mailproxy.__file__).parent
METHODS = {"match", "fullmatch", "search", "sub", "findall", "finditer", "split"}
Use = tuple[str, re.Pattern[str] | re.Pattern[bytes], str]
"""Name, pattern, and the method by which it is used."""

PEERS = {
    "log.record._UNSAFE": "client_buffer, proxy_buffer, MAX_HEADER: what they held",
    "log.record._CONTROL": "the same",
    "log.record._HALF_ESCAPE": "_MAX_PROPERTY",
    "log.record._BROKEN_END": "MAX_LINE",
    "auth.http_answer._HEADERS": "MAX_HEADER",
    "auth.http_answer._HOST": "MAX_HEADER",
    "auth.http_answer._MUTE_STATUS": "MAX_HEADER",
    "auth.http_answer._NAME": "MAX_HEADER",
    "auth.http_answer._SECRET": "MAX_SHOWN, or MAX_HEADER",
    "auth.http_answer._SUCCESS": "MAX_HEADER",
    "auth.http_exchange._END": "MAX_HEADER",
    "auth.http_request._UNSAFE": "client_buffer, or a certificate's 100 KB in OpenSSL",
    "mail.backend._FAREWELL": "proxy_buffer",
    "mail.commands._REVEALING": "client_buffer",
    "mail.forward._TELLABLE": "255, the length of a name (RFC 1035, 2.3.4)",
    "mail.forward._TTL": "client_buffer",
    "mail.imap_backend._BYE": "proxy_buffer",
    "mail.imap_backend._CAPABILITIES": "proxy_buffer",
    "mail.imap_login._QUOTABLE": "MAX_COMMAND",
    "mail.imap_backend._REFUSAL": "proxy_buffer",
    "mail.imap_backend.HEADER_REFUSAL": "proxy_buffer",
    "mail.imap_commands._COMMAND": "imap_client_buffer",
    "mail.imap_commands._TAG": "imap_client_buffer",
    "mail.imap_syntax._ARGUMENT": "imap_client_buffer",
    "mail.imap_syntax._ESCAPED": "imap_client_buffer",
    "mail.imap_syntax._STRING": "imap_client_buffer",
    "mail.pop3_backend.HEADER_REFUSAL": "proxy_buffer",
    "mail.smtp_backend.HEADER_REFUSAL": "proxy_buffer",
    "mail.pop3_backend._TEMPORARY": "proxy_buffer",
    "mail.pop3_backend._XCLIENT": "proxy_buffer",
    "mail.sasl.clients._ESCAPED": "client_buffer",
    "mail.sasl.clients._STRAY": "client_buffer",
    "mail.sasl.clients._XOAUTH2": "client_buffer",
    "mail.smtp_login._NOT_XTEXT": "smtp_client_buffer",
    "mail.smtp_login._OFFER": "proxy_buffer",
    "mail.ssl_values._HOST": "253, the length of a name",
    "mail.ssl_values._PIN": "the operator's own file",
    "mail.trace._MECHANISM": "client_buffer",
    "mail.trace._NAME": "client_buffer",
    "mail.trace._PROMPT": "proxy_buffer",
    "mail.trace._TAGGED_NAME": "client_buffer",
    "manager.probes.imap._BYE": "MAX_LINE",
    "manager.probes.imap._CAPABILITY": "MAX_LINE",
    "manager.probes.imap._CODE": "MAX_LINE",
    "manager.probes.imap._GREETING": "MAX_LINE",
    "manager.probes.imap._OK": "MAX_LINE",
    "manager.probes.smtp._LINE": "MAX_LINE",
    "net.dns_messages._HOST_NAME": "255, the length of a name (RFC 1035, 2.3.4)",
    "net.dns_messages._SERVICE_NAME": "255, the length of a name (RFC 1035, 2.3.4)",
    "net.openssl.certificates._ESCAPED": "a certificate's 100 KB in OpenSSL",
    "net.openssl.certificates._HEX": "a certificate's 100 KB in OpenSSL",
    "net.openssl.clients._HASHED": "255, the length of a file's name",
    "net.openssl.names._NAME": "64 KiB, a client's hello in OpenSSL",
    "net.openssl.errors._TEXT": "256, of which OpenSSL makes a text",
}
"""The patterns that see what a peer has sent, and what limits its length."""
OWN = {
    "mail.proxy._PORT": "the operator's own file",
    "mail.proxy._WITH_PORT": "the operator's own file",
    "mail.ssl_values._VARIABLE": "the operator's own file",
    "mail.upstream._OPEN": "the operator's own file",
    "mail.upstream._PART": "the operator's own file",
    "net.openssl.pem_files._PEM": "the operator's own files, of 1 MiB at most",
    "conf.words._LUA": "the operator's own file; an open [[ in Lua is looked for once each",
    "conf.elsewhere:\\s+\\|": "a text in the same file",
    "mail.match._HEXADECIMAL": "the operator's own file",
    "mail.ssl_context:(?i)(verify|requestca|clientca|chainca)": "the operator's own file",
    "mail.ssl_context:[:,; ]*@SECLEVEL=\\d+": "the operator's own file",
    "net.openssl.portable._OTHER_GROUP": "the operator's own file",
    "net.openssl.portable._SEVERAL": "the operator's own file",
    "net.openssl.portable_files._PEM": "the operator's own file",
    "net.openssl.errors:(\\w+)=(\\d+)": "a text in the same file",
    "net.openssl.library:(\\w+)=(\\w+)": "a text in the same file",
}
"""Patterns that are slow over texts that they never see."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for found in pkgutil.walk_packages([str(ROOT)], "mailproxy."):
        if found.name not in ("mailproxy.__main__", "mailproxy._core"):
            importlib.import_module(found.name)
            source = ROOT.parent.joinpath(*found.name.split("."))
            source = (
                source / "__init__.py" if found.ispkg else source.with_suffix(".py")
            )
            yield found.name, ast.parse(source.read_bytes())


def short(name: str) -> str:
    return name.removeprefix("mailproxy.")


@functools.cache
def uses() -> list[Use]:
    """Every pattern of the package, with each of the methods that are called of it."""
    found: list[Use] = []
    for module, tree in modules():
        found += named(module, tree)
        found += written_in_place(module, tree)
    return found


def named(module: str, tree: ast.Module) -> Iterator[Use]:
    """The patterns that a module holds, alone or in a dictionary."""
    methods: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            owner = node.value
            if isinstance(owner, ast.Subscript):
                owner = owner.value
            if isinstance(owner, ast.Name):
                methods.setdefault(owner.id, set()).add(node.attr)
    for name, value in vars(importlib.import_module(module)).items():
        held = value.values() if isinstance(value, dict) else [value]
        for each in held:
            if isinstance(each, re.Pattern):
                for method in methods.get(name, {"search"}):
                    yield f"{short(module)}.{name}", each, method


def written_in_place(module: str, tree: ast.Module) -> Iterator[Use]:
    """The patterns in calls such as `re.fullmatch("x", text)`."""
    for node in ast.walk(tree):
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.func.attr in METHODS
        ):
            continue
        pattern, *_ = node.args
        text = pattern.value if isinstance(pattern, ast.Constant) else None
        if isinstance(text, str):
            yield f"{short(module)}:{text}", re.compile(text), node.func.attr
        elif isinstance(text, bytes):
            shown = text.decode("latin-1")
            yield f"{short(module)}:{shown}", re.compile(text), node.func.attr
        else:
            assert short(module) == "log.directive", "whose pattern is it?"
            # filter=NAME:~PATTERN is the operator's own.


def parts(tree: object) -> Iterator[str]:
    """The literal texts of a parsed pattern, and a character of each class."""
    run = ""
    for code, value in tree:  # type: ignore[attr-defined]  # re has no public one
        if code is sre.LITERAL:
            run += chr(value)
            continue
        if run:
            yield run
        run = ""
        if code is sre.NOT_LITERAL or code is sre.ANY:
            yield "a"
        elif code is sre.IN:
            yield from members(value)
        else:
            yield from nested(value)
    if run:
        yield run


def members(value: list[tuple[object, object]]) -> Iterator[str]:
    if value[0][0] is sre.NEGATE:
        yield "~"
    for code, what in value:
        if code is sre.LITERAL:
            yield chr(what)  # type: ignore[arg-type]  # as the code says
        elif code is sre.RANGE:
            yield chr(what[0])  # type: ignore[index]
        elif code is sre.CATEGORY:
            yield from "a1 "


def nested(value: object) -> Iterator[str]:
    if isinstance(value, sre.SubPattern):
        yield from parts(value)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from nested(each)


def attacks(pattern: re.Pattern[str] | re.Pattern[bytes]) -> Iterator[list[str]]:
    """Beginning, what is repeated, and end."""
    source = pattern.pattern
    is_text = isinstance(source, str)
    parsed = sre.parse(source, pattern.flags & ~(0 if is_text else re.UNICODE))
    pieces = [*dict.fromkeys(parts(parsed))][:9]
    repeated = [*pieces, *map("".join, itertools.permutations(pieces[:6], 2))]
    for middle in repeated:
        for first in ["", *pieces] if len(middle) == 1 else [""]:
            for last in ("", "\0"):
                yield [first, middle, last]


def seconds(call: Callable[[], object]) -> float:
    """The CPU time of this thread: what other programs do is not in it."""
    before = time.thread_time()
    call()
    return time.thread_time() - before


def is_slow(pattern: re.Pattern[str] | re.Pattern[bytes], method: str) -> str:
    """The text for which time grows faster than length; empty if there is none."""

    def run(attack: list[str], size: int) -> float:
        first, middle, last = attack
        text = first + middle * (size // len(middle)) + last
        octets = text.encode("utf-8", "surrogatepass")
        subject = text if isinstance(pattern.pattern, str) else octets
        called = getattr(pattern, method)
        if method == "sub":
            return seconds(lambda: called(lambda _: subject[:0], subject))
        if method == "finditer":
            return seconds(lambda: list(called(subject)))
        return seconds(lambda: called(subject))

    def grows(attack: list[str]) -> bool:
        # Four times the text is four times the time, or 16 times; or endless.
        if run(attack, 20) > 0.02:
            return True
        each = max(run(attack, 1024), 1e-4)
        return any(run(attack, times * 1024) > 3 * times * each for times in (4, 16))

    for attack in attacks(pattern):
        # The machine may have been busy with us, too; not three times in a row.
        if grows(attack) and grows(attack) and grows(attack):
            return repr(attack)
    return ""


@pytest.mark.parametrize(
    ("name", "pattern", "method"),
    [
        pytest.param(*use, id=f"{use[0]}.{use[2]}")
        for use in uses()
        if use[0] not in OWN
    ],
)
def test_time_grows_with_length_and_no_faster(
    name: str, pattern: re.Pattern[str] | re.Pattern[bytes], method: str
) -> None:
    assert is_slow(pattern, method) == ""


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        # As it was in mail/imap.py.
        (rb"(?i)\[CAPABILITY [^\]]*(?<= )LITERAL\+(?=[ \]])", "search"),
        (rb"([A-Za-z]+)(?= |$)", "search"),
        (r"(?:a|a)*b", "match"),
        (r"(x+x+)+y", "match"),
        (r"\s+$", "search"),
        (r"\w*\d*\w*!", "match"),
    ],
)
def test_slow_ones_are_found(pattern: str | bytes, method: str) -> None:
    assert is_slow(re.compile(pattern), method) != ""


def test_every_pattern_over_a_peers_octets_has_a_bound() -> None:
    rooms = ("auth", "log.record", "mail", "manager.probes", "net")
    found = {name for name, _, _ in uses() if name.startswith(rooms)}
    assert found - set(OWN) == set(PEERS)

"""The arguments of the TLS directives."""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import cast

from mailproxy import outside
from mailproxy.conf.directive import Reading, Value
from mailproxy.conf.tree import ConfigError, Directive, Word, encode
from mailproxy.conf.values import (
    KIB,
    c_string,
    choice,
    flag,
    parse_number,
    parse_seconds,
    parse_size,
    shown,
)
from mailproxy.mail.load_state import load_state
from mailproxy.net.certificate_cache import NO_CERTIFICATE_CACHE, CacheLimits

MAX_PASSWORD = 4096
"""Octets of a line of `ssl_password_file`, with its end (nginx:
NGX_SSL_PASSWORD_BUFFER_SIZE)."""
MAX_PASSWORD_FILE = 1024 * KIB
"""Octets of `ssl_password_file`."""
MIN_ZONE_PAGES = 8
"""Memory pages of a shared session cache, as in nginx."""
MAX_NAMES = 256
"""Names of backends that a worker remembers, because the same ones come again."""
MAX_ALPN = 255
"""Octets of a protocol's name (RFC 7301, section 3.1)."""

_PIN = re.compile(r"[0-9A-Fa-f]{64}")
_HOST = re.compile(
    r"(?=.{1,253}\Z)(?:[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*|[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*)"
)
"""What may be looked for in a certificate: a name, or an IP address."""


@dataclass(frozen=True)
class Key:
    """A private key of `ssl_certificate_key`; it may be written out as ``data:PEM``."""

    source: str = field(repr=False)

    def __str__(self) -> str:
        return shown(self.source)


@dataclass(frozen=True)
class PasswordFile:
    """The passwords in the file of `ssl_password_file`."""

    path: str
    passwords: tuple[bytes, ...] = field(repr=False)

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class SessionCache:
    """Where TLS sessions are kept; a part that is None is inherited."""

    mode: str | None = None
    """off: no session is resumed; none: none is kept, but clients may try to resume
    one; on."""
    builtin: int | None = None
    """Maximum number of sessions in each worker's own cache; -1: OpenSSL's default."""
    shared: tuple[str, int] | None = None
    """Name of the memory that all workers share for them, and its size in octets."""

    def __str__(self) -> str:
        parts = [self.mode] if self.mode and self.mode != "on" else []
        if self.builtin is not None:
            parts.append("builtin" + (f":{self.builtin}" if self.builtin >= 0 else ""))
        if self.shared is not None:
            parts.append("shared:{}:{}".format(*self.shared))
        return " ".join(parts)

    def within(self, outer: SessionCache) -> SessionCache:
        """Return the cache of a block, with what it inherits from the one around it."""
        cache = self
        if cache.mode is None:
            cache = replace(cache, mode=outer.mode, builtin=outer.builtin)
        if cache.shared is None and outer.shared is not None:
            cache = replace(cache, shared=outer.shared)
        return cache


NO_CACHE = SessionCache(mode="none")
"""The default."""


def _parse_session_cache(found: Directive, reading: Reading) -> SessionCache:
    before = reading.block.given.get(found.name)
    cache = SessionCache() if before is None else cast("SessionCache", before.value)
    for word in found.args:
        kind, colon, rest = c_string(word.value).partition(":")
        try:
            if kind in ("off", "none") and not colon:
                cache = replace(cache, mode=kind, builtin=None)
            elif kind == "builtin":
                size = parse_number(rest) if colon else -1
                cache = replace(cache, mode="on", builtin=size)
            elif kind == "shared":
                cache = replace(cache, shared=_parse_zone(rest))
            else:
                raise ValueError("invalid value")
        except ValueError:
            raise ConfigError(
                f'invalid session cache "{word.value}"',
                word,
                "accepted are off, none, builtin, builtin:1000, shared:mail:10m",
            ) from None
        if kind != "shared" or cache.shared is None:
            continue
        _declare_zone(*cache.shared, word, reading)
    if cache.shared is not None and cache.mode is None:
        cache = replace(cache, mode="on")
    return cache


def _declare_zone(name: str, size: int, word: Word, reading: Reading) -> None:
    """Record the size of a zone, which must be the same wherever its name is used.

    Raises:
      ConfigError: the size differs, or is too small.
    """
    if size < MIN_ZONE_PAGES * mmap.PAGESIZE:
        raise ConfigError(f'session cache "{word.value}" is too small', word)
    declared = load_state(reading).zone_sizes.setdefault(name, size)
    if size != declared:
        raise ConfigError(
            f'the size {size} of shared memory zone "{name}" '
            f"conflicts with already declared size {declared}",
            word,
        )


def _parse_zone(name_and_size: str) -> tuple[str, int]:
    name, colon, size = name_and_size.partition(":")
    if not name or not colon:
        raise ValueError("invalid value")
    return name, parse_size(size)


def _parse_password_file(found: Directive, reading: Reading) -> PasswordFile:
    word = found.words[1]
    path = reading.in_directory(c_string(word.value))
    try:
        content = outside.begin(path, MAX_PASSWORD_FILE + 1)
        lines = content.split(b"\n")
        if any(len(line) >= MAX_PASSWORD for line in lines):
            raise ConfigError(f'too long line in "{path}"', word)
        if len(content) > MAX_PASSWORD_FILE:
            raise outside.too_large()
    except outside.FileError as error:
        raise ConfigError(
            f'{error.call}() "{path}" failed', word, error=error
        ) from None
    passwords = tuple(filter(None, (line.removesuffix(b"\r") for line in lines)))
    return PasswordFile(path, passwords or (b"",))


def _parse_ssl(found: Directive, reading: Reading) -> bool:
    enabled = flag.parse(found, reading)
    reading.warn(
        'the "ssl" directive is deprecated, use the "listen ... ssl" directive instead',
        found,
    )
    starttls = reading.block.given.get("starttls")
    if enabled and starttls is not None and starttls.value != "off":
        raise ConfigError('"starttls" directive conflicts with "ssl on"', found)
    return enabled


_starttls_choice = choice("off", "on", "only")


def _parse_starttls(found: Directive, reading: Reading) -> str:
    chosen = _starttls_choice.parse(found, reading)
    given = reading.block.given.get("ssl")
    if chosen != "off" and given is not None and given.value:
        raise ConfigError('"ssl" directive conflicts with "starttls"', found)
    return chosen


_ELSEWHERE = ("data:", "engine:", "store:")
"""Prefixes of certificates and keys that are in no file."""
_SERVER_NAME = "ssl_server_name"
"""The only variable: the name that a client asks for by SNI."""
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", re.ASCII)


def has_variable(source: str) -> bool:
    """Whether a certificate or key is in a file for each name."""
    return not source.startswith(_ELSEWHERE) and _VARIABLE.search(source) is not None


def _parse_source(found: Directive) -> str:
    """The argument of `ssl_certificate` or `ssl_certificate_key`.

    Raises:
      ConfigError: it has an unknown variable.
    """
    word = found.words[1]
    source = c_string(word.value)
    if has_variable(source):
        for match in _VARIABLE.finditer(source):
            name = match[1] or match[2]
            if name != _SERVER_NAME:
                raise ConfigError(
                    f'unknown "{name}" variable', word, f"known is ${_SERVER_NAME}"
                )
    return source


def _parse_certificate_cache(found: Directive, _: Reading) -> CacheLimits:
    """Parse the limits (nginx: ngx_stream_ssl_certificate_cache)."""
    limits = NO_CERTIFICATE_CACHE
    off = False
    for word in found.args:
        name, equals, value = c_string(word.value).partition("=")
        try:
            if name == "off" and not equals:
                off = True
            elif name == "max" and equals and (most := parse_number(value)):
                limits = replace(limits, most=most)
            elif name == "inactive" and equals:
                limits = replace(limits, inactive=float(parse_seconds(value)))
            elif name == "valid" and equals:
                limits = replace(limits, valid=float(parse_seconds(value)))
            else:
                raise ValueError("invalid parameter")
        except ValueError:
            raise ConfigError(
                f'invalid parameter "{word.value}"',
                word,
                "accepted are off, or max=1000 inactive=10s valid=60s",
            ) from None
    if off:
        return NO_CERTIFICATE_CACHE
    if not limits.most:
        raise ConfigError(
            f'"{found.name}" must have the "max" parameter', found, "add: max=1000"
        )
    return limits


def _in_directory(path: str, reading: Reading) -> str:
    # An empty name cancels an inherited one.
    return path and reading.in_directory(path)


def _parse_pins(found: Directive, _: Reading) -> frozenset[bytes]:
    pins = set()
    for word in found.args:
        if not _PIN.fullmatch(word.value):
            raise ConfigError(
                f'invalid pin "{c_string(word.value)}"',
                word,
                "64 hex digits: openssl x509 -pubkey -noout "
                "| openssl pkey -pubin -outform der | sha256sum",
            )
        pins.add(bytes.fromhex(word.value))
    return frozenset(pins)


def _parse_alpn(found: Directive, _: Reading) -> tuple[bytes, ...]:
    protocols = tuple(encode(word.value) for word in found.args)
    if any(len(each) > MAX_ALPN for each in protocols):
        raise ValueError("protocol too long")
    if not all(each and each.isascii() for each in protocols):
        raise ValueError("invalid value")
    return protocols


@lru_cache(MAX_NAMES)
def host_name(text: str) -> str | None:
    """A name as TLS has it: ASCII, without the dot of the root; None: it is no name.

    Args:
      text: the name of a host, or an IP address without brackets.
    """
    if not text.isascii():
        try:
            text = text.encode("idna").decode()
        except UnicodeError:
            return None
    text = text.removesuffix(".")
    return text if _HOST.fullmatch(text) else None


def _parse_name(found: Directive, _: Reading) -> str:
    name = host_name(c_string(found.words[1].value))
    if name is None:
        raise ValueError("invalid value")
    return name


starttls: Value[str] = replace(_starttls_choice, parse=_parse_starttls)
ssl_flag: Value[bool] = replace(flag, parse=_parse_ssl)
password_file: Value[PasswordFile | None] = Value(_parse_password_file, "file")
session_cache: Value[SessionCache] = Value(
    _parse_session_cache,
    "off | none | [builtin[:size]] [shared:name:size]",
    most=2,
    parameters=("off", "none", "builtin", "shared:"),
)
certificates: Value[tuple[str, ...]] = Value(
    lambda found, _: (_parse_source(found),),
    "file | data:PEM",
    parameters=("data:", "$ssl_server_name"),
    means_dollar=has_variable,
)
certificate: Value[str] = Value(
    lambda found, _: c_string(found.words[1].value),
    "file | data:PEM",
    parameters=("data:",),
)
keys: Value[tuple[Key, ...]] = Value(
    lambda found, _: (Key(_parse_source(found)),),
    "file | data:PEM | engine:name:id | store:URI",
    parameters=("data:", "engine:", "store:", "$ssl_server_name"),
    means_dollar=has_variable,
)
directories: Value[tuple[str, ...]] = Value(
    lambda found, reading: (reading.in_directory(c_string(found.words[1].value)),),
    "directory",
)
certificate_cache: Value[CacheLimits] = Value(
    _parse_certificate_cache,
    "off | max=number [inactive=time] [valid=time]",
    most=3,
    parameters=("off", "max=", "inactive=", "valid="),
)
key: Value[Key | None] = Value(
    lambda found, _: Key(c_string(found.words[1].value)),
    "file | data:PEM | engine:name:id | store:URI",
    parameters=("data:", "engine:", "store:"),
)
file: Value[str] = Value(
    lambda found, reading: _in_directory(c_string(found.words[1].value), reading),
    "file",
)
files: Value[tuple[str, ...]] = Value(
    lambda found, reading: (reading.in_directory(c_string(found.words[1].value)),),
    "file",
)
commands: Value[tuple[tuple[str, str], ...]] = Value(
    lambda found, _: (
        (c_string(found.words[1].value), c_string(found.words[2].value)),
    ),
    "name value",
    least=2,
    most=2,
)
pins: Value[frozenset[bytes]] = Value(_parse_pins, "hex ...", most=None)
alpn: Value[tuple[bytes, ...]] = Value(_parse_alpn, "protocol ...", most=None)
name: Value[str] = Value(_parse_name, "name")

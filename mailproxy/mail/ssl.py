"""ngx_mail_ssl_module: https://nginx.org/en/docs/mail/ngx_mail_ssl_module.html.

A server that uses TLS gets an `SSLContext` when the configuration is loaded: in the
master, so that -t finds what a start would find, and all workers have the same ticket
keys. Servers with the same settings share one context.
"""

from __future__ import annotations

import errno
import mmap
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ssl import SSLContext
from typing import ClassVar, Self, cast

from mailproxy import outside
from mailproxy.conf.directive import Block, Scope, Settings, Value, directive
from mailproxy.conf.tree import ConfigError, Directive, Position
from mailproxy.conf.values import (
    KIB,
    c_string,
    choice,
    choices,
    flag,
    number,
    parse_number,
    parse_size,
    seconds,
    text,
)
from mailproxy.mail.listen import Listen
from mailproxy.mail.load_state import load_state
from mailproxy.net.openssl import ContextBuilder, OpenSSLError, Validity, shown
from mailproxy.net.sessions import SessionZone

DEFAULT_CIPHERS = "HIGH:!aNULL:!MD5"
_PASSWORD_LIMIT = 4096
_PASSWORD_FILE_LIMIT = 1024 * KIB
_TICKET_KEY_SIZES = (48, 80)
_LEAST_PAGES = 8


# -- values ------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A private key of `ssl_certificate_key`; it may be written out as ``data:PEM``."""

    source: str = field(repr=False)

    def __str__(self) -> str:
        return shown(self.source)


@dataclass(frozen=True)
class PasswordFile:
    """What `ssl_password_file` holds."""

    path: str
    passwords: tuple[bytes, ...] = field(repr=False)

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class SessionCache:
    """Where sessions are kept; what is None is inherited."""

    mode: str | None = None
    """off: no session is resumed; none: none is kept, but clients are not told; on."""
    builtin: int | None = None
    """Sessions that each worker keeps for itself; -1: as many as OpenSSL likes."""
    shared: tuple[str, int] | None = None
    """Name and size of the memory in which all workers keep them."""

    def __str__(self) -> str:
        parts = [self.mode] if self.mode and self.mode != "on" else []
        if self.builtin is not None:
            parts.append("builtin" + (f":{self.builtin}" if self.builtin >= 0 else ""))
        if self.shared is not None:
            parts.append("shared:{}:{}".format(*self.shared))
        return " ".join(parts)


def _parse_session_cache(found: Directive, scope: Scope) -> SessionCache:
    before = scope.block.given.get(found.name)
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
        name, size = cache.shared
        if size < _LEAST_PAGES * mmap.PAGESIZE:
            raise ConfigError(f'session cache "{word.value}" is too small', word)
        declared = load_state(scope).zone_sizes.setdefault(name, size)
        if size != declared:
            raise ConfigError(
                f'the size {size} of shared memory zone "{name}" '
                f"conflicts with already declared size {declared}",
                word,
            )
    if cache.shared is not None and cache.mode is None:
        cache = replace(cache, mode="on")
    return cache


def _parse_zone(name_and_size: str) -> tuple[str, int]:
    name, colon, size = name_and_size.partition(":")
    if not name or not colon:
        raise ValueError("invalid value")
    return name, parse_size(size)


def _parse_password_file(found: Directive, scope: Scope) -> PasswordFile:
    word = found.words[1]
    path = scope.in_directory(c_string(word.value))
    try:
        content = outside.begin(path, _PASSWORD_FILE_LIMIT + 1)
        lines = content.split(b"\n")
        if any(len(line) >= _PASSWORD_LIMIT for line in lines):
            raise ConfigError(f'too long line in "{path}"', word)
        if len(content) > _PASSWORD_FILE_LIMIT:
            raise outside.FileError.of("read", errno.EFBIG)
    except outside.FileError as error:
        raise ConfigError(
            f'{error.call}() "{path}" failed', word, error=error
        ) from None
    passwords = tuple(filter(None, (line.removesuffix(b"\r") for line in lines)))
    return PasswordFile(path, passwords or (b"",))


def _parse_ssl(found: Directive, scope: Scope) -> bool:
    enabled = flag.parse(found, scope)
    scope.warn(
        'the "ssl" directive is deprecated, use the "listen ... ssl" directive instead',
        found,
    )
    starttls = scope.block.given.get("starttls")
    if enabled and starttls is not None and starttls.value != "off":
        raise ConfigError('"starttls" directive conflicts with "ssl on"', found)
    return enabled


_starttls_choice = choice("off", "on", "only")


def _parse_starttls(found: Directive, scope: Scope) -> str:
    chosen = _starttls_choice.parse(found, scope)
    given = scope.block.given.get("ssl")
    if chosen != "off" and given is not None and given.value:
        raise ConfigError('"ssl" directive conflicts with "starttls"', found)
    return chosen


def _in_directory(path: str, scope: Scope) -> str:
    # An empty name takes away what was inherited.
    return path and scope.in_directory(path)


starttls: Value[str] = replace(_starttls_choice, parse=_parse_starttls)
ssl_flag: Value[bool] = replace(flag, parse=_parse_ssl)
password_file: Value[PasswordFile | None] = Value(_parse_password_file, "file")
session_cache: Value[SessionCache] = Value(
    _parse_session_cache,
    "off | none | [builtin[:size]] [shared:name:size]",
    most=2,
    parameters=("off", "none", "builtin", "shared:"),
)
sources: Value[tuple[str, ...]] = Value(
    lambda found, _: (c_string(found.words[1].value),),
    "file | data:PEM",
    parameters=("data:",),
)
keys: Value[tuple[Key, ...]] = Value(
    lambda found, _: (Key(c_string(found.words[1].value)),),
    "file | data:PEM | engine:name:id | store:URI",
    parameters=("data:", "engine:", "store:"),
)
file: Value[str] = Value(
    lambda found, scope: _in_directory(c_string(found.words[1].value), scope), "file"
)
files: Value[tuple[str, ...]] = Value(
    lambda found, scope: (scope.in_directory(c_string(found.words[1].value)),), "file"
)
commands: Value[tuple[tuple[str, str], ...]] = Value(
    lambda found, _: (
        (c_string(found.words[1].value), c_string(found.words[2].value)),
    ),
    "name value",
    least=2,
    most=2,
)


# -- settings ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SslSettings(Settings):
    """TLS with clients: certificates, protocols, sessions, client certificates."""

    starttls: str = directive(starttls, default="off")
    """Whether clients may (on) or must (only) begin TLS by STARTTLS or STLS."""

    ssl: bool = directive(ssl_flag, default=False, origin="nginx before 1.25.1")
    """Old form of ``listen … ssl``, for all addresses of a server."""

    ssl_certificate: tuple[str, ...] = directive(sources, default=(), repeats="add")
    """Certificates in PEM, each with its chain; one for each kind of key."""

    ssl_certificate_key: tuple[Key, ...] = directive(keys, default=(), repeats="add")
    """The private keys of the certificates, in the same order."""

    ssl_password_file: PasswordFile | None = directive(
        password_file, default=None, shown=""
    )
    """Passwords of the private keys, one in a line, tried in turn."""

    ssl_certificate_compression: bool = directive(
        flag, default=False, origin="nginx since 1.29.1, Angie"
    )
    """Whether certificates are sent compressed; needs OpenSSL 3.2."""

    ssl_dhparam: str = directive(file, default="")
    """Parameters for DHE ciphers; without them these are not used."""

    ssl_ecdh_curve: str = directive(text, default="auto")
    """Groups for the key exchange, separated by colons."""

    ssl_protocols: frozenset[str] = directive(
        choices("SSLv2", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
        default=frozenset({"TLSv1.2", "TLSv1.3"}),
    )
    """Versions of TLS. Today's OpenSSL has no SSLv2 and no SSLv3."""

    ssl_ciphers: str = directive(text, default=DEFAULT_CIPHERS)
    """Ciphers of TLS 1.2 and older, in OpenSSL's form."""

    ssl_prefer_server_ciphers: bool = directive(flag, default=False)
    """Whether the order of the server's ciphers counts, not that of the client's."""

    ssl_session_cache: SessionCache = directive(
        session_cache,
        default=SessionCache(mode="none"),
        repeats="last",
    )
    """Where sessions are kept to be resumed: by each worker, by all together."""

    ssl_session_tickets: bool = directive(flag, default=True)
    """Whether clients are given their session to keep."""

    ssl_session_ticket_key: tuple[str, ...] = directive(
        files, default=(), repeats="add"
    )
    """Files of 48 or 80 bytes; the first is for new tickets, all are accepted."""

    ssl_session_timeout: float = directive(seconds, default=300.0)
    """How long a session can be resumed, in seconds."""

    ssl_verify_client: str = directive(
        choice("off", "on", "optional", "optional_no_ca"), default="off"
    )
    """Whether clients are asked for a certificate, and what is made of it."""

    ssl_verify_depth: int = directive(number, default=1)
    """CA certificates that a client's chain may have."""

    ssl_client_certificate: str = directive(file, default="")
    """CA certificates that are trusted, and whose names clients are sent."""

    ssl_trusted_certificate: str = directive(file, default="")
    """CA certificates that are trusted as well."""

    ssl_crl: str = directive(file, default="")
    """Lists of client certificates that were revoked."""

    ssl_conf_command: tuple[tuple[str, str], ...] = directive(
        commands, default=(), repeats="add"
    )
    """Commands of OpenSSL's configuration language, applied last."""

    context: SSLContext | None = None
    """For the TLS of this server; None if it uses none."""

    depends_on: ClassVar[tuple[str, ...]] = ("listen",)

    @classmethod
    def make(cls, block: Block, scope: Scope) -> Self:
        """The settings of a server, its context made.

        Raises:
          ConfigError: in nginx's words; there is no certificate, or OpenSSL does
            not like what is configured.
        """
        settings = super().make(block, scope)
        settings = replace(settings, ssl_session_cache=_inherited_cache(block))
        mode, position = _mode(block, settings)
        if not mode:
            return settings
        settings.check_certificates(mode, position)
        state = load_state(scope)
        contexts = state.contexts
        key = replace(settings, starttls="", ssl=False), state.protocol.get(block)
        if key not in contexts:
            try:
                contexts[key] = _build(settings, block, scope)
            except OpenSSLError as error:
                raise ConfigError(str(error)) from None
        return replace(settings, context=contexts[key])

    def check_certificates(self, mode: str, position: Position | None) -> None:
        """See whether there is a key for each certificate, and any certificate.

        Args:
          mode: the directive that asks for TLS.
          position: its place, in nginx's opinion.
        """
        where = f'the "{mode}" directive'
        if not self.ssl_certificate:
            raise ConfigError(f'no "ssl_certificate" is defined for {where}', position)
        missing = 'no "ssl_certificate_key" is defined for '
        if not self.ssl_certificate_key:
            raise ConfigError(missing + where, position)
        if len(self.ssl_certificate_key) < len(self.ssl_certificate):
            last = shown(self.ssl_certificate[-1])
            raise ConfigError(f'{missing}certificate "{last}" and {where}', position)


def _mode(block: Block, settings: SslSettings) -> tuple[str, Position | None]:
    """The directive that asks for TLS, and what nginx calls its place."""
    listen = block.given.get("listen")
    listens = cast("Iterable[Listen]", () if listen is None else listen.value)
    positions = [each.position for each in listens if each.ssl]
    if positions:
        return "listen ... ssl", positions[-1]
    if not settings.ssl and settings.starttls == "off":
        return "", None
    mode = "ssl" if settings.ssl else "starttls"
    for level in block.around():
        for name, given in reversed(level.given.items()):
            if name in ("ssl", "starttls"):
                return mode, given.position
    return mode, None


def _inherited_cache(block: Block) -> SessionCache:
    """Both parts of `ssl_session_cache`, each from the innermost block that has it."""
    cache = SessionCache()
    for level in block.around():
        given = level.given.get("ssl_session_cache")
        if given is not None:
            outer = cast("SessionCache", given.value)
            if cache.mode is None:
                cache = replace(cache, mode=outer.mode, builtin=outer.builtin)
            if cache.shared is None:
                cache = replace(cache, shared=outer.shared)
    return cache if cache.mode else replace(cache, mode="none")


# -- contexts ----------------------------------------------------------------------


_zones: weakref.WeakValueDictionary[tuple[str, int], SessionZone] = (
    weakref.WeakValueDictionary()
)
"""The zones that some context uses; a configuration that is loaded anew finds them."""


def _zone(name: str, size: int) -> SessionZone:
    found = _zones.get((name, size))
    if found is None:
        try:
            found = SessionZone(size)
        except OSError as error:
            raise ConfigError(
                f"mmap(MAP_ANON|MAP_SHARED, {size}) failed", error=error
            ) from None
        _zones[name, size] = found
    return found


def _build(settings: SslSettings, block: Block, scope: Scope) -> SSLContext:
    """Make a context, in nginx's order.

    Raises:
      OpenSSLError, ConfigError: it cannot be made.
    """
    builder = ContextBuilder(settings.ssl_protocols)
    protocol = load_state(scope).protocol.get(block)
    if protocol is not None:
        builder.alpn(protocol.encode())
    builder.ciphers(
        settings.ssl_ciphers, prefer_server=settings.ssl_prefer_server_ciphers
    )
    passwords = settings.ssl_password_file
    for certificate, key in zip(
        settings.ssl_certificate, settings.ssl_certificate_key, strict=False
    ):
        name = _full_name(certificate, scope)
        validity = builder.certificate(
            name,
            _full_name(key.source, scope),
            None if passwords is None else passwords.passwords,
        )
        _check_dates(name, validity, scope)
    if not builder.compress_certificates(enable=settings.ssl_certificate_compression):
        scope.warn(
            '"ssl_certificate_compression" is not supported on this platform, ignored'
        )
    if settings.ssl_verify_client != "off":
        _verify(builder, settings)
    if settings.ssl_dhparam:
        builder.dh_parameters(settings.ssl_dhparam)
    builder.curves(settings.ssl_ecdh_curve)
    builder.session_id_context(b"MAIL")
    cache = settings.ssl_session_cache
    builder.sessions(
        int(settings.ssl_session_timeout),
        cache={"off": False, "none": None, "on": True}[cache.mode or "none"],
        builtin=cache.builtin,
        zone=_zone(*cache.shared) if cache.shared and cache.mode == "on" else None,
    )
    builder.tickets(
        enable=settings.ssl_session_tickets, keys=_ticket_keys(settings, block)
    )
    builder.commands(settings.ssl_conf_command, scope.in_directory)
    return builder.context


def _check_dates(certificate: str, validity: Validity, scope: Scope) -> None:
    """Say that clients will refuse a certificate, which nginx does not say."""
    said = load_state(scope).outdated
    now = time.gmtime()[:6]
    if validity.begins <= now <= validity.ends or certificate in said:
        return
    said.add(certificate)
    # PEM text has many lines, and of many messages this would be the longest.
    name = "data:..." if certificate.startswith("data:") else certificate
    if now > validity.ends:
        year, month, day, *_ = validity.ends
        scope.warn(
            f'certificate "{name}" has expired on {year:04}-{month:02}-{day:02}',
            remedy="clients will refuse it: renew it, then reload",
        )
    else:
        year, month, day, *_ = validity.begins
        scope.warn(
            f'certificate "{name}" is not valid before {year:04}-{month:02}-{day:02}',
            remedy="clients will refuse it until then; is this machine's clock right?",
        )


def _full_name(source: str, scope: Scope) -> str:
    if source.startswith(("data:", "engine:", "store:")):
        return source
    return scope.in_directory(source)


def _verify(builder: ContextBuilder, settings: SslSettings) -> None:
    announced = settings.ssl_client_certificate
    trusted = settings.ssl_trusted_certificate
    if settings.ssl_verify_client != "optional_no_ca" and not (announced or trusted):
        raise ConfigError(
            "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client"
        )
    builder.verify_client(
        settings.ssl_verify_depth, announced, trusted, settings.ssl_crl
    )


def _ticket_keys(settings: SslSettings, block: Block) -> list[bytes]:
    keys = []
    for path in settings.ssl_session_ticket_key:
        try:
            key = outside.begin(path, _TICKET_KEY_SIZES[-1] + 1)
        except outside.FileError as error:
            raise ConfigError(
                f'{error.call}() "{path}" failed', _end_of_mail(block), error=error
            ) from None
        if len(key) not in _TICKET_KEY_SIZES:
            raise ConfigError(
                f'"{path}" must be 48 or 80 bytes',
                _end_of_mail(block),
                f"make one: openssl rand -out {path} 80",
            )
        keys.append(key)
    return keys


def _end_of_mail(block: Block) -> Position | None:
    """The brace that ends the block of mail, where nginx reads these files."""
    mail = None if block.parent is None else block.parent.directive
    if mail is None or mail.closed is None:
        return None
    return mail.words[0].source.position(mail.closed)

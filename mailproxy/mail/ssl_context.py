"""The `SSLContext` of a server, made of its settings in nginx's order.

nginx's errors about certificates, and those of OpenSSL, name no place. Here each step
knows its directive, which is shown to people below nginx's line.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import ssl
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mailproxy import outside
from mailproxy.conf.directive import Block, Reading
from mailproxy.conf.tree import ConfigError, Position, Word, format_word
from mailproxy.mail.load_state import load_state
from mailproxy.mail.own_certificates import Default, OwnCertificates
from mailproxy.mail.ssl_names import (
    check_variables,
    choose_by_name,
    passwords_of,
    say_refused,
)
from mailproxy.mail.ssl_values import has_variable
from mailproxy.net.openssl import (
    LACKING,
    Leaf,
    NeedsOpenSSLError,
    OpenSSLError,
    PrivateKeyError,
    context_builder,
    unreachable,
)
from mailproxy.net.tls_sessions import SessionZone

if TYPE_CHECKING:
    from mailproxy.mail.ssl import SslSettings
    from mailproxy.net.openssl import ContextBuilder
    from mailproxy.net.openssl.choice import ByName
    from mailproxy.net.openssl.portable import PortableBuilder

    Builder = ContextBuilder | PortableBuilder

_TICKET_KEY = "ssl_session_ticket_key"
_TICKET_KEY_SIZES = (48, 80)
_LOW_LEVEL = ("TLSv1", "TLSv1.1")
"""Versions that OpenSSL 3 supports at security level 0 only."""


def build(settings: SslSettings, block: Block, reading: Reading) -> OwnCertificates:
    """Make a context.

    Raises:
      ConfigError: it cannot be made; in nginx's words.
    """
    builder = _begin(settings, block, reading)
    check_variables(settings, block)
    defaults = _certify(builder, settings, block, reading)
    by_name = choose_by_name(settings, block, reading)
    if settings.ssl_verify_client != "off":
        _verify(builder, settings, block)
    _exchange_keys(builder, settings, block)
    _keep_sessions(builder, settings, block)
    with about(block, "ssl_conf_command"):
        builder.commands(settings.ssl_conf_command, reading.in_directory)
    _check_protocols(builder.context, settings, block, reading)
    _choose(builder, by_name, settings, block, reading)
    return OwnCertificates(
        builder.context,
        defaults,
        by_name,
        passwords_of(settings),
        compressed=settings.ssl_certificate_compression,
    )


def _begin(settings: SslSettings, block: Block, reading: Reading) -> Builder:
    """Begin a context, up to its ciphers."""
    with about(block, "ssl_protocols"):
        builder = context_builder(settings.ssl_protocols)
    protocol = load_state(reading).protocol.get(block)
    if protocol is not None:
        builder.alpn(protocol.encode())
    with about(block, "ssl_ciphers"):
        builder.ciphers(
            settings.ssl_ciphers, prefer_server=settings.ssl_prefer_server_ciphers
        )
    return builder


def not_available() -> str | None:
    """The TLS features that this Python lacks, and why, for people; None if it has all."""
    reason = unreachable()
    return reason and f"not available, as {reason}: {'; '.join(LACKING)}"


# -- what a message is about -------------------------------------------------------


@contextmanager
def about(
    block: Block, directive: str, index: int = -1, *, file: str = ""
) -> Iterator[None]:
    """Name the directive behind an error of OpenSSL, for people.

    Args:
      block, directive: the directive, or a default of it.
      index: the statement, if the directive may be repeated.
      file: the full name of the file in its argument.

    Raises:
      ConfigError: for an OpenSSLError.
    """
    try:
        yield
    except NeedsOpenSSLError as error:
        found = block.find(error.directive)
        statement = None if found is None else found.statements[index]
        raise ConfigError(
            str(error), statement, error.remedy, cause=statement
        ) from None
    except OpenSSLError as error:
        cause = block.argument(directive, index)
        raise ConfigError(str(error), None, _remedy(file), cause=cause) from None


@contextmanager
def about_pair(
    block: Block, directive: str, files: tuple[str, str], index: int = -1
) -> Iterator[None]:
    """The same for a certificate and its key, whose directive ends in ``_key``.

    Args:
      files: the full names of both.
    """
    file, key_file = files
    with about(block, directive, index, file=file):
        try:
            yield
        except PrivateKeyError as error:
            with about(block, f"{directive}_key", index, file=key_file):
                raise OpenSSLError(str(error)) from None


def _remedy(path: str) -> str | None:
    """The reason why a file cannot be read, if it is missing or its mode forbids it."""
    if not path or ":" in path.partition("/")[0]:  # data:, engine:, store:
        return None
    if not os.path.exists(path):
        return f"there is no file {path}"
    if not os.access(path, os.R_OK):
        return f"user {os.geteuid()} may not read {path}"
    return None


# -- certificates ------------------------------------------------------------------


def _certify(
    builder: Builder, settings: SslSettings, block: Block, reading: Reading
) -> tuple[Default, ...]:
    """Load the certificates that do not depend on the client."""
    defaults: list[Default] = []
    passwords = settings.ssl_password_file
    pairs = zip(settings.ssl_certificate, settings.ssl_certificate_key, strict=False)
    for index, (certificate, key) in enumerate(pairs):
        if has_variable(certificate):
            continue
        name = full_name(certificate, reading)
        key_name = full_name(key.source, reading)
        facts = _facts(name), _facts(key_name)
        with about_pair(block, "ssl_certificate", (name, key_name), index):
            leaf = builder.certificate(
                name, key_name, None if passwords is None else passwords.passwords
            )
        _check_dates(name, leaf, reading, block.argument("ssl_certificate", index))
        defaults.append(Default(_short(name), key_name, leaf, facts))
    _compress(builder, settings, block, reading)
    return tuple(defaults)


def _compress(
    builder: Builder, settings: SslSettings, block: Block, reading: Reading
) -> None:
    with about(block, "ssl_certificate_compression"):
        if not builder.compress_certificates(
            enable=settings.ssl_certificate_compression
        ):
            reading.warn(
                '"ssl_certificate_compression" is not supported on this platform, ignored'
            )


def _choose(
    builder: Builder,
    by_name: ByName | None,
    settings: SslSettings,
    block: Block,
    reading: Reading,
) -> None:
    """Let names choose certificates, if they do.

    Raises:
      ConfigError: this OpenSSL cannot.
    """
    if by_name is None:
        return
    directive = (
        "ssl_certificate_directory"
        if settings.ssl_certificate_directory
        else "ssl_certificate"
    )
    try:
        builder.certificates_by_name(by_name)
    except OpenSSLError as error:
        raise ConfigError(str(error), block.argument(directive)) from None
    if by_name.shelf is not None:
        say_refused(by_name.shelf, block, reading)


def _facts(path: str) -> outside.FileFacts | None:
    """What is known of a file, so that it is seen when it changes."""
    try:
        return outside.facts(path)
    except (OSError, ValueError):  # the latter: a zero octet in the name
        return None


def _short(certificate: str) -> str:
    """A certificate in messages: PEM text has many lines, and would be the longest."""
    return "data:..." if certificate.startswith("data:") else certificate


def _check_dates(
    certificate: str, leaf: Leaf, reading: Reading, cause: Word | None
) -> None:
    """Warn of a certificate that clients will refuse; nginx does not."""
    said = load_state(reading).outdated
    now = datetime.now(UTC).replace(microsecond=0)
    expired = leaf.ends is not None and leaf.ends < now
    early = leaf.begins is not None and now < leaf.begins
    if not (expired or early) or certificate in said:
        return
    said.add(certificate)
    name = _short(certificate)
    if expired and leaf.ends is not None:
        reading.warn(
            f'certificate "{name}" has expired on {leaf.ends.date()}',
            remedy="clients will refuse it: renew it, then reload",
            cause=cause,
        )
    elif leaf.begins is not None:
        reading.warn(
            f'certificate "{name}" is not valid before {leaf.begins.date()}',
            remedy="clients will refuse it until then; is this machine's clock right?",
            cause=cause,
        )


def full_name(source: str, reading: Reading) -> str:
    """The full name of a file of `ssl_certificate` or `ssl_certificate_key`."""
    if source.startswith(("data:", "engine:", "store:")):
        return source
    return reading.in_directory(source)


def _verify(builder: Builder, settings: SslSettings, block: Block) -> None:
    announced = settings.ssl_client_certificate
    trusted = settings.ssl_trusted_certificate
    mode = settings.ssl_verify_client
    if mode != "optional_no_ca" and not (announced or trusted):
        raise ConfigError(
            "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client",
            cause=block.argument("ssl_verify_client"),
        )
    with about(block, "ssl_verify_client"):
        builder.verify_client(settings.ssl_verify_depth, mode)
    if announced:
        with about(block, "ssl_client_certificate", file=announced):
            builder.announce(announced)
    if trusted:
        with about(block, "ssl_trusted_certificate", file=trusted):
            builder.trust(trusted)
    if settings.ssl_crl:
        with about(block, "ssl_crl", file=settings.ssl_crl):
            builder.revoke(settings.ssl_crl)


def _exchange_keys(builder: Builder, settings: SslSettings, block: Block) -> None:
    if settings.ssl_dhparam:
        with about(block, "ssl_dhparam", file=settings.ssl_dhparam):
            builder.dh_parameters(settings.ssl_dhparam)
    with about(block, "ssl_ecdh_curve"):
        builder.curves(settings.ssl_ecdh_curve)


# -- sessions ----------------------------------------------------------------------


_zones: weakref.WeakValueDictionary[tuple[str, int], SessionZone] = (
    weakref.WeakValueDictionary()
)
"""The zones in use by a context; a configuration that is loaded again reuses them."""


def _zone(name: str, size: int, cause: Word | None) -> SessionZone:
    found = _zones.get((name, size))
    if found is None:
        try:
            found = SessionZone(size)
        except OSError as error:
            raise ConfigError(
                f"mmap(MAP_ANON|MAP_SHARED, {size}) failed", error=error, cause=cause
            ) from None
        _zones[name, size] = found
    return found


def _keep_sessions(builder: Builder, settings: SslSettings, block: Block) -> None:
    verifies = any(
        re.match(r"(?i)(verify|requestca|clientca|chainca)", name)
        for name, _ in settings.ssl_conf_command
    )
    builder.session_id_context(b"MAIL", private=verifies)
    cache = settings.ssl_session_cache
    shared = cache.shared if cache.mode == "on" else None
    zone = _zone(*shared, block.argument("ssl_session_cache")) if shared else None
    with about(block, "ssl_session_cache"):
        builder.sessions(
            int(settings.ssl_session_timeout),
            cache={"off": False, "none": None, "on": True}[cache.mode or "none"],
            builtin=cache.builtin,
            zone=zone,
        )
    with about(block, _TICKET_KEY):
        builder.tickets(
            enable=settings.ssl_session_tickets, keys=_ticket_keys(settings, block)
        )


def _ticket_keys(settings: SslSettings, block: Block) -> list[bytes]:
    keys = []
    longest = _TICKET_KEY_SIZES[-1]
    for index, path in enumerate(settings.ssl_session_ticket_key):
        place, cause = _end_of_mail(block), block.argument(_TICKET_KEY, index)
        try:
            key = outside.begin(path, longest + 1)
        except outside.FileError as error:
            failed, remedy = f'{error.call}() "{path}" failed', _remedy(path)
            if error.errno == errno.ENOENT:  # so nothing is overwritten
                remedy = f"make one: openssl rand -out {shlex.quote(path)} {longest}"
            raise ConfigError(failed, place, remedy, error=error, cause=cause) from None
        if len(key) not in _TICKET_KEY_SIZES:
            has = len(key) if len(key) <= longest else f"more than {longest}"
            message = f'"{path}" must be 48 or 80 bytes'
            remedy = f"it has {has}; for a new key, name a file that does not exist yet"
            raise ConfigError(message, place, remedy, cause=cause)
        keys.append(key)
    return keys


def _end_of_mail(block: Block) -> Position | None:
    """The closing brace of the mail block, where nginx reads these files."""
    mail = None if block.parent is None else block.parent.directive
    if mail is None or mail.closed is None:
        return None
    return mail.words[0].source.position(mail.closed)


# -- versions ----------------------------------------------------------------------


def _check_protocols(
    context: ssl.SSLContext, settings: SslSettings, block: Block, reading: Reading
) -> None:
    """Warn of configured versions that OpenSSL will not use; nginx does not."""
    named = [name for name in _LOW_LEVEL if name in settings.ssl_protocols]
    level = context.security_level
    word = block.argument("ssl_protocols")
    said = load_state(reading).refused_protocols
    if not named or not level or word is None or word in said:
        return
    said.add(word)
    reading.warn(
        f"{' and '.join(named)} cannot be used at OpenSSL's security level {level}",
        word.position,
        f"for clients that need them: {_at_level_0(settings)}",
    )


def _at_level_0(settings: SslSettings) -> str:
    """The directive that decides on the security level, as it has to be.

    A cipher string sets the level only if it names one, and the last one wins.
    """
    commands = [
        (f"ssl_conf_command {name}", value, " (it overrules ssl_ciphers)")
        for name, value in settings.ssl_conf_command
        if name.lower() == "cipherstring"  # as SSL_CONF_cmd(3) reads it
    ]
    before, ciphers, why = [("ssl_ciphers", settings.ssl_ciphers, ""), *commands][-1]
    kept = re.sub(r"[:,; ]*@SECLEVEL=\d+", "", ciphers).strip(":,; ")
    wanted = f"{kept}:@SECLEVEL=0" if kept else "@SECLEVEL=0"
    return f"{before} {format_word(wanted)};{why}"

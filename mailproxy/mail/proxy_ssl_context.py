"""The `SSLContext` for backends, made of its settings in nginx's order."""

from __future__ import annotations

import functools
import ssl
from typing import TYPE_CHECKING

from mailproxy.conf.tree import ConfigError
from mailproxy.mail.load_state import load_state
from mailproxy.mail.ssl_context import about, about_pair, full_name
from mailproxy.net.openssl import client_builder, trust_system

if TYPE_CHECKING:
    from mailproxy.conf.directive import Block, Reading
    from mailproxy.mail.proxy_ssl import ProxySslSettings
    from mailproxy.net.openssl import ClientBuilder
    from mailproxy.net.openssl.portable_clients import PortableClientBuilder

    Builder = ClientBuilder | PortableClientBuilder


def build(settings: ProxySslSettings, block: Block, reading: Reading) -> ssl.SSLContext:
    """Make a context.

    Raises:
      ConfigError: it cannot be made; in nginx's words.
    """
    with about(block, "proxy_ssl_protocols"):
        builder = client_builder(settings.proxy_ssl_protocols)
    with about(block, "proxy_ssl_ciphers"):
        builder.ciphers(settings.proxy_ssl_ciphers)
    _certify(builder, settings, block, reading)
    if settings.proxy_ssl_verify:
        _verify(builder, settings, block, reading)
    else:
        builder.believe()
    if not settings.proxy_ssl_server_name:
        with about(block, "proxy_ssl_server_name"):
            builder.hide_names()
    if settings.proxy_ssl_alpn:
        builder.offer(settings.proxy_ssl_alpn)
    with about(block, "proxy_ssl_conf_command"):
        builder.commands(settings.proxy_ssl_conf_command, reading.in_directory)
    return builder.context


@functools.cache
def default_context(settings: ProxySslSettings) -> ssl.SSLContext:
    """Make the context for a configuration that does not speak of TLS with backends.

    It has none until a session wants it. If this machine knows no CA, no certificate is
    good then.

    Args:
      settings: those of a default.
    """
    builder = client_builder(settings.proxy_ssl_protocols)
    builder.ciphers(settings.proxy_ssl_ciphers)
    builder.verify_server(settings.proxy_ssl_verify_depth)
    trust_system(builder.context)
    return builder.context


def _certify(
    builder: Builder, settings: ProxySslSettings, block: Block, reading: Reading
) -> None:
    """Load the certificate of this proxy, if it has one."""
    key = settings.proxy_ssl_certificate_key
    if not settings.proxy_ssl_certificate or key is None:
        return
    name = full_name(settings.proxy_ssl_certificate, reading)
    key_name = full_name(key.source, reading)
    passwords = settings.proxy_ssl_password_file
    with about_pair(block, "proxy_ssl_certificate", (name, key_name)):
        builder.certificate(
            name, key_name, None if passwords is None else passwords.passwords
        )


def _verify(
    builder: Builder, settings: ProxySslSettings, block: Block, reading: Reading
) -> None:
    """Have the certificates of backends verified.

    Raises:
      ConfigError: nobody is trusted, or a file cannot be read.
    """
    builder.verify_server(settings.proxy_ssl_verify_depth)
    trusted = settings.proxy_ssl_trusted_certificate
    if trusted:
        with about(block, "proxy_ssl_trusted_certificate", file=trusted):
            builder.trust(trusted)
    elif not trust_system(builder.context):
        given = block.find("proxy_ssl_verify") or block.find("proxy_ssl")
        group = load_state(reading).group_with_tls
        where = None if group is None else group.position
        raise ConfigError(
            'no trusted certificates for "proxy_ssl_verify"',
            where if given is None else given.directive,
            "proxy_ssl_trusted_certificate FILE;",
        )
    if settings.proxy_ssl_crl:
        with about(block, "proxy_ssl_crl", file=settings.proxy_ssl_crl):
            builder.revoke(settings.proxy_ssl_crl)

"""The configurations that all proxies are measured with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailproxy.net.openssl.library import unreachable

if TYPE_CHECKING:
    from bench.surroundings import Surroundings


@dataclass(frozen=True)
class Listener:
    """A `server` block."""

    protocol: str
    tls: str
    """"starttls" or "implicit"."""
    certificate: str


LISTENERS = {
    "imap": Listener("imap", "starttls", "rsa"),
    "pop3": Listener("pop3", "starttls", "rsa"),
    "smtp": Listener("smtp", "starttls", "rsa"),
    "imaps-ec": Listener("imap", "implicit", "ec"),
}
"""The servers of the configuration for all cases but those of many servers."""

_HEAD = """\
{load_module}
worker_processes {workers};
worker_rlimit_nofile {files};
pid nginx.pid;
error_log logs/error.log error;
{user}
events {{ worker_connections {connections}; }}
mail {{
    server_name bench.example.com;
    auth_http 127.0.0.1:{auth}/auth;
    timeout 600s;
    proxy_timeout 24h;
    xclient on;
    imap_auth plain login;
    pop3_auth plain;
    smtp_auth plain login;
    ssl_protocols TLSv1.2 TLSv1.3;
    {session_cache}
"""
_SERVER = """\
    server {{
        listen 127.0.0.1:{port}{ssl};
        protocol {protocol};
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        {starttls}
    }}
"""
_ONE_OF_MANY = """\
    server {{
        listen {host}:{port};
        server_name host{number}.example.com;
        protocol {protocol};
        auth_http 127.0.0.1:{auth}/auth/{number};
        auth_http_header X-Server host{number};
        timeout 90s;
        proxy_timeout 1h;
        proxy_pass_error_message on;
        {capabilities}
    }}
"""
_CAPABILITIES = {
    "imap": "imap_capabilities IMAP4rev1 UIDPLUS IDLE LITERAL+;",
    "pop3": "pop3_capabilities TOP USER UIDL;",
    "smtp": 'smtp_capabilities PIPELINING 8BITMIME "SIZE 10485760";',
}


def for_sessions(surroundings: Surroundings, load_module: str) -> str:
    """A configuration with all `LISTENERS`.

    Args:
      load_module: the directive, or nothing.
    """
    servers = [
        _SERVER.format(
            port=surroundings.ports[name],
            ssl=" ssl" if listener.tls == "implicit" else "",
            protocol=listener.protocol,
            certificate=surroundings.certificate(listener.certificate),
            key=surroundings.certificate(listener.certificate).with_suffix(".key"),
            starttls="starttls on;" if listener.tls == "starttls" else "",
        )
        for name, listener in LISTENERS.items()
    ]
    return "".join([_head(surroundings, load_module), *servers, "}\n"])


def with_many_servers(surroundings: Surroundings, load_module: str, count: int) -> str:
    """A configuration with `count` servers, each on an address of its own."""
    protocols = list(_CAPABILITIES)
    servers = [
        _ONE_OF_MANY.format(
            host=host_of(number),
            port=surroundings.ports["many"],
            number=number,
            protocol=protocols[number % 3],
            auth=surroundings.backends["auth"],
            capabilities=_CAPABILITIES[protocols[number % 3]],
        )
        for number in range(count)
    ]
    return "".join([_head(surroundings, load_module), *servers, "}\n"])


def host_of(number: int) -> str:
    """The loopback address of one of many servers."""
    return f"127.1.{number // 200}.{1 + number % 200}"


def _head(surroundings: Surroundings, load_module: str) -> str:
    return _HEAD.format(
        load_module=load_module,
        workers=surroundings.workers,
        files=surroundings.files,
        user="user root root;" if os.geteuid() == 0 else "",
        connections=surroundings.files - 100,
        auth=surroundings.backends["auth"],
        # A Python that carries OpenSSL inside cannot do it.
        session_cache="" if unreachable() else "ssl_session_cache shared:mail:10m;",
    )

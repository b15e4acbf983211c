"""mailproxy between real clients and real servers, configured like a stock nginx."""

import base64
import hashlib
import hmac
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

from tests.fakes import FakeAuth, Headers, Request, granted, refused
from tests.peers.dovecot import ODD_PASSWORDS, PASSWORD
from tests.processes import (
    Process,
    free_port,
    load_modules,
    mailproxy_command,
    running,
)
from tests.tls import Certificates


@dataclass
class Backends:
    """Where the auth server sends clients, by protocol; SMTP may be missing."""

    ports: dict[str, int]

    def decide(self, request: Request) -> Headers | bytes:
        """Let in who knows the password."""
        headers = request.headers
        password = ODD_PASSWORDS.get(headers["Auth-User"], PASSWORD).encode()
        if not _knows(password, headers):
            return refused("Invalid login or password")(request)
        port = self.ports[headers["Auth-Protocol"]]
        return granted(port, Auth_Pass=password.decode("latin-1"))(request)


def _knows(password: bytes, headers: Headers) -> bool:
    """Whether a client knows the password of its user."""
    given = unquote_to_bytes(headers["Auth-Pass"].encode("latin-1"))
    salt = headers.get("Auth-Salt", "").encode()
    match headers["Auth-Method"]:
        case "cram-md5":
            wanted = hmac.new(password, salt, "md5").hexdigest().encode()
        case "apop":
            wanted = hashlib.md5(salt + password).hexdigest().encode()
        case _:
            wanted = password
    return hmac.compare_digest(given, wanted)


@dataclass
class Site:
    """A running mailproxy.

    `ports` by kind of server: imap, imaps, pop3, pop3s, smtp, smtps; imap-literal, which
    logs in at the backend as nginx does, and submission, which does so by AUTH instead
    of XCLIENT.
    """

    process: Process
    certificates: Certificates
    auth: FakeAuth
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def ca(self) -> str:
        """The file with the CA that clients have to trust."""
        return self.certificates.path("ca.pem")

    def context(self) -> ssl.SSLContext:
        """What a client needs for TLS."""
        return self.certificates.client()


_SERVERS = {
    "imap": "protocol imap; starttls on; imap_auth plain login cram-md5;",
    "imaps": "protocol imap;",
    "imap-literal": "protocol imap; proxy_login literal;",
    "pop3": "protocol pop3; starttls on; pop3_auth plain apop cram-md5;",
    "pop3s": "protocol pop3;",
    "smtp": "protocol smtp; starttls on; smtp_auth plain login cram-md5;",
    "smtps": "protocol smtp;",
    "xclient": "protocol smtp; starttls on; xclient auto;",
    "submission": "protocol smtp; starttls only; xclient off; proxy_smtp_auth on;",
}


@contextmanager
def start(directory: Path, backends: Backends) -> Iterator[Site]:
    """mailproxy, in `directory`, with the configuration that a Debian machine may have."""
    certificates = Certificates(directory)
    with FakeAuth(backends.decide) as auth:
        ports = {name: free_port() for name in _SERVERS}
        _write_stock_configuration(directory, auth.port, ports)
        command = mailproxy_command(directory)
        with running(command, directory, ports["imap"]) as process:
            yield Site(process, certificates, auth, ports)


def _write_stock_configuration(
    directory: Path, auth: int, ports: dict[str, int]
) -> None:
    """What Debian's package installs, and a mail block at its end."""
    for folder in ("modules-enabled", "conf.d", "sites-enabled", "log"):
        (directory / folder).mkdir()
    (directory / "modules-enabled/50-mod-mail.conf").write_text(load_modules())
    (directory / "mime.types").write_text(
        "types {\n    text/html html htm shtml;\n    text/plain txt;\n}\n"
    )
    (directory / "sites-enabled/default").write_text(
        """# Default server configuration
server {
    listen 80 default_server;
    listen [::]:80 default_server;
    root /var/www/html;
    index index.html index.htm;
    server_name _;
    location / {
        try_files $uri $uri/ =404;
    }
    location ~ \\.php$ {
        if ($request_uri ~* "^/(a|b){2,}$") { return 403; }
        fastcgi_pass unix:/run/php/php7.4-fpm.sock;
    }
}
"""
    )
    servers = "\n".join(
        f"""
    server {{
        listen 127.0.0.1:{port}{" ssl" if name.endswith("s") else ""};
        {_SERVERS[name]}
    }}"""
        for name, port in ports.items()
    )
    (directory / "nginx.conf").write_text(
        f"""user www-data;
worker_processes auto;
pid {directory}/nginx.pid;
error_log {directory}/log/error.log info;
include {directory}/modules-enabled/*.conf;

events {{
    worker_connections 768;
    # multi_accept on;
}}

http {{

    ##
    # Basic Settings
    ##

    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;

    include {directory}/mime.types;
    default_type application/octet-stream;

    ##
    # SSL Settings
    ##

    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_prefer_server_ciphers on;

    ##
    # Logging Settings
    ##

    log_format combined_host '$host $remote_addr - [$time_local] "$request" $status';
    access_log {directory}/log/access.log;

    gzip on;

    ##
    # Virtual Host Configs
    ##

    include {directory}/conf.d/*.conf;
    include {directory}/sites-enabled/*;
}}

mail {{
    server_name mail.example.test;
    auth_http 127.0.0.1:{auth}/mail/auth;
    proxy_pass_error_message on;

    ssl_certificate {directory}/ec.pem;
    ssl_certificate_key {directory}/ec.key;
    ssl_session_cache shared:mail:1m;

    imap_capabilities "IMAP4rev1" "UIDPLUS" "IDLE";
    pop3_capabilities "TOP" "USER" "UIDL";
    smtp_capabilities "SIZE 50000000" "8BITMIME" "ENHANCEDSTATUSCODES";
{servers}
}}
"""
    )


def plain(user: str, password: str = PASSWORD) -> str:
    """An initial response of SASL PLAIN."""
    return base64.b64encode(f"\0{user}\0{password}".encode()).decode()

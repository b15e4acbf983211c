"""The demo on disk and on the network: directory, certificates, ports, nginx.conf."""

import random
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import trustme

from mailproxy.auth.http import AuthHttpSettings, AuthUrl
from mailproxy.log.directive import File
from mailproxy.mail.group import Group
from mailproxy.mail.server import Server
from mailproxy.process.configuration import Loader

HOST = "127.0.0.1"

CONFIGURATION = """\
# The configuration of `mailproxy demo`. After a change, in another terminal (or with -t instead, to test it only):
#
#   {reload}

worker_processes 1;
pid mailproxy.pid;
error_log stderr info;

events {{
    worker_connections 1024;
}}

mail {{
    server_name demo.example.com;

    # Who says whether a login is good. It may say where the mailbox is, too; here
    # "proxy_pass" does, for all users.
    auth_http {auth}/auth;

    ssl_certificate server.pem;
    ssl_certificate_key server.key;
    starttls on;

    # Passwords do not leave the proxy in clear text: it speaks TLS with the mail servers,
    # and checks their certificates. In nginx, neither this nor "upstream" is to be had.
    proxy_ssl on;
    proxy_ssl_trusted_certificate ca.pem;
{servers}}}
"""

SERVER = """
    # Logins take turns, and go on at one of them if the other is down. It is tried each
    # time ("max_fails=0"), so it is in use again as soon as it has started.
    upstream {protocol} {{
        server {first} max_fails=0;
        server {second} max_fails=0;
    }}

    server {{
        protocol {protocol};
        proxy_pass {protocol};
        listen {plain};
        listen {tls} ssl;
        {directives}
    }}
"""

PREFERRED = {
    "auth": 10080,
    "imap": 10143,
    "imap ssl": 10993,
    "pop3": 10110,
    "pop3 ssl": 10995,
    "smtp": 10587,
    "smtp ssl": 10465,
    "imap 1": 11143,
    "imap 2": 12143,
    "pop3 1": 11110,
    "pop3 2": 12110,
    "smtp 1": 11587,
    "smtp 2": 12587,
}
"""The ports that the demo uses if they are free: the standard ones plus 10 000, and for
the mail servers of two machines plus 11 000 and 12 000."""

DIRECTIVES = {
    "imap": "imap_capabilities IMAP4rev1 LITERAL+ IDLE;",
    "pop3": "pop3_capabilities TOP USER UIDL PIPELINING;",
    "smtp": "smtp_capabilities PIPELINING 8BITMIME;",
}


@dataclass(frozen=True)
class Door:
    """A port of the proxy that clients connect to.

    Attributes:
      security: "TLS" from the first byte, "STARTTLS" on demand, or "".
    """

    protocol: str
    host: str
    port: int
    security: str

    def __str__(self) -> str:
        name = self.protocol.upper()
        return f"{name} {self.host}:{self.port} {self.security}".rstrip()


@dataclass(frozen=True)
class Site:
    """What the demo needs to know of the configuration."""

    doors: tuple[Door, ...] = ()
    auth_ports: frozenset[int] = frozenset()
    log_files: tuple[Path, ...] = ()
    """The files of the proxy's error logs, besides standard error."""
    machines: tuple[Mapping[str, int], ...] = ()
    """The ports of the mail servers that the configuration names, by protocol."""
    routed: frozenset[str] = frozenset()
    """The protocols for which the configuration names mail servers."""
    secured: frozenset[str] = frozenset()
    """The protocols of mail servers that speak TLS from the first octet on."""


def read_site(directory: Path) -> Site:
    """Read nginx.conf, which the user may have changed.

    Raises:
      ConfigErrors: it has errors.
    """
    configuration = Loader(
        prefix=f"{directory}/",
        path=f"{directory}/nginx.conf",
        name="mailproxy",
    ).load("daemon off;")
    doors = []
    auth_ports = set()
    for server in configuration.servers:
        starttls = "" if server.ssl.starttls == "off" else "STARTTLS"
        for listen in server.core.listen:
            if isinstance(listen.sockaddr, tuple):
                security = "TLS" if listen.ssl else starttls
                host, port = listen.sockaddr[:2]
                doors.append(Door(server.core.protocol, host, port, security))
        for source in server.auth.sources:
            match source:
                case AuthHttpSettings(auth_http=AuthUrl(sockaddr=(host, port))) if (
                    host == HOST
                ):
                    auth_ports.add(port)
    logs = (configuration.main.error_log, *configuration.error_logs)
    files = {
        each.target.path: None
        for log in logs
        for each in log
        if isinstance(each.target, File)
    }
    return Site(
        tuple(doors),
        frozenset(auth_ports),
        tuple(map(Path, files)),
        tuple(_machines(configuration.servers)),
        frozenset(
            server.core.protocol
            for server in configuration.servers
            if server.proxy.proxy_pass is not None
        ),
        frozenset(
            server.core.protocol
            for server in configuration.servers
            if server.proxy_ssl.proxy_ssl == "on"
        ),
    )


def _machines(servers: Iterable[Server]) -> Iterator[Mapping[str, int]]:
    """The machines behind the proxy: the first servers of all groups are on the first."""
    ports: dict[str, list[int]] = {}
    for server in servers:
        target = server.proxy.proxy_pass
        if target is not None and target.group is not None:
            ports.setdefault(server.core.protocol, []).extend(_ports(target.group))
    for number in range(max(map(len, ports.values()), default=0)):
        yield {
            protocol: those[number]
            for protocol, those in ports.items()
            if number < len(those)
        }


def _ports(group: Group) -> Iterator[int]:
    """The ports of a group's servers on this machine."""
    for member in group.members:
        for address in member.addresses:
            match address.sockaddr:
                case (host, port) if host == HOST:
                    yield port


def free_port(candidates: Iterable[int]) -> int:
    """Find the first port of the loopback that is not in use.

    Raises:
      OSError: all candidates are in use.
    """
    for port in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise OSError("there is no free port on the loopback")


def configuration(reload: str, *, usual: bool) -> str:
    """Format a new nginx.conf, with ports that are free now.

    Args:
      reload: the command that makes a change effective.
      usual: use the ports of `PREFERRED` if they are free, and others only if not.
    """
    # All of them are below the kernel's port range for outgoing connections.
    steps = [100 * step for step in range(200)]
    if not usual:
        random.shuffle(steps)
    ports = {
        name: free_port(preferred + step for step in steps)
        for name, preferred in PREFERRED.items()
    }
    servers = "".join(
        SERVER.format(
            protocol=protocol,
            plain=f"{HOST}:{ports[protocol]}",
            tls=f"{HOST}:{ports[f'{protocol} ssl']}",
            first=f"{HOST}:{ports[f'{protocol} 1']}",
            second=f"{HOST}:{ports[f'{protocol} 2']}",
            directives=directives,
        )
        for protocol, directives in DIRECTIVES.items()
        if protocol in ports
    )
    auth = f"{HOST}:{ports['auth']}"
    return CONFIGURATION.format(reload=reload, auth=auth, servers=servers)


def make_certificates(directory: Path) -> None:
    """Make an authority (ca.pem) and a server certificate, unless they exist."""
    if (directory / "ca.pem").exists():
        return
    authority = trustme.CA()
    leaf = authority.issue_cert(HOST, "localhost", "demo.example.com")
    leaf.private_key_pem.write_to_path(directory / "server.key")
    for number, part in enumerate(leaf.cert_chain_pems):
        part.write_to_path(directory / "server.pem", append=number > 0)
    authority.cert_pem.write_to_path(directory / "ca.pem")

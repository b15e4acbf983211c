"""The demo on disk and on the network: directory, certificates, ports, nginx.conf."""

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trustme

HOST = "127.0.0.1"

CONFIGURATION = """\
# The configuration of `mailproxy demo`. It is a plain nginx.conf: nginx runs it, too.
# After a change, in another terminal:
#
#   mailproxy -p {directory}/ -c nginx.conf -t
#   mailproxy -p {directory}/ -c nginx.conf -s reload

worker_processes 1;
pid mailproxy.pid;
error_log stderr info;

events {{
    worker_connections 1024;
}}

mail {{
    server_name demo.example.com;

    # Who says whether a login is good, and on which mail server its mailbox is.
    auth_http {auth}/auth;

    ssl_certificate server.pem;
    ssl_certificate_key server.key;
    starttls on;
{servers}}}
"""

SERVER = """
    server {{
        protocol {protocol};
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
}
"""The ports that the demo takes if they are free: the usual ones plus 10 000."""

DIRECTIVES = {
    "imap": "imap_capabilities IMAP4rev1 LITERAL+ IDLE;",
    "pop3": "pop3_capabilities TOP USER UIDL PIPELINING;",
    "smtp": "smtp_capabilities PIPELINING 8BITMIME;",
}


@dataclass(frozen=True)
class Door:
    """A port of the proxy.

    Attributes:
      tls: TLS from the first byte; otherwise STARTTLS is offered.
    """

    protocol: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"{self.protocol.upper()} {HOST}:{self.port} {'TLS' if self.tls else 'STARTTLS'}"


def free_port(preferred: int) -> int:
    """The preferred port of the loopback, or another one if it is taken."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    raise OSError("there is no free port on the loopback")


def choose_ports(protocols: Iterable[str], *, usual: bool) -> dict[str, int]:
    """A port for each name of `PREFERRED` that the protocols need."""
    names = ["auth", *(name for key in protocols for name in (key, f"{key} ssl"))]
    return {name: free_port(PREFERRED[name] if usual else 0) for name in names}


def configuration(directory: Path, ports: Mapping[str, int]) -> str:
    """The text of nginx.conf."""
    servers = "".join(
        SERVER.format(
            protocol=protocol,
            plain=f"{HOST}:{ports[protocol]}",
            tls=f"{HOST}:{ports[f'{protocol} ssl']}",
            directives=directives,
        )
        for protocol, directives in DIRECTIVES.items()
        if protocol in ports
    )
    auth = f"{HOST}:{ports['auth']}"
    return CONFIGURATION.format(directory=directory, auth=auth, servers=servers)


def doors(ports: Mapping[str, int]) -> list[Door]:
    """The ports of the proxy that clients use."""
    return [
        Door(name.removesuffix(" ssl"), port, name.endswith(" ssl"))
        for name, port in ports.items()
        if name != "auth"
    ]


def make_certificates(directory: Path) -> None:
    """An authority (ca.pem) and a server certificate of it, unless they are there."""
    if (directory / "ca.pem").exists():
        return
    authority = trustme.CA()
    leaf = authority.issue_cert(HOST, "localhost", "demo.example.com")
    leaf.private_key_pem.write_to_path(directory / "server.key")
    for number, part in enumerate(leaf.cert_chain_pems):
        part.write_to_path(directory / "server.pem", append=number > 0)
    authority.cert_pem.write_to_path(directory / "ca.pem")

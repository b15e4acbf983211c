"""A real Postfix on the loopback; it takes mail of who has logged in, and stores it."""

import os
import pwd
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.dovecot import Dovecot, mail_owner
from tests.processes import free_port, need_program, running

DOMAIN = "example.test"

_SERVICES = """
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
virtual   unix  -       n       n       -       -       virtual
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
"""


@contextmanager
def start(
    program: str,
    directory: Path,
    dovecot: Dovecot,
    users: Iterable[str],
    more: str = "",
    wrapped: int | None = None,
) -> Iterator[int]:
    """Postfix, in `directory`; the value is its port. It has to be started by root.

    It believes XCLIENT, and asks Dovecot about AUTH. Mail to USER@example.test, of
    `users`, goes into their maildirs.

    Args:
      more: what stands at the end of main.cf.
      wrapped: another port, where TLS begins with the first octet.
    """
    port = free_port()
    user, group = mail_owner()
    etc = directory / "etc"
    for folder in ("etc", "spool", "data"):
        (directory / folder).mkdir()
    os.chown(directory / "data", pwd.getpwnam("postfix").pw_uid, -1)
    boxes = "".join(f"{name}@{DOMAIN} {name}/\n" for name in users)
    (etc / "mailboxes").write_text(boxes)
    services = f"127.0.0.1:{port} inet n - n - 300 smtpd\n{_SERVICES}"
    if wrapped is not None:
        services += (
            f"127.0.0.1:{wrapped} inet n - n - 300 smtpd\n"
            "  -o smtpd_tls_wrappermode=yes\n"
        )
    (etc / "master.cf").write_text(services)
    (etc / "main.cf").write_text(
        f"""
compatibility_level = 3.6
queue_directory = {directory}/spool
data_directory = {directory}/data
maillog_file = {directory}/postfix.log
maillog_file_prefixes = {directory}
myhostname = backend.test
mydestination =
mynetworks = 192.0.2.1
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_peername_lookup = no
smtpd_authorized_xclient_hosts = 127.0.0.1
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = inet:127.0.0.1:{dovecot.auth_port}
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_client_connection_count_limit = 0
message_size_limit = 50000000
virtual_mailbox_limit = 0
virtual_mailbox_domains = {DOMAIN}
virtual_mailbox_base = {dovecot.mail}
virtual_mailbox_maps = texthash:{etc}/mailboxes
virtual_minimum_uid = 1
virtual_uid_maps = static:{user}
virtual_gid_maps = static:{group}
{more}
"""
    )
    subprocess.run([program, "-c", etc, "check"], check=True)
    daemons = Path(_setting(etc, "daemon_directory"))
    # "postfix start-fg" puts a shell before the master, which would outlive it.
    with running([str(daemons / "master"), "-c", str(etc), "-d"], directory, port):
        yield port


def _setting(etc: Path, name: str) -> str:
    command = [need_program("postconf"), "-c", str(etc), "-h", name]
    return subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.strip()

"""A real Dovecot on the loopback: IMAP, POP3, and whom Postfix asks about logins."""

import grp
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.processes import Process, free_port, running

PASSWORD = "secret"
ODD_PASSWORDS = {
    "spaces": "two  words",
    "quotes": 'a"b""c',
    "backslashes": "a\\b\\\\",
    "both": '"\\" \\',
    "others": "{5} %*()[]~^`'{1+}",
    "umlauts": "pässwörd",
    "long": "x" * 990,
}
"""Passwords of users that have another one than `PASSWORD`."""


@dataclass(frozen=True)
class Dovecot:
    """A mail store where every user exists, and most have the same password."""

    process: Process
    imap_port: int
    pop3_port: int
    proxied: dict[str, int]
    """By protocol, the port where a PROXY header comes first."""
    auth_port: int
    mail: Path
    """A maildir for each user."""

    def deliver(self, user: str, message: bytes, name: str = "message") -> None:
        """Put a message into a maildir."""
        maildir = self.maildir(user)
        (maildir / "new" / name).write_bytes(message)

    def maildir(self, user: str) -> Path:
        """The maildir of a user, made where it is missing."""
        maildir = self.mail / user
        for folder in (maildir, *(maildir / name for name in ("new", "cur", "tmp"))):
            if not folder.exists():
                folder.mkdir()
                os.chown(folder, *mail_owner())
        return maildir


def mail_owner() -> tuple[int, int]:
    """Who owns mail: not root, whom Dovecot refuses."""
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    return user.pw_uid, user.pw_gid


@contextmanager
def start(program: str, directory: Path, more: str = "") -> Iterator[Dovecot]:
    """Dovecot, in `directory`, which everyone may enter.

    Args:
      more: what stands at the end of its configuration.
    """
    mail = directory / "mail"
    mail.mkdir()
    user, group = mail_owner()
    os.chown(mail, user, group)
    imap, pop3, auth = free_port(), free_port(), free_port()
    proxied = {"imap": free_port(), "pop3": free_port()}
    (directory / "passwords").write_text(
        "".join(
            f"{user}:{{PLAIN}}{password}::::::\n"
            for user, password in ODD_PASSWORDS.items()
        )
    )
    (directory / "dovecot.conf").write_text(
        f"""
base_dir = {directory}/run
state_dir = {directory}/state
log_path = {directory}/dovecot.log
protocols = imap pop3
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
mail_max_userip_connections = 0
mail_location = maildir:{mail}/%u
first_valid_uid = 1
haproxy_trusted_networks = 127.0.0.1
{_unprivileged()}
passdb {{
  driver = passwd-file
  args = {directory}/passwords
}}
passdb {{
  driver = static
  args = password={PASSWORD}
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={mail}/%u
}}
service imap-login {{
  service_count = 0
  client_limit = 1000
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imap_proxied {{
    port = {proxied["imap"]}
    haproxy = yes
  }}
}}
service pop3-login {{
  service_count = 0
  client_limit = 1000
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3_proxied {{
    port = {proxied["pop3"]}
    haproxy = yes
  }}
}}
service imap {{
  process_limit = 500
}}
service pop3 {{
  process_limit = 500
}}
service auth {{
  client_limit = 3000
  inet_listener {{
    address = 127.0.0.1
    port = {auth}
  }}
}}
service anvil {{
  client_limit = 3000
}}
service stats {{
  client_limit = 3000
}}
{more}
"""
    )
    command = [program, "-F", "-c", f"{directory}/dovecot.conf"]
    with running(command, directory, imap) as process:
        process.wait_for_port(pop3)
        yield Dovecot(process, imap, pop3, proxied, auth, mail)


def _unprivileged() -> str:
    """What Dovecot needs in order to run as one user."""
    if os.getuid() == 0:
        return ""
    user = pwd.getpwuid(os.getuid()).pw_name
    return f"""
default_internal_user = {user}
default_internal_group = {grp.getgrgid(os.getgid()).gr_name}
default_login_user = {user}
service imap-login {{
  chroot =
}}
service pop3-login {{
  chroot =
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
"""

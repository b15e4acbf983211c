"""Writes what is made from the code: docs/directives.md and the table in README.md.

python docs/generate.py           writes both
python docs/generate.py --check   exits 1 if one of them is not current
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mailproxy.conf.directive import Declaration, Settings, declarations
from mailproxy.mail.auth.http import AuthHttpSettings
from mailproxy.mail.core import CoreSettings
from mailproxy.mail.imap import ImapSettings
from mailproxy.mail.pop3 import Pop3Settings
from mailproxy.mail.proxy import ProxySettings
from mailproxy.mail.realip import RealipSettings
from mailproxy.mail.smtp import SmtpSettings
from mailproxy.mail.ssl import SslSettings
from mailproxy.process.core import EventsSettings, MainSettings

ROOT = Path(__file__).parent.parent
BEGIN = "<!-- made by `make docs`, do not edit -->\n"
END = "<!-- end -->\n"

ROWS: dict[str, tuple[type[Settings], ...]] = {
    "core: processes, logs, events": (MainSettings, EventsSettings),
    "mail core: listeners, limits, resolver": (CoreSettings,),
    "IMAP": (ImapSettings,),
    "POP3": (Pop3Settings,),
    "SMTP": (SmtpSettings,),
    "auth_http": (AuthHttpSettings,),
    "proxy: backends, XCLIENT, PROXY protocol out": (ProxySettings,),
    "realip: PROXY protocol in": (RealipSettings,),
    "TLS, STARTTLS": (SslSettings,),
}


def table() -> str:
    """What works, module by module."""
    lines = [
        "| nginx's module | directives | not in effect yet |",
        "|---|---:|---|",
    ]
    total: list[Declaration] = []
    for title, classes in ROWS.items():
        found = [
            each for settings in classes for each in declarations(settings).values()
        ]
        lines.append(row(title, found))
        total += found
    return "\n".join([*lines, row("**all**", total), ""])


def row(title: str, found: Sequence[Declaration]) -> str:
    """One line of the table."""
    missing = [f"`{each.name}`" for each in found if each.effect] or ["–"]
    return f"| {title} | {len(found)} | {', '.join(missing)} |"


def readme(text: str) -> str:
    """The README with a current table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, "README.md has lost the marks around its table"
    return before + BEGIN + "\n" + table() + "\n" + END + after


def directives() -> str:
    """The text of docs/directives.md, from the command line as a person gets it."""
    command = [sys.executable, "-m", "mailproxy", "--list-directives"]
    listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return listed.stdout.decode()


def stale() -> dict[Path, str]:
    """The files that are not current, and what is to be in them."""
    path = ROOT / "README.md"
    wanted = {
        path: readme(path.read_text()),
        ROOT / "docs" / "directives.md": directives(),
    }
    return {
        path: text
        for path, text in wanted.items()
        if not path.exists() or path.read_text() != text
    }


if __name__ == "__main__":
    for path, text in stale().items():
        path.write_text(text)

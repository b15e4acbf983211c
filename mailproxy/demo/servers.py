"""The mail servers of the demo: machines with a server for each protocol."""

import ssl
from collections.abc import Mapping
from functools import partial

import trio

from mailproxy.demo.imap import ImapSession
from mailproxy.demo.mailbox import Mailbox, Session, serve
from mailproxy.demo.pop3 import pop3_session
from mailproxy.demo.site import HOST
from mailproxy.demo.smtp import smtp_session


def mail_servers(mailbox: Mailbox) -> dict[str, Session]:
    """The mail servers of one machine, by protocol."""
    return {
        "imap": lambda client: ImapSession(client, mailbox).run(),
        "pop3": lambda client: pop3_session(client, mailbox),
        "smtp": lambda client: smtp_session(client, mailbox),
    }


class Machine:
    """Mail servers that stop and start together.

    Attributes:
      ports: of each protocol; 0: any, until it runs.
      running: whether it serves.
    """

    def __init__(
        self,
        ports: Mapping[str, int],
        mailbox: Mailbox,
        contexts: Mapping[str, ssl.SSLContext],
    ) -> None:
        """Prepare a machine.

        Args:
          ports: of each protocol that it serves.
          mailbox: what its servers show.
          contexts: for the protocols with TLS from the first octet on.
        """
        self.ports = dict(ports)
        self.running = False
        self._sessions = mail_servers(mailbox)
        self._contexts = contexts
        self._scope = trio.CancelScope()
        self._wanted = trio.Event()

    def __str__(self) -> str:
        """Its servers, in a line: ``IMAP 127.0.0.1:10143, POP3 127.0.0.1:10110``."""
        return ", ".join(
            f"{protocol.upper()} {HOST}:{port}" for protocol, port in self.ports.items()
        )

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve, with the breaks that `press` makes; the first time is reported.

        Raises:
          OSError: a port cannot be used.
        """
        await self._serve(task_status)
        while True:
            self.running = False
            self._wanted = trio.Event()
            await self._wanted.wait()
            await self._serve(trio.TASK_STATUS_IGNORED)

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve until `press` ends it, with all sessions."""
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            for protocol, port in self.ports.items():
                work = partial(
                    serve,
                    self._sessions[protocol],
                    port=port,
                    context=self._contexts.get(protocol),
                )
                self.ports[protocol] = await nursery.start(work)
            self.running = True
            task_status.started()

    def press(self) -> None:
        """Stop it if it runs, and start it if it does not."""
        if self.running:
            self._scope.cancel()
        else:
            self._wanted.set()

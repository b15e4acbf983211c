"""One probe of one backend: connect, PROXY header, TLS, greeting, capabilities, login.

It does what a session would do, in the order of a session, as far as its type says, and
then says goodbye. One limit is for the whole of it. Nothing is tried again: that is what
the next probe is for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from mailproxy.mail.probing import ProbeType
from mailproxy.manager.probes.expectation import expect
from mailproxy.manager.probes.imap import ImapTalk
from mailproxy.manager.probes.peer import Failure, ProbedPeer, ProbeError
from mailproxy.manager.probes.pop3 import Pop3Talk
from mailproxy.manager.probes.smtp import SmtpTalk
from mailproxy.manager.probes.tls import ProbeTls
from mailproxy.net.outgoing import BindError, Outgoing
from mailproxy.net.proxy_protocol import format_v1, format_v2

if TYPE_CHECKING:
    from mailproxy.conf.addresses import Address
    from mailproxy.mail.probing import Match
    from mailproxy.manager.probes.talk import ProbeLogin, Talk

TALKS: dict[str, type[Talk]] = {
    talk.protocol: talk for talk in (ImapTalk, Pop3Talk, SmtpTalk)
}
"""The dialogues of probes, by the name of the protocol."""

HEADERS = {"off": b"", "on": format_v1(None, None), "v2": format_v2(None, None)}
"""What a proxy sends for a connection of its own, by `proxy_protocol`."""

_LOCAL = frozenset((
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
))  # fmt: skip
"""Errors of connect() that say nothing of the peer. A unix socket that is missing, or that
nobody may enter, is not among them: no session would get there."""

Connect = Callable[["Probe"], Awaitable[trio.abc.Stream]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How a peer is probed."""

    address: Address
    type: ProbeType
    timeout: float = 5.0
    """Seconds for all of it."""
    protocol: str = ""
    """Empty if `type` is CONNECT."""
    outgoing: Outgoing | None = None
    """From where to connect, and how; None: as the system likes."""
    proxy_protocol: str = "off"
    tls: ProbeTls | None = None
    """None: it is spoken to in clear text."""
    own_name: bytes = b""
    """What this side calls itself in SMTP."""
    login: ProbeLogin | None = field(default=None, repr=False)
    """For `type` LOGIN."""
    match: Match | None = None


async def connect(probe: Probe) -> trio.abc.Stream:
    """Connect to a peer.

    Raises:
      OSError: connect() failed; a `BindError` if bind() did.
    """
    connection = socket.socket(probe.address.family, socket.SOCK_STREAM)
    try:
        if probe.outgoing is not None:
            probe.outgoing.prepare(connection, probe.address.family)
        connecting = trio.socket.from_stdlib_socket(connection)
        await connecting.connect(probe.address.sockaddr)
    except BaseException:
        connection.close()
        raise
    return trio.SocketStream(connecting)


async def run(probe: Probe, connect: Connect = connect) -> Failure | None:
    """Probe a peer; returns why it is not healthy, or None if it is."""
    run = _Run(probe, connect)
    with trio.move_on_after(probe.timeout):
        try:
            await run.go()
        except ProbeError as error:
            return error.failure
    return None if run.passed else Failure("timed out while %s", (run.doing,))


class _Run:
    """One probe while it runs.

    Attributes:
      passed: whether the peer has done all that is wanted of it.
    """

    def __init__(self, probe: Probe, connect: Connect) -> None:
        self.passed = False
        self._probe = probe
        self._connect = connect
        self._peer: ProbedPeer | None = None

    @property
    def doing(self) -> str:
        """What the probe does, or waits for."""
        return "connecting" if self._peer is None else self._peer.doing

    async def go(self) -> None:
        """Probe the peer, and close the connection.

        Raises:
          ProbeError: the peer is not healthy.
        """
        try:
            stream = await self._connect(self._probe)
        except OSError as error:
            raise _failed_connect(error) from None
        peer = self._peer = ProbedPeer(stream)
        try:
            talk = await self._examine(peer)
            self.passed = True
            if talk is not None:
                with contextlib.suppress(ProbeError):  # it has passed, and may leave
                    await peer.send(talk.goodbye)
        finally:
            await trio.aclose_forcefully(peer.stream)

    async def _examine(self, peer: ProbedPeer) -> Talk | None:
        """Do all that the type of the probe says.

        Returns:
          The dialogue, if there was one.

        Raises:
          ProbeError: the peer is not healthy.
        """
        probe = self._probe
        if probe.login is not None:
            peer.hide(probe.login.user, probe.login.password)
        header = HEADERS[probe.proxy_protocol]
        if header:
            peer.doing = "sending the PROXY header"
            await peer.send(header)
        tls = probe.tls
        if tls is not None and tls.mode == "on":
            await self._start_tls(peer, tls)
        talk = None
        if probe.type > ProbeType.CONNECT:
            talk = TALKS[probe.protocol](peer, probe.own_name)
            await self._talk(peer, talk)
        if probe.match is not None:
            await expect(probe.match, peer)
        return talk

    async def _talk(self, peer: ProbedPeer, talk: Talk) -> None:
        """Do what is said in the protocol's words; see `_examine`."""
        probe = self._probe
        peer.doing = "waiting for the greeting"
        await talk.read_greeting()
        if probe.tls is not None and probe.tls.mode == "starttls":
            await talk.ask_starttls()
            await self._start_tls(peer, probe.tls)
        if probe.type >= ProbeType.CAPABILITY:
            await talk.ask_capabilities()
        if probe.type >= ProbeType.LOGIN:
            login = probe.login
            assert login is not None, "-t has looked"
            if not (peer.encrypted or probe.address.is_local):
                raise ProbeError("no login in clear text")
            peer.begin_login()
            await talk.log_in(login)

    async def _start_tls(self, peer: ProbedPeer, tls: ProbeTls) -> None:
        """Do a TLS handshake.

        Raises:
          ProbeError: there is clear text before it, or it failed.
        """
        peer.doing = "SSL handshaking"
        if peer.unread:
            raise ProbeError(
                'upstream sent data before TLS, possible injection: "%s"',
                peer.shown(peer.unread),
            )
        peer.use_tls(await tls.begin(peer.stream))


def _failed_connect(error: OSError) -> ProbeError:
    """The error for a failed connect(), in the words of sessions."""
    number = error.errno or 0
    reason = number, os.strerror(number)
    if isinstance(error, BindError):
        return ProbeError("bind(%s) failed (%s: %s)", error.text, *reason, local=True)
    return ProbeError("connect() failed (%s: %s)", *reason, local=number in _LOCAL)

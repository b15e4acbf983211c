"""Reaching a backend: connect, PROXY header, greeting; and the next one if that fails.

From the first octet of the login on nothing is tried again: a backend that has seen the
password may have counted it, and a second one that refuses it would be believed.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from mailproxy.errors import BackendError, LocalError, LoopError
from mailproxy.mail import proxy_header
from mailproxy.mail.backend import Backend
from mailproxy.mail.backend_tls import backend_tls

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailproxy.mail.candidates import Candidate, Choice
    from mailproxy.mail.client import Client
    from mailproxy.mail.protocol import Dialogue


async def reach(
    client: Client,
    dialogue: Dialogue,
    choice: Choice,
    ssl: str,
    report: Callable[[BackendError], None],
) -> Backend:
    """Connect to the first candidate that greets as its protocol requires.

    The limit of the login's phase has begun then. `ssl` is what the auth source wants, if
    anything; `report` logs a try that is not the last one.

    Raises:
      AuthError: the auth source would switch TLS off.
      BackendError: no candidate was reached; that of the last try.
    """
    candidate = _first(choice, client)
    tries = _Tries(client)
    while True:
        try:
            backend = await _try(client, dialogue, choice, candidate, ssl)
        except BackendError as error:
            following = choice.next() if tries.may_go_on(error) else None
            if following is None:
                raise
            candidate = following
            report(error)
        else:
            choice.reached()
            return backend


def _first(choice: Choice, client: Client) -> Candidate:
    """Choose the first candidate.

    Raises:
      BackendError: there is none.
    """
    candidate = choice.next()
    if candidate is None:
        client.info.upstream = choice.name
        raise BackendError("no live upstreams", action="connecting to upstream")
    return candidate


class _Tries:
    """The tries of one session: how many, and since when."""

    def __init__(self, client: Client) -> None:
        self._proxy = client.server.proxy
        self._timer = client.timer
        self._began = client.timer.now()
        self._made = 0

    def may_go_on(self, error: BackendError) -> bool:
        """Whether there may be another try after one that failed."""
        proxy = self._proxy
        self._made += 1
        if (
            not proxy.proxy_next_upstream
            or self._made == proxy.proxy_next_upstream_tries
        ):
            return False
        if error.error is not None and error.error.errno == errno.ENOBUFS:
            return False  # `worker_connections` are in use, whoever comes next
        if isinstance(error, LoopError):
            return False  # the configuration is wrong, and should be seen to be
        return self._timer.now() - self._began < proxy.next_upstream_timeout


async def _try(
    client: Client, dialogue: Dialogue, choice: Choice, candidate: Candidate, ssl: str
) -> Backend:
    """Connect to one candidate, have it greet, and tell `choice` if that fails.

    Raises:
      AuthError, BackendError: see `reach`.
    """
    backend = None
    try:
        backend = _connect(client, candidate)
        if client.server.upstreams.leads_back(candidate, backend.wire.fd):
            raise LoopError("upstream is this server itself", action=None)
        backend.tls = backend_tls(client, candidate, ssl)
        with client.timer.attempt():
            await _meet(client, dialogue, backend)
    except BaseException as error:
        if backend is not None:
            backend.close(notify=False)
        remote = isinstance(error, BackendError) and not isinstance(error, LocalError)
        choice.failed(counts=remote)
        raise
    return backend


def _connect(client: Client, candidate: Candidate) -> Backend:
    """Begin to connect; see `Backend.connect`."""
    proxy = client.server.proxy
    return Backend.connect(
        client.network,
        candidate,
        proxy.reply_limit,
        client.info,
        client.trace,
        proxy.outgoing,
    )


async def _meet(client: Client, dialogue: Dialogue, backend: Backend) -> None:
    """Wait for the connection, send the PROXY header, and have the backend greet.

    Raises:
      BackendError: it does not, or there is no TLS although there has to be.
    """
    server, timer = client.server, client.timer
    timeout = server.core.timeout
    timer.limit(timeout, backend.expired)
    if backend.wire.connecting:
        own = server.proxy.proxy_connect_timeout
        if own is not None:
            timer.limit(own, backend.expired)
        await backend.wait_connected()
        if own is not None:
            timer.limit(timeout, backend.expired)
    if server.proxy.proxy_protocol != "off":
        header = proxy_header.format_header(client)
        await backend.send_header(header, dialogue.header_refusal)
    if backend.tls is not None and backend.tls.mode == "on":
        await backend.start_tls()
    await dialogue.meet(backend)
    if backend.needs_starttls:  # the protocol has none
        raise backend.unfit("upstream does not offer STARTTLS")

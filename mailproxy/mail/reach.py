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

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailproxy.mail.candidates import Candidate, Choice
    from mailproxy.mail.client import Client
    from mailproxy.mail.protocol import Dialogue


async def reach(
    client: Client,
    dialogue: Dialogue,
    choice: Choice,
    report: Callable[[BackendError], None],
) -> Backend:
    """Connect to the first candidate that greets as its protocol requires.

    The limit of the login's phase has begun when it returns.

    Args:
      report: logs the failure of a try that is not the last one.

    Raises:
      BackendError: no candidate was reached; that of the last try.
    """
    proxy = client.server.proxy
    began = client.timer.now()
    tries = 0
    candidate = choice.next()
    if candidate is None:
        client.info.upstream = choice.name
        raise BackendError("no live upstreams", action="connecting to upstream")
    while True:
        tries += 1
        try:
            backend = await _try(client, dialogue, candidate)
        except BackendError as error:
            choice.failed(counts=not isinstance(error, LocalError))
            late = client.timer.now() - began >= proxy.next_upstream_timeout
            if late or tries == proxy.proxy_next_upstream_tries or _is_final(error):
                raise
            candidate = choice.next() if proxy.proxy_next_upstream else None
            if candidate is None:
                raise
            report(error)
        except BaseException:
            choice.failed(counts=False)
            raise
        else:
            choice.reached()
            return backend


async def _try(client: Client, dialogue: Dialogue, candidate: Candidate) -> Backend:
    """Connect to one candidate, and have it greet.

    Raises:
      BackendError: it cannot be reached, or does not greet.
    """
    proxy, timer = client.server.proxy, client.timer
    backend = Backend.connect(
        client.network,
        candidate,
        proxy.reply_limit,
        client.info,
        client.trace,
        proxy.outgoing,
    )
    try:
        if client.server.upstreams.leads_back(candidate, backend.wire.fd):
            raise LoopError("upstream is this server itself", action=None)
        with timer.attempt():
            if backend.wire.connecting:
                timer.limit(proxy.proxy_connect_timeout, backend.expired)
                await backend.wait_connected()
            timer.limit(client.server.core.timeout, backend.expired)
            if proxy.proxy_protocol != "off":
                header = proxy_header.format_header(client)
                await backend.send_header(header, dialogue.header_refusal)
            await dialogue.meet(backend)
    except BaseException:
        backend.close(notify=False)
        raise
    return backend


def _is_final(error: BackendError) -> bool:
    """Whether a connection to another backend is useless, or would fail as well."""
    if isinstance(error, LoopError):
        return True
    return error.error is not None and error.error.errno == errno.ENOBUFS

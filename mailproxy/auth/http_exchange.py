"""The exchange with an auth_http server: ask, read the answer, ask again if it says WAIT.

The request is a GET, which may be repeated (RFC 9110, section 9.2.2). It is repeated
once if it was sent on a kept connection that turns out to be closed or dead: in both
cases not one octet of an answer arrives. On a new connection it is sent only once, and
has the whole `auth_http_timeout` again: the time that a dead connection took is not the
server's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mailproxy.auth import trace
from mailproxy.auth.http_answer import (
    HttpAnswer,
    Unusable,
    decide,
    first_line,
    parse,
    shown,
)
from mailproxy.auth.http_request import format_request
from mailproxy.auth.verdict import Granted, Refused, Unavailable
from mailproxy.frozen import Frozen
from mailproxy.log import DEBUG
from mailproxy.log.secrets import spellings
from mailproxy.net.idle import Connection
from mailproxy.net.network import connect_level
from mailproxy.net.timer import timed_out

if TYPE_CHECKING:
    from mailproxy.auth.http import AuthHttpSettings, AuthUrl
    from mailproxy.auth.request import AuthRequest
    from mailproxy.errors import AuthError
    from mailproxy.log import Logger
    from mailproxy.net.network import Network
    from mailproxy.net.timer import Timer
    from mailproxy.net.wire import Wire

MAX_HEADER = 16 * 1024
"""Octets of status line and headers (nginx reads 1 KiB, and then waits until it times
out)."""
MAX_BODY = 64 * 1024
"""A longer body is not read; the connection is closed instead of kept."""
MAX_BODY_WAIT = 0.1
"""Seconds to wait for the body, which is dropped, so no login should wait longer."""
MAX_SILENCE = 2.0
"""Seconds without an octet of the answer after which a kept connection that had been
idle for a second or more counts as dead, and at most half of `auth_http_timeout`."""
MAX_WAITS = 100
"""How many times an auth server may postpone its answer (`Auth-Status: WAIT`)."""
MIN_KEY = 6
"""Octets from which on a value of `auth_http_header` counts as a secret."""

_END = re.compile(rb"(?:\A|\n)\r?\n")
_WHOLE = "status line and headers, up to an empty line"


async def check(
    settings: AuthHttpSettings,
    request: AuthRequest,
    network: Network,
    timer: Timer,
    log: Logger,
) -> Granted | Refused | Unavailable:
    """Ask the server until it decides; see `Source.check`."""
    url = settings.auth_http
    assert url is not None, "every server has one"
    # To list the spellings of a secret takes as long as to write the request.
    secrets = _secrets(settings, request) if log.level >= DEBUG else ()
    question = _Question(
        format_request(settings, request), settings, timer, log, secrets
    )

    def expired() -> AuthError:
        if question.received:
            unusable = question.unusable("timed out: ", _WHOLE)
            late = _explained(unusable, settings, request, timed_out())
        else:
            late = Unavailable(
                event="auth http server %s timed out",
                values=(url.address,),
                error=timed_out(),
            )
        return late.exception()

    def begin() -> None:
        timer.limit(settings.auth_http_timeout, expired)

    try:
        for _ in range(MAX_WAITS):
            answer = await question.ask(network, begin)
            if not answer.puts_off:
                return decide(answer, request)
            timer.stop()
            await timer.sleep(max(answer.wait, 1))
        raise answer.unusable(
            "put off its answer too often: ",
            f"a decision after Auth-Status: WAIT, {MAX_WAITS} times at most",
        )
    except Unusable as unusable:
        return _explained(unusable, settings, request)
    except _BrokenError as broken:
        return broken.unavailable


def _explained(
    unusable: Unusable,
    settings: AuthHttpSettings,
    request: AuthRequest,
    error: OSError | None = None,
) -> Unavailable:
    """The verdict for an unusable answer, which tells the log what came and was wanted."""
    url = settings.auth_http
    assert url is not None
    return Unavailable(
        event=f'auth http server %s {unusable.text}"%s", wanted {unusable.wanted}',
        values=(url.address, shown(unusable.came, _secrets(settings, request))),
        error=error,
    )


def _secrets(settings: AuthHttpSettings, request: AuthRequest) -> tuple[bytes, ...]:
    """The parts of a request that the log must not show if an answer repeats them."""
    # A short value ("1", "imap") is not a key, and would hide every status line.
    keys = [v.lower() for _, v in settings.auth_http_header if len(v) >= MIN_KEY]
    return *spellings(request.secret or b"", request.user), *keys


class _BrokenError(Frozen, Exception):
    """The connection cannot be established, or broke within the answer."""

    def __init__(self, unavailable: Unavailable) -> None:
        super().__init__(unavailable)
        self.unavailable = unavailable


def _receiving_failed(error: OSError) -> _BrokenError:
    return _BrokenError(Unavailable(event="recv() failed", error=error))


class _NoAnswerError(Frozen, Exception):
    """The connection ended, or timed out, before the first octet of an answer."""

    def __init__(self, error: OSError | None = None) -> None:
        super().__init__()
        self.error = error


@dataclass(slots=True)
class _Question:
    """One request, and the part of its answer that has been received."""

    request: bytes = field(repr=False)
    settings: AuthHttpSettings
    timer: Timer
    log: Logger
    secrets: tuple[bytes, ...] = field(repr=False)
    received: bytes = field(default=b"", repr=False)

    async def ask(self, network: Network, begin: Callable[[], None]) -> HttpAnswer:
        """Ask on a kept connection; without one, or if it fails, ask on a new one.

        Args:
          begin: begins the time for an answer; it is called before each request.

        Raises:
          Unusable: the response is not a well-formed answer.
          _BrokenError: the connection cannot be established, or broke.
        """
        url = self.settings.auth_http
        assert url is not None
        self.received = b""
        server = url.family, url.sockaddr
        kept = None
        begin()
        if self.settings.auth_http_keepalive is not None:
            limit = self.settings.auth_http_timeout / 2
            kept = network.idle.take(server, min(MAX_SILENCE, limit))
        if kept is not None:
            try:
                return await self._ask_on(kept, network)
            except _NoAnswerError:
                network.idle.drop_suspects(server, kept.since)
                if kept.silent:
                    self.log.warn(
                        "auth http server %s was silent on a kept connection, "
                        "asking again on a new one",
                        url.address,
                    )
                begin()
        try:
            return await self._ask_on(Connection(_connect(network, url)), network)
        except _NoAnswerError as none:
            if none.error is not None:
                raise _receiving_failed(none.error) from None
            raise Unusable("closed connection prematurely: ", b"", _WHOLE) from None

    async def _ask_on(self, connection: Connection, network: Network) -> HttpAnswer:
        """Ask on one connection, then keep it if the server allows that, or close it.

        Raises:
          _NoAnswerError: not one octet of an answer arrived.
        """
        url, reuse = self.settings.auth_http, self.settings.auth_http_keepalive
        assert url is not None
        wire, server = connection.wire, (url.family, url.sockaddr)
        try:
            await self._begin(server, connection, network)
            answer = await self._finish(wire)
            if reuse is not None and answer.keep and 0 < answer.body <= MAX_BODY:
                await _drop_body(wire, answer, self.timer)
        except BaseException:
            wire.close()
            raise
        if reuse is not None and answer.keep and answer.body == 0:
            network.idle.keep(server, connection, reuse)
        else:
            wire.close()
        return answer

    async def _begin(
        self, server: Hashable, connection: Connection, network: Network
    ) -> None:
        """Send the request, and receive the first octets of the answer."""
        if self.log.level >= DEBUG:
            trace.show(self.log, "to", self.request, self.secrets)
        wire = connection.wire
        try:
            await wire.send_all(self.request)
            network.idle.sent(server, connection)
            self.received = await wire.receive_some()
        except OSError as error:
            raise _NoAnswerError(error) from None
        finally:
            network.idle.heard(server, connection, answer=bool(self.received))
        if not self.received:
            raise _NoAnswerError

    async def _finish(self, wire: Wire) -> HttpAnswer:
        """Receive the rest of the header, and possibly a part of the body."""
        seen = 0
        while True:
            end = _END.search(self.received, seen)
            if end is not None and end.end() <= MAX_HEADER:
                break
            if len(self.received) > MAX_HEADER:
                raise self.unusable("sent too long header: ", f"{MAX_HEADER} octets")
            seen = max(len(self.received) - 3, 0)
            try:
                data = await wire.receive_some()
            except OSError as error:
                raise _receiving_failed(error) from None
            if not data:
                raise self.unusable("closed connection prematurely: ", _WHOLE)
            self.received += data
        header = self.received[: end.start()]
        if self.log.level >= DEBUG:
            trace.show(self.log, "from", header, self.secrets)
        answer = parse(header)
        answer.body -= len(self.received) - end.end()
        return answer

    def unusable(self, text: str, wanted: str) -> Unusable:
        """Make an exception that shows the first line received."""
        return Unusable(text, first_line(self.received), wanted)


def _connect(network: Network, url: AuthUrl) -> Wire:
    """Begin to connect to the auth server.

    Raises:
      _BrokenError: connect() failed at once, or `worker_connections` are in use.
    """
    try:
        return network.connect(url.family, url.sockaddr)
    except OSError as error:
        failed = Unavailable(
            event="connect() to %s failed",
            values=(url.address,),
            error=error,
            level=connect_level(error),
        )
        raise _BrokenError(failed) from None


async def _drop_body(wire: Wire, answer: HttpAnswer, timer: Timer) -> None:
    """Read and drop the body; the connection is not kept if it does not arrive."""
    with timer.at_most(MAX_BODY_WAIT), contextlib.suppress(OSError):
        while answer.body > 0:
            data = await wire.receive_some()
            if not data:
                return
            answer.body -= len(data)

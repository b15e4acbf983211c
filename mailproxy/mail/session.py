"""One client from accept to close: the order of things, and nothing else."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import trio

from mailproxy.auth.verdict import Granted, Refused, Unavailable
from mailproxy.errors import AuthError, BackendError, ClientError, SessionError
from mailproxy.log import DEBUG, Phase, SessionInfo
from mailproxy.mail import proxy, realip, sasl, trace
from mailproxy.mail.auth_request import make_auth_request
from mailproxy.mail.client import Client
from mailproxy.mail.protocol import BadCommand, Login
from mailproxy.net import faults
from mailproxy.net.timer import timed_out

if TYPE_CHECKING:
    from mailproxy.log import Logger
    from mailproxy.mail.listen import Listen
    from mailproxy.mail.server import Server
    from mailproxy.net.network import Network
    from mailproxy.net.relay import Ended
    from mailproxy.net.wire import Wire


async def run(
    wire: Wire,
    server: Server,
    listen: Listen,
    network: Network,
    log: Logger,
    info: SessionInfo,
) -> None:
    """Serve one client until it leaves; never raises but for cancellation.

    Args:
      wire: the accepted connection; it is closed here.
      log: of the server.
      info: who the client is; it changes as the session goes on, and is among the
        live sessions of `network` until the end.
    """
    log = log.bind(context=info)
    backend: Wire | None = None
    notify = True
    info.client_wire = wire
    network.sessions[info.connection] = info
    try:
        log.client_connected()
        entered = await _log_in(Client(wire, server, listen, network, info, log), log)
        if entered is not None:
            backend, to_client, to_backend = entered
            info.action = None
            info.phase = Phase.RELAYED
            log.info("client logged in")
            ended = await network.relay.carry(
                wire,
                backend,
                to_client=to_client,
                to_backend=to_backend,
                idle_limit=server.proxy.proxy_timeout,
                bound=server.proxy.proxy_buffer,
            )
            notify = ended.reason == "done"
            _log_end(ended, info, log)
    except SessionError as error:
        notify = error.error is None or error.error.errno != errno.ETIMEDOUT
        _log_error(error, log)
    except Exception as error:  # a bug ends its session, not the worker
        log.exception("session failed, this is a bug", exception=error)
    finally:
        wire.close(notify=notify)
        if backend is not None:
            backend.close()
        del network.sessions[info.connection]
        if log.level >= DEBUG:
            _log_octets(info, log)


def _log_octets(info: SessionInfo, log: Logger) -> None:
    """Tell at level debug how much was said; what was relayed is not shown."""
    log.debug("client sent %s and got %s octets", info.received, info.sent)
    if info.upstream_wire is not None:
        log.debug(
            "upstream sent %s and got %s octets",
            info.upstream_received,
            info.upstream_sent,
        )


async def _log_in(client: Client, log: Logger) -> tuple[Wire, bytes, bytes] | None:
    """Bring a new client to its backend.

    Returns:
      The backend, what the client is to get first, and what the backend is to get
      first; None when the client said goodbye, was refused, or was told of a failure.
    """
    try:
        with client.timer:
            return await _serve(client, log)
    except (AuthError, BackendError) as error:
        await _fail(client, error)
        return None


async def _serve(client: Client, log: Logger) -> tuple[Wire, bytes, bytes] | None:
    """The phases of `_log_in`, each with its limit on the client's timer."""
    server = client.server
    info = client.info
    limit = client.timer.limit
    timeout = server.core.timeout
    if client.listen.proxy_protocol:
        info.action = "reading PROXY protocol"
        info.phase = Phase.PROXY_HEADER
        limit(timeout)
        await realip.read_header(client)
    if client.listen.ssl:
        limit(timeout)
        await client.start_tls("SSL handshaking")
    info.action = "sending client greeting line"
    info.phase = Phase.GREETING
    limit(timeout)
    protocol = server.protocol
    await protocol.greet(client)
    info.action = "in auth state"
    while True:
        info.phase = Phase.LOGIN
        login = await protocol.read_login(client)
        if login is None:
            return None
        info.method = login.method
        info.attempts += 1
        info.action = "in http auth state"
        info.phase = Phase.AUTH
        if client.trace is not None:
            client.trace.hide(login)
        request = make_auth_request(client, login)
        verdict = await server.auth.check(request, client.network, client.timer, log)
        if isinstance(verdict, Granted):
            return await _enter(client, login, verdict)
        if isinstance(verdict, Unavailable):
            raise verdict.exception()
        _log_refusal(verdict, log)
        # nginx does not read the client meanwhile; neither do we.
        client.timer.stop()
        await trio.sleep(verdict.wait)
        limit(timeout)
        answer = protocol.refusal(login, verdict.text, verdict.code)
        if verdict.sasl_error and login.method in sasl.OAUTH:
            answer = await _explain(client, login, verdict)
            limit(timeout)
        await client.send(answer)
        info.action = "in auth state"
        if not verdict.wait:
            return None


def _log_refusal(refused: Refused, log: Logger) -> None:
    if refused.reason:
        log.info('client login failed: "%s" (%s)', refused.text, refused.reason)
    else:
        log.info('client login failed: "%s"', refused.text)


async def _explain(client: Client, login: Login, verdict: Refused) -> bytes:
    """Tell an OAuth client why, and return the final line (RFC 7628, section 3.2.3)."""
    protocol = client.server.protocol
    try:
        answer = await protocol.challenge(client, verdict.sasl_error)
    except BadCommand as bad:
        if bad.close:
            await client.answer_bad(bad, protocol.invalid(login))
        return protocol.invalid(login)
    if sasl.accepts_failure(login.method, answer):
        return protocol.refusal(login, verdict.text, verdict.code)
    return protocol.invalid(login)


async def _enter(
    client: Client, login: Login, granted: Granted
) -> tuple[Wire, bytes, bytes]:
    """Connect to the backend and log in there.

    Raises:
      BackendError: it cannot be reached or does not let the client in.
    """
    info = client.info
    route = granted.route
    assert route is not None, "the chain has looked"
    info.login = granted.user
    info.upstream = route.name
    info.action = "connecting to upstream"
    info.phase = Phase.CONNECT
    if client.trace is not None:
        client.trace.note('upstream is "%s"', route.name)
    backend = info.upstream_wire = proxy.connect(client.network, route)
    try:
        lines = trace.backend_lines(
            client.trace,
            backend,
            client.server.proxy.reply_limit,
            BackendError,
            "upstream closed connection prematurely",
        )

        sent: list[str] = []

        def sending(what: str) -> None:
            sent.append(what)
            info.action = f"sending {what} to upstream"
            info.phase = Phase.BACKEND_LOGIN

        entering = Login(
            login.method,
            granted.user,
            granted.secret,
            login.tag,
            login.salt,
            login.envelope,
            route.smtp_auth,
        )
        if client.trace is not None:
            client.trace.hide(entering)

        def expired() -> BackendError:
            if lines.buffered:
                info.action = "reading response from upstream"
            return BackendError(
                "upstream timed out", error=timed_out(), level="info", action=None
            )

        client.timer.limit(client.server.core.timeout, expired)
        if client.server.proxy.proxy_protocol != "off":
            sending("PROXY protocol header")
            await proxy.send_header(client, backend)
        answer = await client.server.protocol.enter(lines, entering, client, sending)
    except BaseException as error:
        backend.close()
        if isinstance(error, BackendError):
            proxy.blame_header(client, error, sent)
        raise
    return backend, answer + lines.take_rest(), client.lines.take_rest()


async def _fail(client: Client, error: AuthError | BackendError) -> None:
    """Log what failed, and tell the client that it is not its fault.

    The caller ends the session.
    """
    answer = client.server.protocol.internal_error
    if isinstance(error, BackendError):
        if error.action is not None:
            client.info.action = error.action
        if error.reply and client.server.proxy.proxy_pass_error_message:
            error.level = "info"
            answer = error.reply
    _log_error(error, client.log)
    try:
        with trio.move_on_after(client.server.core.timeout):
            await client.send(answer)
    except ClientError as left:
        _log_error(left, client.log)


def _log_error(error: SessionError, log: Logger) -> None:
    if error.event:
        event = error.event + error.advice
        log.log(error.level, event, *error.values, error=error.error)


def _log_end(ended: Ended, info: SessionInfo, log: Logger) -> None:
    """The last line of a relayed session."""
    info.action = "proxying"
    if ended.error is not None:
        info.action = ended.action
        found = faults.describe(
            "recv" if ended.reason == "done" else "send",
            ended.error,
            "info" if ended.action.endswith("client") else "error",
        )
        log.log(found.level, found.event, *found.values, error=found.error)
    match ended.reason:
        case "done":
            info.action = None
            log.info("proxied session done")
        case "timeout":
            log.info("client timed out", error=timed_out())
        case "shutdown":
            log.info("shutdown timeout")
        case "broken":
            pass  # nginx says no more than the error above

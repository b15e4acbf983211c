"""One session, from accept to close: the order of its phases, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mailproxy.auth.verdict import Granted, Refused, Unavailable
from mailproxy.errors import (
    AuthError,
    ClientError,
    ClientTimeoutError,
    SessionError,
    UpstreamError,
)
from mailproxy.log import DEBUG, Phase
from mailproxy.mail import forward, master_user, proxy_header
from mailproxy.mail.auth_request import make_auth_request
from mailproxy.mail.client import Client
from mailproxy.mail.commands import BadCommand
from mailproxy.mail.reach import reach
from mailproxy.mail.routing import choose
from mailproxy.mail.sasl import clients as sasl
from mailproxy.mail.trace import Secrets
from mailproxy.net import faults
from mailproxy.net.timer import timed_out

if TYPE_CHECKING:
    from mailproxy.auth.verdict import Route
    from mailproxy.log import Logger, SessionInfo
    from mailproxy.mail.candidates import Choice
    from mailproxy.mail.listen import Listen
    from mailproxy.mail.login import Login
    from mailproxy.mail.protocol import Dialogue
    from mailproxy.mail.proxy import ProxySettings
    from mailproxy.mail.server import Server
    from mailproxy.net.network import Network
    from mailproxy.net.relay import Ended
    from mailproxy.net.wire import Wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """A client that is logged in at its backend.

    Attributes:
      wire: the connection to it.
      to_client: octets that the client gets first: the backend's answer to the login,
        and what the backend sent after it.
      to_backend: octets that the client sent after its login.
      choice: hears when the session has left the backend.
    """

    wire: Wire
    to_client: bytes
    to_backend: bytes
    choice: Choice


async def run(
    wire: Wire,
    server: Server,
    listen: Listen,
    network: Network,
    log: Logger,
    info: SessionInfo,
) -> None:
    """Serve one client, close its wire; raises nothing except cancellation.

    Until then, `info` is among the live sessions of `network`.
    """
    log = log.bind(context=info)
    secrets, notify = Secrets(), True
    info.client_wire, network.sessions[info.connection] = wire, info
    try:
        log.client_connected()
        entered = await _log_in(wire, server, listen, network, info, log, secrets)
        if entered is not None:
            notify = await _relay(wire, entered, server.proxy, network, info, log)
    except SessionError as error:
        notify = not isinstance(error, ClientTimeoutError)
        _log_error(error, log, secrets)
    except Exception as error:  # a bug ends its session, not the worker
        log.exception("session failed, this is a bug", exception=error)
    finally:
        wire.close(notify=notify)
        del network.sessions[info.connection]
        _log_octets(info, log)


def _log_octets(info: SessionInfo, log: Logger) -> None:
    """Log at level debug how many octets were sent, as relayed data is not shown."""
    if log.level < DEBUG:
        return
    log.debug("client sent %s and got %s octets", info.received, info.sent)
    if info.upstream_wire is not None:
        log.debug(
            "upstream sent %s and got %s octets",
            info.upstream_received,
            info.upstream_sent,
        )


async def _log_in(
    wire: Wire,
    server: Server,
    listen: Listen,
    network: Network,
    info: SessionInfo,
    log: Logger,
    secrets: Secrets,
) -> Entered | None:
    """Log a new client in at its backend.

    What only a login needs ends here: thousands of sessions are relayed.

    Returns:
      None if the client quit, was refused, or was told of a failure.
    """
    client = Client(wire, server, listen, network, info, log, secrets)
    try:
        with client.timer:
            return await _serve(client)
    except (AuthError, UpstreamError) as error:
        await _tell_failure(client, error)
        return None


async def _serve(client: Client) -> Entered | None:
    """Run the phases of `_log_in`, each with its limit on the client's timer."""
    if client.listen.proxy_protocol:
        await _read_header(client)
    if client.listen.ssl:
        await _start_tls(client)
    dialogue = client.server.protocol.dialogue(client)
    await _greet(client, dialogue)
    while True:
        client.info.action = "in auth state"
        client.info.phase = Phase.LOGIN
        login = await dialogue.read_login()
        if login is None:
            return None
        verdict = await _ask(client, dialogue, login)
        if isinstance(verdict, Granted):
            return await _enter(client, dialogue, login, verdict)
        await _refuse(client, dialogue, login, verdict)
        if not verdict.wait:
            return None


async def _read_header(client: Client) -> None:
    """Phase 1: the PROXY header."""
    client.info.action = "reading PROXY protocol"
    client.info.phase = Phase.PROXY_HEADER
    client.timer.limit(client.server.core.timeout)
    await proxy_header.read_header(client)


async def _start_tls(client: Client) -> None:
    """Phase 2: TLS from the first octet on."""
    client.timer.limit(client.server.core.timeout)
    await client.start_tls("SSL handshaking")


async def _greet(client: Client, dialogue: Dialogue) -> None:
    """Phase 3: the greeting. Its limit covers the first login, too."""
    client.info.action = "sending client greeting line"
    client.info.phase = Phase.GREETING
    client.timer.limit(client.server.core.timeout)
    await dialogue.greet()


async def _ask(client: Client, dialogue: Dialogue, login: Login) -> Granted | Refused:
    """Phase 5: the auth sources.

    Raises:
      AuthError: the sources gave no usable answer.
    """
    info = client.info
    info.method = login.method
    info.attempts += 1
    info.action = "in http auth state"
    info.phase = Phase.AUTH
    client.secrets.remember(login)
    request = make_auth_request(dialogue, login)
    sources = client.server.auth
    verdict = await sources.check(request, client.network, client.timer, client.log)
    if isinstance(verdict, Unavailable):
        raise verdict.exception()
    return verdict


async def _refuse(
    client: Client, dialogue: Dialogue, login: Login, verdict: Refused
) -> None:
    """Tell the client that its login is refused, after the time set by the auth source."""
    _log_refusal(verdict, client)
    # As in nginx, nothing is read from the client during that time.
    client.timer.stop()
    await client.timer.sleep(verdict.wait)
    timeout = client.server.core.timeout
    client.timer.limit(timeout)
    answer = dialogue.refusal(login, verdict.text, verdict.code)
    if verdict.sasl_error and login.has_token:
        answer = await _explain(client, dialogue, login, verdict)
        client.timer.limit(timeout)
    await client.send(answer)


def _log_refusal(refused: Refused, client: Client) -> None:
    text = client.secrets.hidden(refused.text)
    if refused.reason:
        client.log.info('client login failed: "%s" (%s)', text, refused.reason)
    else:
        client.log.info('client login failed: "%s"', text)


async def _explain(
    client: Client, dialogue: Dialogue, login: Login, verdict: Refused
) -> bytes:
    """Send an OAuth client the reason, and return the final line (RFC 7628, 3.2.3)."""
    try:
        answer = await dialogue.challenge(verdict.sasl_error)
    except BadCommand as bad:
        if bad.close:
            await client.answer_bad(bad, dialogue.invalid(login))
        return dialogue.invalid(login)
    if sasl.accepts_failure(login.method, answer):
        return dialogue.refusal(login, verdict.text, verdict.code)
    return dialogue.invalid(login)


def _for_backend(client: Client, login: Login, granted: Granted, route: Route) -> Login:
    """The login that the backend is offered.

    Raises:
      AuthError: the master user cannot log in there.
    """
    login = login.at_backend(
        user=granted.user, secret=granted.secret, smtp_auth=route.smtp_auth
    )
    if route.master or client.server.proxy.proxy_master_user is not None:
        login = master_user.apply(login, granted, route.master, client)
    client.secrets.remember(login)
    return login


async def _enter(
    client: Client, dialogue: Dialogue, login: Login, granted: Granted
) -> Entered:
    """Phases 6 and 7: connect to the backend and log in there.

    Raises:
      AuthError: the master user cannot log in there.
      UpstreamError: the backend cannot be reached, fails, or refuses the login.
    """
    route = granted.route
    assert route is not None, "the chain has looked"
    client.info.login = granted.user
    login = _for_backend(client, login, granted, route)
    forward.check_loop(dialogue)
    choice = await choose(route, client)
    report = partial(_report, client)
    backend = await reach(client, dialogue, choice, route.ssl, report)
    try:
        answer = await dialogue.enter(backend, login)
    except BaseException:
        backend.close()
        choice.release()
        raise
    backend.keep_session()
    return Entered(
        wire=backend.wire,
        to_client=answer + backend.lines.take_rest(),
        to_backend=client.lines.take_rest(),
        choice=choice,
    )


async def _relay(
    wire: Wire,
    entered: Entered,
    settings: ProxySettings,
    network: Network,
    info: SessionInfo,
    log: Logger,
) -> bool:
    """Phase 8: relay both directions, and close the backend.

    Returns:
      Whether to send the client a TLS closure alert.
    """
    info.action = None
    info.phase = Phase.RELAYED
    log.info("client logged in")
    try:
        ended = await network.relay.carry(
            wire,
            entered.wire,
            to_client=entered.to_client,
            to_backend=entered.to_backend,
            idle_limit=settings.proxy_timeout,
            bound=settings.proxy_buffer,
        )
        _log_end(ended, info, log)
        return ended.reason == "done"
    finally:
        entered.wire.close()
        entered.choice.release()


async def _tell_failure(client: Client, error: AuthError | UpstreamError) -> None:
    """Log a failure that is not the client's fault, and tell the client.

    The caller ends the session.
    """
    answer, level = client.server.protocol.internal_error, error.level
    passes_on = client.server.proxy.proxy_pass_error_message
    if passes_on and isinstance(error, UpstreamError) and error.reply:
        answer, level = error.reply, "info"
    _report(client, error, level)
    try:
        with client.timer.at_most(client.server.core.timeout):
            await client.send(answer)
    except ClientError as left:
        _log_error(left, client.log, client.secrets)


def _report(client: Client, error: SessionError, level: str | None = None) -> None:
    """Log a failure that is not the client's fault; see `_log_error`."""
    if isinstance(error, UpstreamError) and error.action is not None:
        client.info.action = error.action
    _log_error(error, client.log, client.secrets, level)


def _log_error(
    error: SessionError, log: Logger, secrets: Secrets, level: str | None = None
) -> None:
    """Log why a session ends, at the error's own level if none is given."""
    if error.event:
        event = error.event + error.advice
        hidden = secrets.hidden
        values = [hidden(v) if isinstance(v, bytes) else v for v in error.values]
        log.log(level or error.level, event, *values, error=error.error)


def _log_end(ended: Ended, info: SessionInfo, log: Logger) -> None:
    """The last line of a relayed session."""
    info.action = "proxying"
    if ended.error is not None:
        reading = ended.reason == "done"
        info.action += " and reading from" if reading else " and sending to"
        info.action += " client" if ended.side == "client" else " upstream"
        found = faults.describe(
            "recv" if reading else "send",
            ended.error,
            "info" if ended.side == "client" else "error",
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
            pass  # nginx logs nothing but the error above

"""The exceptions that end a session: each says who failed; `mail.session` catches them.

And `StartError`: why a worker could not begin.
"""

import contextlib
from collections.abc import Iterator

from mailproxy.frozen import Frozen


class StartError(Frozen, Exception):
    """A worker lacks what it needs before it can serve anybody.

    Attributes:
      call: the call that failed, as in ``signalfd()``.
      error: how it failed.
    """

    def __init__(self, call: str, error: OSError) -> None:
        super().__init__(f"{call} failed")
        self.call = call
        self.error = error


@contextlib.contextmanager
def needed(call: str) -> Iterator[None]:
    """Turn a system error of the block, which does `call`, into a `StartError`."""
    try:
        yield
    except OSError as error:
        raise StartError(call, error) from error


class SessionError(Frozen, Exception):
    """Why a session cannot go on.

    Attributes:
      event, values: message of the log line, as the methods of a `Logger` take it;
        if it is empty, nothing is logged.
      error: the system error behind it, which the log shows as
        ``(104: Connection reset by peer)``.
      level: nginx's name of the log level.
    """

    level: str = "info"

    def __init__(
        self,
        event: str = "",
        *values: object,
        error: OSError | None = None,
        level: str = "",
    ) -> None:
        # The values may come from outside, so they are kept out of the text.
        super().__init__(event)
        self.event = event
        self.values = values
        self.error = error
        self.level = level or type(self).level

    @property
    def advice(self) -> str:
        """Our addition to `event` in the log; empty for most errors."""
        return ""


class ClientError(SessionError):
    """The client left, was silent for too long, or exceeded a limit."""


class ClientTimeoutError(ClientError):
    """The client exceeded a time limit; its TLS session is closed without close_notify."""


READING = "reading response from upstream"
"""What a session does while it waits for its backend, in nginx's words."""


class UpstreamError(SessionError):
    """The client cannot be logged in at its backend: `BackendError` or `LoginRefused`.

    Attributes:
      reply: the backend's answer, in whole lines, if that is the reason; it may be
        passed on to the client (`proxy_pass_error_message`).
      action: what the session was doing, in nginx's words; None: leave the action of
        the log context as it is.
      command: the command that `reply` answers, as the log names it, or empty.
      remedy: the setting that keeps that command from the backend.
    """

    level = "error"

    def __init__(
        self,
        event: str = "",
        *values: object,
        error: OSError | None = None,
        level: str = "",
        reply: bytes = b"",
        action: str | None = READING,
        command: str = "",
        remedy: str = "",
    ) -> None:
        super().__init__(event, *values, error=error, level=level)
        self.reply = reply
        self.action = action
        self.command = command
        self.remedy = remedy

    @property
    def advice(self) -> str:
        """What was refused and what to do: ``to XCLIENT, try "xclient off"``."""
        refused = f" to {self.command}" if self.command else ""
        return f'{refused}, try "{self.remedy}"' if self.remedy else refused


class BackendError(UpstreamError):
    """The backend cannot be reached, or does not answer as its protocol requires."""


class LocalError(BackendError):
    """There is no connection to the backend, for a reason on this machine."""


class LoopError(LocalError):
    """The connection to the backend leads to this very program."""


class LoginRefused(UpstreamError):  # noqa: N818 - an answer, not a fault
    """The backend does not accept the user name and the secret."""


class AuthError(SessionError):
    """The auth source gave no usable answer."""

    level = "error"

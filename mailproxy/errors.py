"""Who ended a session: raised where it happens, caught in `mail.session`.

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
        an empty one logs nothing.
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
        # The values may come from outside, and are not part of the text on purpose.
        super().__init__(event)
        self.event = event
        self.values = values
        self.error = error
        self.level = level or type(self).level

    @property
    def advice(self) -> str:
        """What the log says behind `event`, in words of ours; mostly nothing."""
        return ""


class ClientError(SessionError):
    """The client left, was silent for too long, or broke a limit."""


class ClientTimeoutError(ClientError):
    """The client let a time limit of ours pass; nobody says goodbye to it in TLS."""


READING = "reading response from upstream"
"""What a session does while it waits for its backend, in nginx's words."""


class UpstreamError(SessionError):
    """The client cannot be brought to its mail server: `BackendError` or `LoginRefused`.

    Attributes:
      reply: what the backend answered, whole lines, if that is the reason; it may
        be passed on to the client (`proxy_pass_error_message`).
      action: what was done, in nginx's words, as it happened; None: what the log says
        already.
      command: which command `reply` answers, as the log names it, or empty.
      remedy: the setting with which the backend is spared that command.
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
        """``to XCLIENT, try "xclient off"``: what was refused, and what to do."""
        refused = f" to {self.command}" if self.command else ""
        return f'{refused}, try "{self.remedy}"' if self.remedy else refused


class BackendError(UpstreamError):
    """The mail server cannot be reached, or does not answer as its protocol says."""


class LoginRefused(UpstreamError):  # noqa: N818 - an answer, not a fault
    """The mail server does not accept the user name and the secret."""


class AuthError(SessionError):
    """The auth source gave no usable answer."""

    level = "error"

"""Who ended a session: raised where it happens, caught in `mail.session`."""


class SessionError(Exception):
    """Why a session cannot go on.

    The text of the exception is the message of the log line; an empty text logs
    nothing. `error` is the system error behind it, which the log shows as
    ``(104: Connection reset by peer)``.
    """

    def __init__(
        self, message: str = "", error: OSError | None = None, level: str = "info"
    ) -> None:
        super().__init__(message)
        self.message = message
        self.error = error
        self.level = level


class ClientError(SessionError):
    """The client left, was silent for too long, or broke a limit."""


class BackendError(SessionError):
    """The mail server cannot be reached, or does not let the client in."""


class AuthError(SessionError):
    """The auth source gave no usable answer."""

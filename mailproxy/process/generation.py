"""A generation: one configuration, with its logs, listening sockets and secrets open.

Workers are forked from it, and inherit them all.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mailproxy.frozen import Frozen
from mailproxy.log import Logs, WorkerAccount, log_unopened, open_logs
from mailproxy.mail.listen import Listen
from mailproxy.net import listening
from mailproxy.net.listening import Held, Key, Listener, ListenError
from mailproxy.process import pidfile
from mailproxy.process.configuration import Configuration
from mailproxy.process.options import Options
from mailproxy.process.pidfile import PidError
from mailproxy.process.secret_files import SecretError, SecretFiles
from mailproxy.process.settings import MainSettings

if TYPE_CHECKING:
    from mailproxy.log import Logger


class GenerationError(Frozen, Exception):
    """A configuration cannot be used; the reason is in the log."""


@dataclass(frozen=True, eq=False)
class Generation:
    """An open configuration, from which workers are forked."""

    configuration: Configuration
    logs: Logs
    listeners: tuple[Listener[Listen], ...]
    secrets: SecretFiles = field(default_factory=SecretFiles)
    """Those of workers."""
    manager_secrets: SecretFiles = field(default_factory=SecretFiles)
    """Those of its manager. They stay open as long as that may have to be replaced."""

    @property
    def main(self) -> MainSettings:
        """The settings of the main context."""
        return self.configuration.main

    @property
    def log(self) -> Logger:
        """The log of everything but sessions."""
        return self.logs.main

    def lacks(self, other: Generation) -> list[Listener[Listen]]:
        """The listeners of another generation that this one does not have."""
        kept = {listener.key for listener in self.listeners}
        return [listener for listener in other.listeners if listener.key not in kept]

    def remove_pid(self, but: Generation | None = None, suffix: str = "") -> None:
        """Remove the pid file, unless generation `but` has the same."""
        path = self.main.pid
        if path is None or (but is not None and _same(path, but.main.pid)):
            return
        try:
            pidfile.remove(path + suffix)
        except PidError as failure:
            self.log.alert(str(failure), error=failure.error)

    def close(self) -> None:
        """Close the logs and the secrets of workers.

        Listening sockets may belong to others, too, and the manager's secrets to a
        manager that is still needed.
        """
        self.logs.close()
        self.secrets.close()

    def reopen_logs(self) -> None:
        """Open the log files again by name, so that workers can do it, too."""
        self.logs.reopen(give=True)
        self.logs.redirect_stderr()


def first(
    configuration: Configuration,
    options: Options,
    log: Logger,
    held: Mapping[Key, Held],
) -> Generation:
    """Open the generation that the program starts with.

    Args:
      log: the start-up log, which is used until the configured logs are open.
      held: inherited sockets; those that the configuration does not need are closed.

    Raises:
      GenerationError: a log or a secret cannot be opened, or an address cannot be
        listened at.
    """
    logs = _open_logs_or_say(configuration, options, log, copy_as=options.name)
    secrets, manager_secrets = _open_secrets(configuration, logs.main)
    listeners = _listen(configuration, held, logs.main)
    wanted = {listener.key for listener in listeners}
    listening.close(
        [each for key, each in held.items() if key not in wanted],
        logs.main,
        files=False,
        say=False,
    )
    _say_limits(configuration, logs.main)
    return Generation(configuration, logs, listeners, secrets, manager_secrets)


def following(
    configuration: Configuration,
    options: Options,
    old: Generation,
    pause: Callable[[float], None] = time.sleep,
) -> Generation:
    """Open the generation that a reload makes beside the `old` one.

    Args:
      pause: waits for a number of seconds, while an address is in use; may raise.

    Raises:
      GenerationError: as for `first`, or the pid file cannot be written. In that case
        nothing is changed.
    """
    with contextlib.ExitStack() as undo:
        pid = configuration.main.pid
        if pid is not None and not _same(pid, old.main.pid):
            try:
                pidfile.write(pid, os.getpid())
            except PidError as failure:
                old.log.emerg(str(failure), error=failure.error)
                raise GenerationError from failure
            undo.push(contextlib.suppress(PidError))
            undo.callback(pidfile.remove, pid)
        logs = _open_logs_or_say(configuration, options, old.log, copy_as=None)
        undo.callback(logs.close)
        secrets, manager_secrets = _open_secrets(configuration, old.log)
        undo.callback(secrets.close)
        undo.callback(manager_secrets.close)
        held = listening.by_key(old.listeners)
        listeners = _listen(configuration, held, old.log, pause)
        undo.pop_all()
    logs.redirect_stderr()
    _say_limits(configuration, logs.main)
    return Generation(configuration, logs, listeners, secrets, manager_secrets)


def check_logs(configuration: Configuration, options: Options, log: Logger) -> None:
    """Check that the logs can be opened, before the master does, because it may take long.

    Raises:
      GenerationError: one cannot be opened; the reason is in `log`.
    """
    _open_logs_or_say(configuration, options, log, copy_as=None).close()


def test(configuration: Configuration, options: Options, startup: Logs) -> bool:
    """Whether logs, pid file and ports can be opened (`-t`); what cannot is logged.

    If all can, no logger is made.
    """
    pid = configuration.main.pid
    try:
        if pid is not None:
            pidfile.test(pid)
    except PidError as failure:
        startup.main.emerg(str(failure), error=failure.error)
        return False
    # Messages for a person at a terminal go to no log.
    quiet = replace(options, error_log=options.error_log or os.devnull)
    try:
        logs = _open_logs(configuration, quiet, copy_as=options.name)
    except OSError as error:
        log_unopened(startup.main, error)
        return False
    try:
        if not listening.test(configuration.listens, lambda: logs.main):
            return False
        _warn_of_limits(configuration, lambda: logs.main)
    finally:
        logs.close()
    return True


def _open_logs_or_say(
    configuration: Configuration, options: Options, log: Logger, copy_as: str | None
) -> Logs:
    try:
        return _open_logs(configuration, options, copy_as)
    except OSError as error:
        log_unopened(log, error)
        raise GenerationError from error


def _open_logs(
    configuration: Configuration, options: Options, copy_as: str | None
) -> Logs:
    return open_logs(
        configuration.main.error_log,
        configuration.error_logs,
        default=options.error_log,
        copy_as=copy_as,
        angie=options.name == "angie",
        workers=_workers(configuration.main),
    )


def _workers(main: MainSettings) -> WorkerAccount | None:
    """The user that workers will run as, if that is not the master's."""
    user = main.user
    if user is None or user.uid == os.geteuid():
        return None
    return WorkerAccount(user.uid, frozenset(os.getgrouplist(user.name, user.gid)))


def _open_secrets(
    configuration: Configuration, log: Logger
) -> tuple[SecretFiles, SecretFiles]:
    """Open the secrets of workers, and those of the manager."""
    try:
        with contextlib.ExitStack() as undo:
            secrets = SecretFiles.open(configuration.secret_files)
            undo.callback(secrets.close)
            manager_secrets = SecretFiles.open(configuration.manager_secret_files)
            undo.pop_all()
            return secrets, manager_secrets
    except SecretError as failure:
        log.emerg(str(failure), error=failure.error)
        raise GenerationError from failure


def _listen(
    configuration: Configuration,
    held: Mapping[Key, Held],
    log: Logger,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[Listener[Listen], ...]:
    try:
        return listening.adopt(held, configuration.listens, log, pause)
    except ListenError as error:
        raise GenerationError from error


def _say_limits(configuration: Configuration, log: Logger) -> None:
    log.notice('using the "epoll" event method')
    _warn_of_limits(configuration, lambda: log)


def _warn_of_limits(configuration: Configuration, log: Callable[[], Logger]) -> None:
    connections = configuration.events.worker_connections
    files = configuration.main.worker_rlimit_nofile
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and connections > max(limit, files or 0):
        log().warn(
            f"{connections} worker_connections exceed open file resource limit:"
            f" {limit if files is None else files}"
        )


def _same(path: str, other: str | None) -> bool:
    return other is not None and pidfile.same(path, other)

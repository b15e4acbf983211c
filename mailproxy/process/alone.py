"""Without a master (`master_process off`): the worker does the master's tasks itself.

At a reload, a separate process reads the configuration (see `reader`), and sessions go
on meanwhile. They stop only while the result is loaded, which is pure computation, and
while a new address is in use: for two and a half seconds at most, as in nginx.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable

import trio

from mailproxy import outside
from mailproxy.log import Logger
from mailproxy.net import listening
from mailproxy.net.engine import Engine
from mailproxy.net.listening import Held
from mailproxy.net.watched import Watched
from mailproxy.outside import Findings
from mailproxy.process import generation
from mailproxy.process.children import Children, End
from mailproxy.process.configuration import Configuration
from mailproxy.process.generation import Generation, GenerationError
from mailproxy.process.master import Origin
from mailproxy.process.notify import Notify
from mailproxy.process.options import Options
from mailproxy.process.reader import MAX_READING, TOO_SLOW, ConfigurationReader
from mailproxy.process.secret_files import SecretError
from mailproxy.process.worker import Worker


class Alone:
    """Reloads for a worker that has no master, and cleans up at its end.

    Args:
      load: reads the configuration; logs what is wrong and raises GenerationError.
      reader: reads it before that, in a process of its own.
    """

    def __init__(
        self,
        born: Generation,
        load: Callable[[Logger], Configuration],
        reader: ConfigurationReader,
        options: Options,
        *,
        children: Children,
        notify: Notify,
        origin: Origin,
    ) -> None:
        self._generation = born
        self._load = load
        self._options = options
        self._children = children
        self._reader = reader
        self._notify = notify
        self._origin = origin

    async def reconfigure(self, worker: Worker) -> None:
        """Reload; if that fails, nothing changes."""
        old = self._generation
        old.log.notice("reconfiguring")
        self._notify.reloading()
        findings = await self._read(old.log, worker.network.engine)
        if worker.leaving:
            return
        new = None if findings is None else self._make_next(findings)
        secrets = None if new is None else self._read_secrets(new)
        if new is not None and secrets is not None:
            await worker.serve_instead(
                new.configuration, new.listeners, new.logs, secrets
            )
            self._close(new.lacks(old), say=True)
            old.remove_pid(but=new)
            self._generation = new
        self.say_ready()

    def say_ready(self) -> None:
        """Tell systemd that clients are served."""
        self._notify.ready("single process")

    def leave(self) -> None:
        """Remove the pid file and the sockets, at the end of the process."""
        self._generation.remove_pid()
        self._close(self._generation.listeners, say=False)

    async def _read(self, log: Logger, engine: Engine) -> Findings | None:
        """Have the reader fetch what the load needs; None, and a log line, if it fails."""
        self._children.reap()  # a reader that had to be killed before
        reader = self._reader
        if not reader.start(log):
            return None
        try:
            with trio.move_on_after(MAX_READING):
                return reader.finish(await self._end_of(reader.pid, engine), log)
            log.emerg(TOO_SLOW)
        except OSError as error:
            log.alert("pidfd_open() failed", error=error)
        finally:
            reader.abandon(log)
        return None

    async def _end_of(self, pid: int | None, engine: Engine) -> End:
        assert pid is not None
        descriptor = os.pidfd_open(pid)
        try:
            with contextlib.closing(Watched(engine, descriptor)) as process:
                await process.wait_readable()
        finally:
            os.close(descriptor)
        return next(end for end in self._children.reap() if end.pid == pid)

    def _make_next(self, findings: Findings) -> Generation | None:
        old = self._generation
        try:
            with outside.replaying(findings):
                configuration = self._load(old.log)
            return generation.following(configuration, self._options, old)
        except GenerationError:
            pass  # it is logged
        except Exception as error:
            old.log.exception("reload failed, this is a bug", exception=error)
        return None

    def _read_secrets(self, new: Generation) -> dict[str, bytes] | None:
        """Read the secrets of the next generation; if that fails, it is given up."""
        old = self._generation
        try:
            return new.secrets.take()
        except SecretError as failure:
            old.log.emerg(str(failure), error=failure.error)
        self._close(old.lacks(new), say=True)
        new.remove_pid(but=old)
        new.close()
        old.logs.redirect_stderr()
        return None

    def _close(self, unwanted: Iterable[Held], *, say: bool) -> None:
        files = self._origin.owns_sockets
        listening.close(unwanted, self._generation.log, files=files, say=say)

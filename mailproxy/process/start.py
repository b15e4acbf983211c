"""From a configuration to a running program, in nginx's order.

Logs and ports are opened first, with full rights and in the foreground. Only then does
the program go into the background, where it writes its pid file. The command returns
after all that, with an exit code for the outcome.
"""

from __future__ import annotations

import gc
import os
import platform
import resource
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from mailproxy import __version__, compiled, outside
from mailproxy.errors import StartError
from mailproxy.log import Logger, Logs
from mailproxy.mail import dialogues  # noqa: F401 # workers have them by fork
from mailproxy.net import listening
from mailproxy.outside import Findings
from mailproxy.process import (
    generation,
    pidfile,
    reader,
    signals,
    upgrade,
    worker_services,
)
from mailproxy.process.alone import Alone
from mailproxy.process.children import FATAL, Children
from mailproxy.process.configuration import Configuration
from mailproxy.process.daemon import Foreground, daemonise
from mailproxy.process.generation import Generation, GenerationError
from mailproxy.process.managers import ManagerPlace
from mailproxy.process.master import Master, Origin, Pause
from mailproxy.process.notify import Notify, activated
from mailproxy.process.options import Options
from mailproxy.process.pidfile import PidError
from mailproxy.process.privileges import (
    UnfitError,
    become_manager,
    become_worker,
    environment,
    set_environment,
)
from mailproxy.process.reader import ConfigurationReader
from mailproxy.process.secret_files import SecretError
from mailproxy.process.title import set_title
from mailproxy.process.upgrade import Successor
from mailproxy.process.worker import Worker
from mailproxy.process.workers import WorkerPlace

Load = Callable[[Logger], Configuration]
"""Reads the configuration; logs what is wrong and raises GenerationError."""


def run(options: Options, load: Load, startup: Logs) -> int:
    """Start, and serve until told to stop; returns the exit code.

    Args:
      startup: the log that is used until the configuration's own are open.
    """
    if sys.platform != "linux":
        startup.main.emerg(
            f"there is no epoll(7), signalfd(2) or pidfd_open(2) on {sys.platform}:"
            " only Linux can run the proxy, though any system can test a configuration"
        )
        return 1
    gc.freeze()  # what was imported stays: the workers' start need not look through it
    started_with = dict(os.environ)
    notify = Notify(os.environ)
    numbers = upgrade.inherited(os.environ, startup.main)
    given = activated(os.environ)
    held = listening.inherit([*(numbers or ()), *given], startup.main)
    old_master = None if numbers is None else os.getppid()
    try:
        born = generation.first(load(startup.main), options, startup.main, held)
        _say_what_runs(born.log)
        signals.block()
        foreground = _settle_down(born, daemon=old_master is None and born.main.daemon)
    except GenerationError:
        return 1
    gc.enable()  # `main` turned it off
    startup.close()
    background = foreground is not None or old_master is not None
    origin = Origin(background, old_master, activated=bool(given))
    children = Children()
    home = _Home(
        options,
        started_with,
        notify,
        foreground,
        children,
        ConfigurationReader(partial(_read, options, load), children),
    )
    if born.main.master_process:
        return _lead(born, load, home, origin)
    return _serve_alone(born, load, home, origin)


def _settle_down(born: Generation, *, daemon: bool) -> Foreground | None:
    """Go into the background, write the pid file, and send stderr to the log.

    Raises:
      GenerationError: one of these failed; the reason is in the log.
    """
    foreground = None
    try:
        if daemon:
            foreground = daemonise()
        if born.main.pid is not None:
            pidfile.write(born.main.pid, os.getpid())
    except OSError as error:
        born.log.emerg("fork() failed", error=error)
        raise GenerationError from error
    except PidError as failure:
        born.log.emerg(str(failure), error=failure.error)
        raise GenerationError from failure
    born.logs.redirect_stderr()
    born.logs.stop_copying()
    return foreground


@dataclass(frozen=True)
class _Home:
    """What a process keeps across generations."""

    options: Options
    started_with: Mapping[str, str]
    """The environment of the start."""
    notify: Notify
    foreground: Foreground | None
    children: Children
    reader: ConfigurationReader
    """Reads the configuration at a reload."""

    def release(self, code: int) -> None:
        """Let the command that started us return."""
        if self.foreground is not None:
            self.foreground.release(code)

    def work(self, place: WorkerPlace, orders: socket.socket) -> int:
        """Run as a worker, from the fork to the exit code."""
        born, outgoing = place.generation, place.outgoing
        born.manager_secrets.close()
        log = born.log
        retitle = partial(set_title, self.options.name)
        retitle("worker process")
        place.row.begin()
        self._leave_to_master()
        if outgoing is not None:
            for listener in born.lacks(outgoing):
                listener.socket.close()
            outgoing.close()
        set_environment(environment(born.main.env, self.started_with))
        try:
            secrets = born.secrets.take()
            become_worker(born.main, place.slot, log)
            return Worker(
                born.configuration,
                born.listeners,
                born.logs,
                worker_services.of_worker(orders),
                retitle,
                row=place.row,
                manager=place.manager,
                secrets=secrets,
            ).run()
        except UnfitError:
            return FATAL
        except SecretError as failure:
            log.emerg(str(failure), error=failure.error)
            return 1
        except StartError as failure:  # the master tries again, or stays with the old
            log.emerg(f"{failure.call} failed", error=failure.error)
            return 1
        except Exception as error:  # the master starts another one
            log.exception("worker process failed, this is a bug", exception=error)
            return 1

    def manage(self, place: ManagerPlace, orders: socket.socket) -> int:
        """Run as a manager, from the fork to the exit code."""
        logs, main = place.current.logs, place.generation.main
        set_title(self.options.name, "manager process")
        place.row.begin()
        self._leave_to_master()
        for each in filter(None, (place.current, place.outgoing)):
            for listener in each.listeners:
                listener.socket.close()
            if each.logs is not logs:
                each.logs.close()
            each.secrets.close()
        set_environment(environment(main.env, self.started_with))
        try:
            secrets = place.generation.manager_secrets.take()
            become_manager(main, logs.main)
            from mailproxy.process.manager import run  # no other process needs it

            return run(place, logs, orders, secrets)
        except UnfitError:
            return FATAL
        except SecretError as failure:
            logs.main.emerg(str(failure), error=failure.error)
            return 1
        except Exception as error:  # noqa: BLE001 # the master starts another one
            logs.main.exception(
                "manager process failed, this is a bug", exception=error
            )
            return 1

    def _leave_to_master(self) -> None:
        """Close what only the master needs, in another process."""
        self.notify.close()
        self.reader.close()
        if self.foreground is not None:
            self.foreground.close()


def _lead(born: Generation, load: Load, home: _Home, origin: Origin) -> int:
    """Run as the master; returns the exit code."""
    options = home.options
    set_title(options.name, " ".join(("master process", *options.argv)))

    def load_next(old: Generation, findings: Findings, pause: Pause) -> Generation:
        with outside.replaying(findings):
            configuration = load(old.log)
        return generation.following(configuration, options, old, pause)

    master = Master(
        born,
        load_next,
        home.work,
        home.manage,
        reader=home.reader,
        processes=home.children,
        signals=signals,
        upgrade=Successor(
            options.argv, home.started_with, home.notify.variables, home.children
        ),
        notify=home.notify,
        origin=origin,
    )
    if not master.start():
        home.release(FATAL)
        return FATAL
    home.release(0)
    try:
        return master.run()
    except Exception as error:
        # Workers go on without a master, as after its SIGKILL.
        born.log.exception("master process failed, this is a bug", exception=error)
        return FATAL


def _read(options: Options, load: Load, log: Logger) -> None:
    """Do what may take long in a reload, in the reader's process."""
    set_title(options.name, reader.NAME)
    generation.check_logs(load(log), options, log)


def _serve_alone(born: Generation, load: Load, home: _Home, origin: Origin) -> int:
    """Run as master and worker in one (`master_process off`); returns the exit code."""
    if home.notify.watchdog is not None:
        born.log.warn('a watchdog of systemd needs "master_process on"')
    alone = Alone(
        born,
        load,
        home.reader,
        home.options,
        children=home.children,
        notify=home.notify,
        origin=origin,
    )
    alone.say_ready()
    home.release(0)
    set_environment(environment(born.main.env, home.started_with))
    try:
        code = Worker(
            born.configuration,
            born.listeners,
            born.logs,
            worker_services.of_single_process(alone.reconfigure),
            secrets=born.secrets.take(),
        ).run()
    except SecretError as failure:
        born.log.emerg(str(failure), error=failure.error)
        code = 1
    except StartError as failure:
        born.log.emerg(f"{failure.call} failed", error=failure.error)
        code = 1
    alone.leave()
    return code


def _say_what_runs(log: Logger) -> None:
    system = platform.uname()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    log.notice(f"mailproxy/{__version__}")
    log.notice(
        f"running on {platform.python_implementation()} {platform.python_version()}"
        f" with {ssl.OPENSSL_VERSION} ({compiled.form()})"
    )
    trouble = compiled.problem()
    if trouble is not None:
        log.warn(trouble)
    log.notice(f"OS: {system.system} {system.release}")
    log.notice(f"getrlimit(RLIMIT_NOFILE): {soft}:{hard}")

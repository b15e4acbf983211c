"""The core and event modules: https://nginx.org/en/docs/ngx_core_module.html."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import Self

from mailproxy import outside
from mailproxy.conf.addresses import IPNetwork, cidr
from mailproxy.conf.directive import Block, Reading, Settings, Value, directive
from mailproxy.conf.hints import is_secret
from mailproxy.conf.tree import ConfigError, Directive, DuplicateError
from mailproxy.conf.values import (
    c_string,
    choice,
    duration,
    flag,
    in_prefix,
    number,
    offset,
    parse_number,
    text,
)
from mailproxy.log.directive import ErrorLog
from mailproxy.mail.core import error_log
from mailproxy.process.certificate_values import DEFAULT_WARNINGS, warnings, watch

DEFAULT_USER = "nobody"
"""The workers' account if the master is root and there is no `user` directive."""
_MAX_CPUS = 1024


@dataclass(frozen=True, slots=True)
class User:
    """The account that workers run as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Affinity:
    """The `worker_cpu_affinity` directive."""

    auto: bool
    """Spread the workers over the CPUs, one each."""
    masks: tuple[frozenset[int], ...]
    """CPUs of each worker, the last set for all further ones; with `auto`, CPUs to use."""


def _parse_user(found: Directive, reading: Reading) -> User | None:
    if os.geteuid() != 0:
        reading.warn(
            f'the "{found.name}" directive makes sense only if the master process runs '
            "with super-user privileges, ignored",
            found,
        )
        return None
    if found.name in reading.block.given:
        raise DuplicateError
    name = found.words[1]
    group = found.words[-1]
    try:
        owner, uid, gid = outside.account(c_string(name.value))
    except (KeyError, ValueError):
        raise ConfigError(
            f'getpwnam("{c_string(name.value)}") failed', name, "no such user"
        ) from None
    try:
        gid = outside.group(c_string(group.value))
    except (KeyError, ValueError):
        raise ConfigError(
            f'getgrnam("{c_string(group.value)}") failed',
            group,
            "no such group; the group is the second argument",
        ) from None
    return User(owner, uid, gid)


def online_cpus() -> int:
    """The number of CPUs that are online, for `worker_processes auto`."""
    return max(1, os.sysconf("SC_NPROCESSORS_ONLN"))


def _parse_processes(found: Directive, _: Reading) -> int:
    value = found.words[1].value
    if c_string(value) == "auto":
        return online_cpus()
    try:
        return parse_number(value)
    except ValueError:
        raise ValueError("invalid value") from None


def _parse_priority(found: Directive, reading: Reading) -> int:
    given = reading.block.given.get(found.name)
    if given is not None and given.value != 0:
        raise DuplicateError
    value = found.words[1].value
    if value.startswith("-"):
        return -parse_number(value[1:])
    return parse_number(value.removeprefix("+"))


def _parse_affinity(found: Directive, _: Reading) -> Affinity:
    words = found.args
    auto = c_string(words[0].value) == "auto"
    if auto:
        if len(words) > 2:
            raise ConfigError(
                f'invalid number of arguments in "{found.name}" directive', words[2]
            )
        words = words[1:]
    masks = []
    for word in words:
        if len(word.octets) > _MAX_CPUS:
            raise ConfigError(
                f'"worker_cpu_affinity" supports up to {_MAX_CPUS} CPUs only', word
            )
        bits = word.value.replace(" ", "")[::-1]
        for bit in bits:
            if bit not in "01":
                shown = bit.encode("utf-8", "surrogateescape")[-1:]
                raise ConfigError(
                    f'invalid character "{shown.decode("utf-8", "surrogateescape")}" '
                    'in "worker_cpu_affinity"',
                    word,
                    "a mask has a 0 or 1 for each CPU, the first CPU last",
                )
        masks.append(frozenset(cpu for cpu, bit in enumerate(bits) if bit == "1"))
    return Affinity(auto, tuple(masks))


def _parse_pid(found: Directive, reading: Reading) -> str | None:
    name = found.words[1].value
    return None if name == "off" else reading.in_prefix(name)


def _parse_thread_pool(found: Directive, reading: Reading) -> tuple[str, ...]:
    pool = found.words[1].value
    given = reading.block.given.get(found.name)
    if given is not None and isinstance(given.value, tuple) and pool in given.value:
        raise ConfigError(f'duplicate thread pool "{pool}"', found.words[1])
    threads = False
    for word in found.words[2:]:
        name, equals, value = word.value.partition("=")
        if name not in ("threads", "max_queue") or not equals:
            continue  # as nginx does
        try:
            number = parse_number(value)
        except ValueError:
            number = -1
        if number < 0 or (name == "threads" and number == 0):
            raise ConfigError(f'invalid {name} value "{word.value}"', word)
        threads = threads or name == "threads"
    if not threads:
        raise ConfigError(f'"{found.name}" must have "threads" parameter', found)
    return (pool,)


def _parse_engine(found: Directive, _: Reading) -> str:
    from mailproxy.net import openssl  # takes longer to load than all directives

    name = c_string(found.words[1].value)
    try:
        openssl.use_engine(name)
    except openssl.NeedsOpenSSLError as error:
        raise ConfigError(str(error), found, error.remedy) from None
    except openssl.OpenSSLError as error:
        raise ConfigError(str(error), cause=found.words[1]) from None
    return name


def _parse_env(found: Directive, _: Reading) -> tuple[tuple[str, str | None], ...]:
    name, equals, value = found.words[1].value.partition("=")
    return ((name, value if equals else None),)


def _parse_connections(found: Directive, reading: Reading) -> int:
    if reading.block.given.keys() & {"worker_connections", "connections"}:
        raise DuplicateError
    word = found.words[1]
    try:
        return parse_number(word.value)
    except ValueError:
        raise ConfigError(f'invalid number "{word.value}"', word) from None


_EVENT_METHODS = ("epoll", "kqueue", "poll", "select", "eventport", "/dev/poll")


def _parse_use(found: Directive, _: Reading) -> str:
    word = found.words[1]
    if word.value not in _EVENT_METHODS:
        raise ConfigError(
            f'invalid event type "{word.value}"',
            word,
            f"nginx has {', '.join(_EVENT_METHODS)}",
        )
    return word.value


account: Value[User | None] = Value(_parse_user, "user [group]", most=2)
processes: Value[int] = Value(_parse_processes, "number | auto", parameters=("auto",))
priority: Value[int] = Value(_parse_priority, "number")
affinity: Value[Affinity] = Value(
    _parse_affinity, "auto [mask] | mask ...", most=None, parameters=("auto",)
)
pid: Value[str | None] = Value(_parse_pid, "file | off", parameters=("off",))
thread_pool: Value[tuple[str, ...]] = Value(
    _parse_thread_pool, "name threads=number [max_queue=number]", least=2, most=3
)
engine: Value[str] = Value(_parse_engine, "device")
env: Value[tuple[tuple[str, str | None], ...]] = Value(
    _parse_env, "name[=value]", means_dollar=is_secret
)
connections: Value[int] = Value(_parse_connections, "number")
use: Value[str] = Value(_parse_use, "method")
clients: Value[tuple[IPNetwork | str, ...]] = Value(
    cidr, "address | CIDR | unix:", parameters=("unix:",)
)
anything: Value[str] = Value(lambda found, _: str(found), "...", least=1, most=7)

_GONE = "is gone since nginx 1.9.0 and has no effect"


@dataclass(frozen=True, kw_only=True)
class MainSettings(Settings):
    """The main context: processes, files, rights."""

    user: User | None = directive(
        account, default=None, contexts="main", repeats="last", shown=DEFAULT_USER
    )
    """The account that workers run as; used only if the master is root."""

    manager_user: User | None = directive(
        account,
        default=None,
        contexts="main",
        repeats="last",
        origin="mailproxy",
        shown="user",
    )
    """The account that the manager process runs as, if there is one; used only if the
    master is root. One of its own keeps the secrets of the manager from workers."""

    worker_processes: int = directive(processes, default=1, contexts="main")
    """How many workers serve clients."""

    worker_priority: int = directive(
        priority, default=0, contexts="main", repeats="last"
    )
    """The nice value of workers."""

    worker_cpu_affinity: Affinity | None = directive(
        affinity, default=None, contexts="main"
    )
    """The CPUs that each worker may run on."""

    worker_rlimit_nofile: int | None = directive(number, default=None, contexts="main")
    """How many files a worker may have open."""

    worker_rlimit_core: int | None = directive(offset, default=None, contexts="main")
    """Size of a worker's core file, in bytes."""

    worker_shutdown_timeout: float = directive(duration, default=0.0, contexts="main")
    """How long sessions of a leaving worker may go on, in seconds; 0: no limit."""

    daemon: bool = directive(flag, default=True, contexts="main")
    """Whether to go into the background."""

    master_process: bool = directive(flag, default=True, contexts="main")
    """Whether workers have processes of their own."""

    pid: str | None = directive(pid, default="", contexts="main", shown="/run/NAME.pid")
    """The file with the master's process id; ``off`` for none."""

    lock_file: str = directive(
        in_prefix, default="", contexts="main", accepted=True, shown="logs/nginx.lock"
    )
    """Accepted; as in nginx on Linux, there is no such file."""

    working_directory: str | None = directive(text, default=None, contexts="main")
    """The directory that workers change to."""

    env: tuple[tuple[str, str | None], ...] = directive(
        env, default=(), contexts="main", repeats="add", shown="TZ"
    )
    """Environment variables that workers keep or get."""

    error_log: tuple[ErrorLog, ...] = directive(
        error_log, default=(), contexts="main", repeats="add", shown="the start-up log"
    )
    """The log of the processes, and of sessions whose server has no log of its own."""

    timer_resolution: float = directive(
        duration, default=0.0, contexts="main", accepted=True
    )
    """Accepted; time is always read when it is needed."""

    debug_points: str = directive(
        choice("stop", "abort"), default="", contexts="main", accepted=True
    )
    """Accepted; there are no debug points."""

    pcre_jit: bool = directive(flag, default=False, contexts="main", accepted=True)
    """Accepted; no directive of mail has regular expressions."""

    thread_pool: tuple[str, ...] = directive(
        thread_pool, default=(), contexts="main", accepted=True, repeats="add", shown=""
    )
    """Accepted; nothing in mail uses thread pools."""

    ssl_engine: str = directive(engine, default="", contexts="main")
    """An OpenSSL engine (before 4.0), used in TLS for everything that it supports."""

    ssl_certificate_watch: float = directive(
        watch, default=0.0, contexts="main", shown="off", origin="mailproxy"
    )
    """How often the files of certificates are looked at, in seconds: new ones are used
    without a reload."""

    ssl_certificate_warning: tuple[float, ...] = directive(
        warnings,
        default=DEFAULT_WARNINGS,
        contexts="main",
        shown="30d 7d 1d",
        origin="mailproxy",
    )
    """How long before a certificate expires the log says so, in seconds."""

    ssl_object_cache_inheritable: bool = directive(
        flag, default=True, contexts="main", accepted=True
    )
    """Accepted; each configuration reads its certificates afresh."""

    quic_bpf: bool = directive(flag, default=False, contexts="main", accepted=True)
    """Accepted; there is no QUIC in mail."""

    google_perftools_profiles: str = directive(
        text, default="", contexts="main", accepted=True
    )
    """Accepted; it is for nginx's own code."""

    worker_threads: str = directive(
        anything,
        default="",
        contexts="main",
        accepted=True,
        obsolete=f'the "worker_threads" directive {_GONE}',
    )
    """Ignored."""

    thread_stack_size: str = directive(
        anything,
        default="",
        contexts="main",
        accepted=True,
        obsolete=f'the "thread_stack_size" directive {_GONE}',
    )
    """Ignored."""

    worker_rlimit_sigpending: str = directive(
        anything,
        default="",
        contexts="main",
        accepted=True,
        obsolete=f'the "worker_rlimit_sigpending" directive {_GONE}',
    )
    """Ignored."""

    @classmethod
    def make(cls, block: Block, reading: Reading) -> Self:
        """Make the settings of the main context, with defaults that depend on the machine.

        Raises:
          ConfigError: the master is root, and there is no account for workers.
        """
        settings = super().make(block, reading)
        changes: dict[str, object] = {}
        if "user" not in block.given and os.geteuid() == 0:
            changes["user"] = _default_user()
        if settings.pid == "":
            changes["pid"] = f"/run/{reading.name}.pid"
        masks = settings.worker_cpu_affinity
        workers = block.given.get("worker_processes")
        auto = workers is not None and workers.directive.words[1].value == "auto"
        if (
            masks is not None
            and not masks.auto
            and not auto
            and len(masks.masks) not in (1, settings.worker_processes)
        ):
            reading.warn(
                'the number of "worker_processes" is not equal to the number of '
                '"worker_cpu_affinity" masks, using last mask for remaining worker '
                "processes"
            )
        return replace(settings, **changes)  # type: ignore[arg-type] # they are fields


def _default_user() -> User:
    try:
        return User(*outside.account(DEFAULT_USER))
    except KeyError:
        raise ConfigError(
            f'getpwnam("{DEFAULT_USER}") failed',
            remedy="name an account: user NAME GROUP;",
            error=OSError(errno.ENOENT, ""),
        ) from None


@dataclass(frozen=True, kw_only=True)
class EventsSettings(Settings):
    """The events context: connections."""

    worker_connections: int = directive(connections, default=512, contexts="events")
    """Connections that a worker may have, listening sockets included."""

    connections: int = directive(
        connections,
        default=512,
        contexts="events",
        obsolete='the "connections" directive is deprecated, '
        'use the "worker_connections" directive instead',
    )
    """Old name of `worker_connections`."""

    use: str = directive(use, default="epoll", contexts="events", accepted=True)
    """Accepted; epoll is always used."""

    multi_accept: bool = directive(
        flag, default=False, contexts="events", accepted=True
    )
    """Accepted; all waiting connections are always accepted, some at a time."""

    accept_mutex: bool = directive(
        flag, default=False, contexts="events", accepted=True
    )
    """Accepted; workers accept in parallel."""

    accept_mutex_delay: float = directive(duration, default=0.5, contexts="events")
    """How long accepting pauses when there are no descriptors left, in seconds."""

    debug_connection: tuple[IPNetwork | str, ...] = directive(
        clients, default=(), contexts="events", repeats="add", shown=""
    )
    """Clients whose dialogue is logged, at level debug, whatever the level of the log."""

    epoll_events: int = directive(number, default=512, contexts="events", accepted=True)
    """Accepted."""

    worker_aio_requests: int = directive(
        number, default=32, contexts="events", accepted=True
    )
    """Accepted."""

    rtsig_signo: str = directive(
        anything,
        default="",
        contexts="events",
        accepted=True,
        obsolete=f'the "rtsig_signo" directive {_GONE}',
    )
    """Ignored."""

    rtsig_overflow_events: str = directive(
        anything,
        default="",
        contexts="events",
        accepted=True,
        obsolete=f'the "rtsig_overflow_events" directive {_GONE}',
    )
    """Ignored."""

    rtsig_overflow_test: str = directive(
        anything,
        default="",
        contexts="events",
        accepted=True,
        obsolete=f'the "rtsig_overflow_test" directive {_GONE}',
    )
    """Ignored."""

    rtsig_overflow_threshold: str = directive(
        anything,
        default="",
        contexts="events",
        accepted=True,
        obsolete=f'the "rtsig_overflow_threshold" directive {_GONE}',
    )
    """Ignored."""

    @classmethod
    def make(cls, block: Block, reading: Reading) -> Self:
        """Make the settings of the events context, with old names replaced by new ones."""
        settings = super().make(block, reading)
        if "connections" in block.given:
            settings = replace(settings, worker_connections=settings.connections)
        return settings

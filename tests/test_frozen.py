"""Exceptions do not change: each class of the package, made, read and written to."""

from __future__ import annotations

import contextlib
import copy
import errno
import importlib
import pickle
import pkgutil
from collections.abc import Iterator

import pytest

import mailproxy
from mailproxy.arguments import UsageError
from mailproxy.conf.addresses import AddressError
from mailproxy.conf.tree import ConfigError, DuplicateError
from mailproxy.errors import BackendError, SessionError
from mailproxy.frozen import Frozen
from mailproxy.log.directive import ErrorLogError
from mailproxy.log.files import RefusedError
from mailproxy.mail.commands import BadCommand
from mailproxy.net.faults import UnderTlsError
from mailproxy.net.lines import TooLong
from mailproxy.net.messages import MessageError
from mailproxy.net.openssl import NeedsOpenSSLError, OpenSSLError
from mailproxy.net.proxy_protocol import ProxyProtocolError
from mailproxy.outside import FileError, too_large
from mailproxy.process.children import SpawnError
from mailproxy.process.configuration import ConfigErrors, Messages
from mailproxy.process.pidfile import PidError

SYSTEM = OSError(errno.EACCES, "Permission denied")
MADE: list[BaseException] = [
    AddressError("no host", "name one"),
    BackendError(
        "%s is away", "it", error=SYSTEM, reply=b"-ERR\r\n", command="XCLIENT"
    ),
    BadCommand("event", 1, counted=True),
    ConfigError("unknown directive", error=SYSTEM, remedy="write another"),
    ConfigErrors.of(Messages(reading=(ConfigError("a"),), starting=()), parsed=True),
    DuplicateError(),
    ErrorLogError("invalid", "valid", word="x"),
    FileError("open", errno.ENOENT),
    NeedsOpenSSLError("ssl_engine"),
    OpenSSLError("no"),
    PidError("open() failed", SYSTEM),
    ProxyProtocolError("broken header: %s", b"x"),
    RefusedError(errno.ELOOP, "no link is followed"),
    MessageError("too long"),
    SessionError("event", level="crit"),
    SpawnError("fork()", SYSTEM),
    TooLong(b"x"),
    UnderTlsError(errno.ECONNRESET, "Connection reset by peer"),
    UsageError("no", "yes"),
    too_large(),
]


def classes() -> Iterator[type[BaseException]]:
    """Every exception that the package defines."""
    for module in pkgutil.walk_packages(mailproxy.__path__, "mailproxy."):
        if module.name == "mailproxy.__main__":
            continue
        for found in vars(importlib.import_module(module.name)).values():
            if (
                isinstance(found, type)
                and issubclass(found, BaseException)
                and found.__module__ == module.name
            ):
                yield found


def test_every_exception_of_the_package_is_frozen() -> None:
    found = list(classes())
    assert len(found) > len(MADE)
    assert [each for each in found if not issubclass(each, Frozen)] == []


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_what_an_exception_says_does_not_change(error: BaseException) -> None:
    before = dict(vars(error)), error.args
    names = [*vars(error), "args"]
    if isinstance(error, OSError):
        names += ["errno", "strerror"]
    for name in names:
        with pytest.raises(AttributeError, match=f"{name} does not change"):
            setattr(error, name, None)
        with pytest.raises(AttributeError, match=f"{name} does not change"):
            delattr(error, name)
    assert (dict(vars(error)), error.args) == before


def test_python_can_note_what_it_wants() -> None:
    error = ConfigError("a")
    with contextlib.suppress(ConfigError), contextlib.ExitStack() as stack:
        stack.callback(lambda: 1)
        raise error
    assert error.__traceback__ is not None
    error.__context__ = SYSTEM
    error.add_note("one")
    error.add_note("two")
    assert error.__notes__ == ["one", "two"]


@pytest.mark.parametrize(
    "error",
    [
        BackendError("event", 1, error=SYSTEM, reply=b"x", level="crit"),
        ConfigError("text", remedy="r", level="warn"),
        FileError("open", errno.EINVAL, "kind"),
        RefusedError(errno.ELOOP, "no link is followed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_copy_says_the_same(error: Exception) -> None:
    for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(copied) is type(error)
        assert str(copied) == str(error)
        assert {n: str(v) for n, v in vars(copied).items()} == {
            name: str(value) for name, value in vars(error).items()
        }


def test_a_message_is_placed_by_a_new_one() -> None:
    error = ConfigError("text", error=SYSTEM, level="warn", remedy="old")
    placed = error.with_place(None, "new")
    assert (error.remedy, placed.remedy) == ("old", "new")
    assert placed.text == error.text
    assert placed.is_warning

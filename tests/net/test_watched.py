"""Descriptors that are no streams, and lines that keep messages apart, on the engine."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager, suppress

import pytest
import trio

from mailproxy.net.engine import Engine
from mailproxy.net.watched import PacketWire, Watched, receive_packet

PATIENCE = 30.0


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine(limit=1)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            yield engine
            nursery.cancel_scope.cancel()
    engine.close()


@contextmanager
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a line that keeps messages apart."""
    ours, theirs = socket.socketpair(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
    )
    with ours, theirs:
        yield ours, theirs


async def test_the_end_of_a_process_is_noticed(engine: Engine) -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    descriptor = os.pidfd_open(child)
    with closing(Watched(engine, descriptor)) as process:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.wait_readable)
            await trio.lowlevel.checkpoint()
            os.close(write_end)
    # It has ended, and is a zombie; that is noticed, too.
    with closing(Watched(engine, descriptor)) as process:
        await process.wait_readable()
    reaped, _ = os.waitpid(child, os.WNOHANG)  # noqa: ASYNC222 # it does not wait
    assert reaped == child
    os.close(read_end)
    os.close(descriptor)


async def test_what_was_there_before_is_noticed(engine: Engine) -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    os.write(write_end, b"x")
    with closing(Watched(engine, read_end)) as pipe:
        await pipe.wait_readable()
        assert os.read(read_end, 2) == b"x"
        os.write(write_end, b"y")
        await pipe.wait_readable()
        assert os.read(read_end, 2) == b"y"
    os.close(read_end)
    os.close(write_end)


async def test_what_comes_while_nobody_waits_is_noticed(engine: Engine) -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    with closing(Watched(engine, read_end)) as pipe:
        os.write(write_end, b"x")
        for _ in range(4):  # the engine hands it out, and does not tell twice
            await trio.lowlevel.checkpoint()
        await pipe.wait_readable()
        assert os.read(read_end, 2) == b"x"
    os.close(read_end)
    os.close(write_end)


async def test_only_lines_take_worker_connections(engine: Engine) -> None:
    read_end, write_end = os.pipe()
    with line() as (ours, theirs):
        with closing(Watched(engine, read_end)):
            assert not engine.full
            with closing(PacketWire(engine, ours)):
                assert engine.full
                with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
                    PacketWire(engine, theirs)
                with closing(Watched(engine, write_end)):
                    assert engine.full
                assert engine.full
            assert not engine.full
        with closing(PacketWire(engine, theirs)):
            assert engine.full
    os.close(read_end)
    os.close(write_end)


async def test_a_descriptor_that_cannot_be_watched_changes_nothing(
    engine: Engine,
) -> None:
    descriptor = os.open(__file__, os.O_RDONLY)
    with pytest.raises(PermissionError):  # epoll(7) takes no regular files
        Watched(engine, descriptor)
    assert engine.limit == 1
    os.close(descriptor)


async def test_messages_stay_apart(engine: Engine) -> None:
    with line() as (ours, theirs), closing(PacketWire(engine, ours)) as wire:
        theirs.send(b"one")
        theirs.send(b"two")
        assert [await wire.receive(9), await wire.receive(9)] == [b"one", b"two"]
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                assert await wire.receive(4) == b"thre"
                wire.send(b"four")

            nursery.start_soon(answer)
            await trio.lowlevel.checkpoint()
            theirs.send(b"three")
        assert theirs.recv(9) == b"four"


async def test_an_empty_message_is_no_end(engine: Engine) -> None:
    with line() as (ours, theirs), closing(PacketWire(engine, ours)) as wire:
        theirs.send(b"")
        theirs.send(b"x")
        assert await wire.receive(9) == b""
        assert await wire.receive(9) == b"x"
        theirs.close()
        assert await wire.receive(9) is None
        assert receive_packet(ours, 9) is None


async def test_what_was_said_before_the_end_is_received(engine: Engine) -> None:
    with line() as (ours, theirs), closing(PacketWire(engine, ours)) as wire:
        theirs.send(b"x")
        theirs.close()
        assert await wire.receive(9) == b"x"
        assert await wire.receive(9) is None


async def test_a_full_line_takes_no_message(engine: Engine) -> None:
    with line() as (ours, theirs), closing(PacketWire(engine, ours)) as wire:
        with suppress(BlockingIOError):
            while True:
                ours.send(b"x")
        with pytest.raises(BlockingIOError):
            wire.send(b"y")
        assert theirs.recv(9) == b"x"
        wire.send(b"y")


async def test_a_line_that_is_waited_for_can_be_given_up(engine: Engine) -> None:
    with line() as (ours, theirs), closing(PacketWire(engine, ours)) as wire:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.receive, 9)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        theirs.send(b"x")
        assert await wire.receive(9) == b"x"

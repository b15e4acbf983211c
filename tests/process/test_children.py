"""Processes are forked, told, heard, killed and reaped."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailproxy.net.messages import MAX_FRAME
from mailproxy.process import signals
from mailproxy.process.children import MAX_MESSAGES_IN_A_ROW, Children, End, Heard
from mailproxy.process.messages import Order, read_order, write_order
from tests.processes import PATIENCE, wait_for


@pytest.fixture
def children() -> Iterator[Children]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.HANDLED)
    yield Children()
    while signals.wait(0):
        pass  # what belongs to this test is not to meet another
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end(children: Children) -> End:
    """Wait for the end of a child."""
    found: list[End] = []

    def ended() -> bool:
        found.extend(children.reap())
        return bool(found)

    wait_for(ended, "the end of a child")
    return found[0]


def receive(orders: socket.socket) -> bytes:
    assert select.select([orders], [], [], PATIENCE)[0]
    return orders.recv(MAX_FRAME)


def test_exit_code_is_what_the_work_returns(children: Children) -> None:
    pid = children.start(lambda _: 7)
    found = end(children)
    assert (found.pid, found.code, found.text) == (pid, 7, "exited with code 7")
    assert children.reap() == []


def test_failed_work_shows_its_traceback(
    children: Children, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_: socket.socket) -> int:
        raise KeyError("oh")

    children.start(fail)
    assert end(children).code == 1
    assert "KeyError: 'oh'" in capfd.readouterr().err


def test_end_by_a_signal_is_told(children: Children) -> None:
    pid = children.start(lambda orders: len(receive(orders)))
    children.kill(pid, signal.SIGKILL)
    found = end(children)
    assert (found.code, found.text) == (None, "exited on signal 9")


def test_orders_arrive_one_by_one(children: Children) -> None:
    def work(orders: socket.socket) -> int:
        told = [read_order(receive(orders))[0] for _ in range(2)]
        return told != [Order.PING, Order.QUIT]

    pid = children.start(work)
    assert children.tell(pid, Order.PING)
    assert children.tell(pid, Order.QUIT)
    assert end(children).code == 0
    assert not children.tell(pid, Order.QUIT), "there is nobody any more"


def test_answer_is_heard_and_signalled(children: Children) -> None:
    def work(orders: socket.socket) -> int:
        receive(orders)
        orders.send(write_order(Order.ALIVE))
        receive(orders)
        return 0

    pid = children.start(work)
    assert not children.hear(pid).alive
    children.tell(pid, Order.PING)
    assert signals.wait(PATIENCE, [signal.SIGIO])
    assert children.hear(pid).alive
    assert not children.hear(pid).alive
    children.tell(pid, Order.QUIT)
    assert end(children).code == 0


ALIVE = write_order(Order.ALIVE)


@pytest.mark.parametrize(
    "frame",
    [b"", b"alive", ALIVE[:-1], ALIVE + b"x", write_order(Order.STOP), bytes(1 << 17)],
    ids=["empty", "text", "short", "long", "order", "too long"],
)
def test_invalid_message_is_told_and_the_next_one_heard(
    children: Children, frame: bytes
) -> None:
    def work(orders: socket.socket) -> int:
        orders.send(frame)
        orders.send(ALIVE)
        return read_order(receive(orders))[0] != Order.QUIT

    pid = children.start(work)
    heard: list[Heard] = []

    def all_heard() -> bool:
        heard.append(children.hear(pid))
        return heard[-1].alive

    wait_for(all_heard, "the worker")
    assert any(each.invalid for each in heard)
    assert not any(each.more for each in heard)
    assert children.hear(pid) == Heard()
    assert children.tell(pid, Order.QUIT)
    assert end(children).code == 0


def test_worker_that_floods_is_heard_in_pieces(children: Children) -> None:
    """However much it says, the master has its turn between the pieces."""

    def work(orders: socket.socket) -> int:
        for _ in range(2 * MAX_MESSAGES_IN_A_ROW):
            orders.send(b"x")
        orders.send(ALIVE)
        return 0

    pid = children.start(work)
    assert signals.wait(PATIENCE, [signal.SIGCHLD])
    assert [children.hear(pid) for _ in range(4)] == [
        Heard(invalid=True, more=True),
        Heard(invalid=True, more=True),
        Heard(alive=True),
        Heard(),
    ]
    assert end(children).code == 0


def test_order_that_finds_no_room_is_not_sent(children: Children) -> None:
    """A worker that does not listen does not stop the master."""

    def work(orders: socket.socket) -> int:
        assert read_order(receive(orders))[0] == Order.PING
        orders.send(write_order(Order.ALIVE))
        signal.sigwait([signal.SIGUSR1])
        return 0

    pid = children.start(work)
    assert children.tell(pid, Order.PING)
    assert signals.wait(PATIENCE, [signal.SIGIO])  # it has read that, and reads no more
    while children.tell(pid, Order.PING):
        pass
    assert not children.tell(pid, Order.QUIT)
    children.kill(pid, signal.SIGUSR1)
    assert end(children).code == 0


def test_dead_child_cannot_be_told(children: Children) -> None:
    pid = children.start(lambda _: 0)
    assert signals.wait(PATIENCE, [signal.SIGCHLD])
    assert not children.tell(pid, Order.PING)
    assert not children.hear(pid).alive
    assert end(children).pid == pid
    assert not children.tell(pid, Order.PING), "the same when it was reaped"
    assert not children.tell(pid, Order.WORKER, descriptors=(0,))


def test_lines_of_the_others_are_closed_in_a_child(children: Children) -> None:
    first = children.start(lambda orders: len(receive(orders)))

    def descriptors(_: socket.socket) -> int:
        return sum(
            os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        )

    children.start(descriptors)
    alone = end(children).code
    children.kill(first, signal.SIGKILL)
    end(children)
    children.start(descriptors)
    assert end(children).code == alone


def test_objects_of_the_parent_are_frozen_in_the_child(children: Children) -> None:
    children.start(lambda _: int(gc.get_freeze_count() == 0))
    assert end(children).code == 0
    assert gc.get_freeze_count() == 0


def execute(
    children: Children, path: str, arguments: list[str], **environment: str
) -> tuple[int | None, str]:
    """Execute something; its exit code, and what it wrote or why it was not executed."""
    readable, writable = os.pipe()

    def failed(error: OSError) -> None:
        os.write(writable, str(error.errno).encode())

    children.execute(
        path,
        arguments,
        {"OUT": str(writable), **environment},
        [writable],
        failed,
    )
    os.close(writable)
    with open(readable, encoding="utf-8") as output:
        text = output.read()
    return end(children).code, text


def test_other_program_gets_environment_and_descriptors(children: Children) -> None:
    shell = ["sh", "-c", "echo $NGINX $0 >/dev/fd/$OUT; exit 3", "me"]
    assert execute(children, "/bin/sh", shell, NGINX="5;") == (3, "5; me\n")


def test_other_program_has_no_signals_blocked(children: Children) -> None:
    shell = ["sh", "-c", "grep SigBlk /proc/self/status >/dev/fd/$OUT"]
    assert execute(children, "/bin/sh", shell) == (0, "SigBlk:\t0000000000000000\n")


def test_program_that_cannot_be_executed_is_reported(
    children: Children, tmp_path: Path
) -> None:
    assert execute(children, str(tmp_path / "missing"), ["x"]) == (1, "2")


def test_answers_about_certificates_are_heard(children: Children) -> None:
    def work(orders: socket.socket) -> int:
        for answer in (Order.CERTIFICATES_OK, Order.CERTIFICATES_FAILED):
            receive(orders)
            orders.send(write_order(answer))
        receive(orders)
        return 0

    pid = children.start(work)
    for refused in (False, True):
        assert children.tell(pid, Order.CERTIFICATES)
        wait_for(lambda: signals.wait(0) is not None, "an answer")
        assert children.hear(pid) == Heard(refused=refused)
    children.tell(pid, Order.STOP)
    end(children)

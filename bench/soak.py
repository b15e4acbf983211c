"""A soak: many short sessions and many reloads; is memory flat, is a session lost?

    python bench/soak.py [--sessions 100000] [--reloads 100] [--workers 2]

It starts the proxy with a configuration of its own on the loopback, a fake auth
server and a fake IMAP server, and logs in and out again and again, while the proxy
is told to reload now and then. Memory is the proportional set size of master and
workers (PSS, which counts shared pages once), taken when nobody is connected. The
first figure is taken after a tenth of the sessions, when pools and caches are full.

Exit code 1: a session failed, or memory grew by more than a tenth.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

CONFIGURATION = """
worker_processes {workers};
pid mailproxy.pid;
error_log error.log notice;
user {user};
events {{ worker_connections 4000; }}
mail {{
    server_name soak.example.com;
    auth_http 127.0.0.1:{auth}/auth;
    server {{ listen 127.0.0.1:{listen}; protocol imap; }}
}}
"""
GROWTH = 1.10
AT_ONCE = 50


def main() -> int:
    """Run the soak; returns the exit code."""
    options = _options()
    auth, backend, listen = (_free_port() for _ in range(3))
    neighbours = multiprocessing.Process(
        target=trio.run, args=(_serve, auth, backend), daemon=True
    )
    neighbours.start()
    with tempfile.TemporaryDirectory(prefix="mailproxy-soak-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        text = CONFIGURATION.format(
            workers=options.workers, user=_user(), auth=auth, listen=listen
        )
        (directory / "nginx.conf").write_text(text)
        command = [sys.executable, "-m", "mailproxy", "-p", name, "-c", "nginx.conf"]
        proxy = subprocess.Popen([*command, "-g", "daemon off;"])
        try:
            return trio.run(_soak, proxy, listen, options)
        finally:
            proxy.send_signal(signal.SIGQUIT)
            proxy.wait(10)
            neighbours.terminate()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="sessions, reloads, memory")
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


async def _soak(
    proxy: subprocess.Popen[bytes], port: int, options: argparse.Namespace
) -> int:
    """Do a tenth of the work, measure, do the rest, and measure again."""
    await _wait_for_port(port)
    began = time.monotonic()
    failed = await _part(proxy, port, options.sessions // 10, options.reloads // 10)
    before = await _memory(proxy.pid, options.workers)
    _say(began, options.sessions // 10, options.reloads // 10, before, failed)
    for _ in range(9):
        failed += await _part(
            proxy, port, options.sessions // 10, options.reloads // 10
        )
        after = await _memory(proxy.pid, options.workers)
        _say(began, options.sessions // 10, options.reloads // 10, after, failed)
    print(f"memory {after / before:.2f} times what it was, {failed} sessions failed")
    return int(failed > 0 or after > before * GROWTH)


def _say(began: float, sessions: int, reloads: int, memory: int, failed: int) -> None:
    seconds = time.monotonic() - began
    print(
        f"{seconds:6.0f} s  {sessions} sessions and {reloads} reloads more,"
        f" {memory / 1024:.0f} KiB, {failed} failed",
        flush=True,
    )


async def _part(
    proxy: subprocess.Popen[bytes], port: int, sessions: int, reloads: int
) -> int:
    """Sessions, with reloads spread over them; returns how many sessions failed."""
    left = sessions
    failed = 0
    reload_at = {sessions * n // (reloads + 1) for n in range(1, reloads + 1)}

    async def client() -> None:
        nonlocal left, failed
        while left > 0:
            left -= 1
            if left in reload_at:
                proxy.send_signal(signal.SIGHUP)
            failed += not await _session(port)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(client)
    return failed


async def _session(port: int) -> bool:
    """Log in, say something, log out; whether all of it worked."""
    try:
        with trio.fail_after(30):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                await stream.receive_some()
                await stream.send_all(b"a LOGIN soak secret\r\n")
                answer = await stream.receive_some()
                await stream.send_all(b"b PING\r\n")
                pong = await stream.receive_some()
                return answer == b"a OK\r\n" and pong == b"b PING\r\n"
    except (OSError, trio.BrokenResourceError, trio.TooSlowError):
        return False


async def _serve(auth: int, backend: int) -> None:
    """The neighbours: an auth server that keeps connections, an IMAP server."""

    async def answer_auth(stream: trio.SocketStream) -> None:
        answer = (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n"
            "Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\n"
            f"Auth-Port: {backend}\r\n\r\n"
        ).encode()
        while await stream.receive_some():
            await stream.send_all(answer)

    async def answer_imap(stream: trio.SocketStream) -> None:
        await stream.send_all(b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n")
        await stream.receive_some()
        await stream.send_all(b"a OK\r\n")
        while data := await stream.receive_some():
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_tcp, answer_auth, auth)
        nursery.start_soon(trio.serve_tcp, answer_imap, backend)


async def _memory(master: int, workers: int) -> int:
    """PSS of master and workers in bytes, when the old generations are gone."""
    while len(children := _children(master)) != workers:  # noqa: ASYNC110 - no event tells
        await trio.sleep(0.1)
    return sum(map(_pss, (master, *children)))


def _children(pid: int) -> list[int]:
    return [
        int(each)
        for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not tell the proportional set size")


async def _wait_for_port(port: int) -> None:
    with trio.fail_after(20):
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.05)
            else:
                await stream.aclose()
                return


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _user() -> str:
    return "root root" if os.geteuid() == 0 else "nobody"


if __name__ == "__main__":
    sys.exit(main())

"""Who is around a proxy while a script is played: clients, auth server, backend, names."""

import socket
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.differential.channel import PATIENCE, Channel, MismatchError
from tests.differential.log import Log
from tests.differential.names import Names
from tests.differential.script import Script
from tests.differential.signs import Signs

_SIDE = {"C": "S", "S": "S", "A": "Q", "Q": "Q", "B": "P", "P": "P"}


@dataclass(frozen=True)
class Stage:
    """A proxy that is ready for one script, and the ports of everyone."""

    proxy: str
    directory: Path
    log: Log
    listen: str
    """Where it listens: `127.0.0.1:143`, `[::1]:143`, `unix:/path`."""
    port: int
    auth_port: int
    auth_socket: Path
    backend_port: int
    dns_port: int
    closed_port: int
    """A port where nobody listens."""
    volatile: dict[bytes, bytes]
    """Texts that differ from run to run, and their signs."""

    def signs(self) -> Signs:
        """The signs of a play."""
        return Signs(
            {
                "listen": self.port,
                "auth": self.auth_port,
                "backend": self.backend_port,
                "dns": self.dns_port,
                "closed": self.closed_port,
            },
            {bytes(self.auth_socket): "⟨socket⟩".encode(), **self.volatile},
        )


class Neighbours:
    """The connections of one play, by side (`S`, `Q`, `P`) and label."""

    def __init__(self, script: Script, stage: Stage, signs: Signs) -> None:
        self.script, self.stage, self.signs = script, stage, signs
        self.channels: dict[tuple[str, int], Channel] = {}
        self._arrived: dict[str, list[Channel]] = {"Q": [], "P": []}
        self._arrival = trio.Event()
        self._done: list[Channel] = []
        self._leaving = False

    async def open(self, nursery: trio.Nursery) -> None:
        """Listen as auth server, backend and DNS server, and let the first client connect."""
        self._nursery = nursery
        listening = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.stage.auth_socket.unlink(missing_ok=True)
        await listening.bind(str(self.stage.auth_socket))
        listening.listen()
        nursery.start_soon(self._accept, "Q", trio.SocketListener(listening))
        places = [
            ("Q", self.stage.auth_port, "127.0.0.1"),
            ("P", self.stage.backend_port, "127.0.0.1"),
            ("P", self.stage.backend_port, "::1"),
        ]
        for side, port, host in places:
            (listener,) = await trio.open_tcp_listeners(port, host=host)
            nursery.start_soon(self._accept, side, listener)
        if self.script.dns:
            names = Names(self.script.dns)
            await names.bind(self.stage.dns_port)
            nursery.start_soon(names.serve)
        await self.channel("S", 1)

    async def _accept(self, side: str, listener: trio.SocketListener) -> None:
        async with listener:
            while True:
                channel = Channel(await listener.accept())
                if self._leaving:
                    channel.close()
                    continue
                self.pump(channel)
                self._arrived[side].append(channel)
                self._arrival.set()
                self._arrival = trio.Event()

    async def channel(self, kind: str, label: int, *, fresh: bool = False) -> Channel:
        """The connection a step speaks of; a client connects now, others are awaited.

        Args:
          fresh: not one that has been answered already.

        Raises:
          MismatchError: the proxy does not connect.
        """
        key = (_SIDE[kind], label)
        known = self.channels.get(key)
        if known is None or (fresh and known.answered):
            connecting = self._connect() if key[0] == "S" else self._wait_for(key[0])
            self._put(key, await connecting)
        return self.channels[key]

    def pump(self, channel: Channel) -> None:
        """Receive on a channel."""
        self._nursery.start_soon(channel.pump)

    def _put(self, key: tuple[str, int], channel: Channel) -> None:
        if key in self.channels:
            self._done.append(self.channels[key])
        self.channels[key] = channel

    async def _connect(self) -> Channel:
        if self.script.address == "unix":
            path = self.stage.listen.removeprefix("unix:")
            stream = await trio.open_unix_socket(path)
        else:
            stream = await trio.open_tcp_stream(self.script.address, self.stage.port)
            self.signs.add_client(stream.socket.getsockname()[1])
        channel = Channel(stream)
        self.pump(channel)
        return channel

    async def _wait_for(self, side: str) -> Channel:
        with trio.move_on_after(PATIENCE):
            while not self._arrived[side]:
                await self._arrival.wait()
            return self._arrived[side].pop(0)
        whom = "auth server" if side == "Q" else "backend"
        raise MismatchError(f"waited {PATIENCE:.0f} s for a connection to the {whom}")

    def label_arrived(self) -> None:
        """Give connections that no step has asked for a label."""
        for side, arrived in self._arrived.items():
            for channel in arrived:
                label = 1
                while (known := self.channels.get((side, label))) is not None:
                    if side == "Q" and known.answered:
                        break
                    label += 1
                self._put((side, label), channel)
            arrived.clear()

    async def leave(self) -> None:
        """End all connections, those of clients last, so that the log is complete.

        Raises:
          MismatchError: the proxy does not close a client's connection.
        """
        self._leaving = True
        self.label_arrived()
        clients = [
            channel for (side, _), channel in self.channels.items() if side == "S"
        ]
        for client in clients:
            client.finish_sending()
        for channel in [*self._done, *self.channels.values()]:
            if channel not in clients:
                channel.close()
        try:
            for client in clients:
                await client.wait_for_end()
        finally:
            for client in clients:
                client.close()

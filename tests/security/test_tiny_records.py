"""A TLS client that sends records of one octet has no more than its turn."""

import select
import socket
import ssl

import trio
from trio.testing import wait_all_tasks_blocked

from mailproxy.net.engine import Engine
from mailproxy.net.relay import MAX_READS, MAX_TLS_RECORDS, Relay
from mailproxy.net.wire import Wire
from tests.play import certificate

OCTETS = 3000


async def test_work_of_one_turn_is_bounded() -> None:
    engine = Engine()
    relay = Relay(engine)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate())
    (ours, client), (theirs, backend) = socket.socketpair(), socket.socketpair()
    for each in (ours, theirs, client, backend):
        each.setblocking(False)
    wires = Wire(engine, ours.detach()), Wire(engine, theirs.detach())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = _client_context().wrap_bio(incoming, outgoing, server_hostname="mx.test")

    async def shake() -> None:
        while True:
            try:
                return tls.do_handshake()
            except ssl.SSLWantReadError:
                client.send(outgoing.read())
                await wait_all_tasks_blocked()
                engine.hand_out()
                await wait_all_tasks_blocked()
                incoming.write(client.recv(65536))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wires[0].start_tls, context)
        await shake()
        client.send(outgoing.read())
        await wait_all_tasks_blocked()
        engine.hand_out()
    for _ in range(OCTETS):
        tls.write(b"x")
    client.send(outgoing.read())

    async with trio.open_nursery() as nursery:

        async def carry() -> None:
            await relay.carry(*wires, idle_limit=1000.0)

        nursery.start_soon(carry)
        await wait_all_tasks_blocked()
        # Nothing but this test runs the engine, so that it sees what each turn does.
        turns = [len(backend.recv(OCTETS))]
        while sum(turns) < OCTETS:
            engine.hand_out()
            assert select.select([backend], [], [], 0)[0], "it has not gone on"
            turns.append(len(backend.recv(OCTETS)))
        assert min(turns) > 0
        assert max(turns) <= MAX_READS * MAX_TLS_RECORDS < OCTETS
        nursery.cancel_scope.cancel()
    for wire in wires:
        wire.close()
    for each in (client, backend):
        each.close()
    relay.close()
    engine.close()


def _client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context

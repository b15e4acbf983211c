"""What a `match` block wants of a peer: an answer to what it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailproxy.manager.probes.peer import MAX_LINE, ProbeError

if TYPE_CHECKING:
    from mailproxy.mail.probing import Match
    from mailproxy.manager.probes.peer import ProbedPeer


async def expect(match: Match, peer: ProbedPeer) -> None:
    """Send what the block says, and receive until there is what it expects.

    All that the peer has sent counts, since TLS began if it did.

    Raises:
      ProbeError: the peer closed, or has sent `MAX_LINE` octets without that.
    """
    peer.doing = f"waiting for what match {match.name} expects"
    if match.send:
        await peer.send(match.send)
    while not match.accepts(bytes(peer.received)):
        if len(peer.received) >= MAX_LINE:
            raise ProbeError(
                'nothing of what it sent is what "match %s" expects', match.name
            )
        await peer.receive()

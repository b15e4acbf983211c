"""What backends are told of the client by a PROXY header."""

from __future__ import annotations

import pytest

from tests.play import play

HEADERS = {
    "off": b"",
    "on": b"PROXY TCP4 127.0.0.1 127.0.0.1 40000 1143\r\n",
    "v2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\x7f\0\0\1\x7f\0\0\1"
    + (40000).to_bytes(2, "big")
    + (1143).to_bytes(2, "big")
    + b"\x03\0\4z;\xd5\xbf",  # its checksum
}


@pytest.mark.proves("proxy_protocol", "off", "on", "v2")
@pytest.mark.parametrize("version", HEADERS)
def test_header_for_backends(version: str) -> None:
    stage = play(
        """
        S: * OK IMAP4 ready
        C: a LOGIN u p
        Q: plain u p
        A: OK
        B: ⟨close⟩
        S: * BAD internal server error
        S: ⟨close⟩
        """,
        f"protocol imap; proxy_protocol {version};",
    )
    (backend,) = stage.network.wires["P"]
    assert bytes(backend.outgoing) == HEADERS[version]

"""Messages to carry."""

import base64
import random

MIB = 1024 * 1024


def message(size: int, subject: str = "a test") -> bytes:
    """A message of about `size` bytes, as it goes over the wire (CR LF)."""
    head = (
        "From: <ann@example.test>\r\nTo: <bob@example.test>\r\n"
        "Date: Sun, 22 Nov 2026 08:00:00 +0000\r\n"
        f"Subject: {subject}\r\nMessage-ID: <{random.getrandbits(64):x}@example.test>\r\n"
        "Content-Transfer-Encoding: base64\r\n\r\n"
    ).encode()
    text = base64.encodebytes(random.Random(subject).randbytes(size * 57 // 78))
    return head + text.replace(b"\n", b"\r\n")

"""Files of the configuration for `ssl`, which opens files itself and takes all in them.

They are read here, with the limits of `outside`, and `ssl` gets a file in memory with
what it is to have of them.
"""

from __future__ import annotations

import base64
import errno
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from mailproxy import outside
from mailproxy.net.openssl.exceptions import OpenSSLError
from mailproxy.net.openssl.material import MAX_FILE

CERTIFICATES = (b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE")
LISTS = (b"X509 CRL",)
"""What stands in PEM around what is read; all else in a file is passed over."""
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----[ \t\r]*\n([^-]*)-----END \1-----")


def read(source: str, what: str, failed: str = "") -> bytes:
    """What a file, or the text after ``data:``, holds.

    Args:
      what: what is done, in nginx's words.
      failed: the call that does it, if it is not nginx's usual one.

    Raises:
      OpenSSLError: in the words of nginx and of OpenSSL's BIO_new_file().
    """
    if source.startswith("data:"):
        return os.fsencode(source.removeprefix("data:"))
    try:
        return outside.read(source, MAX_FILE)
    except ValueError:  # a zero octet in the name
        number = errno.ENOENT
    except outside.FileError as error:
        number = error.errno or errno.EIO
        if error.limit is not None:
            why = f"({number}: {error.strerror})"
            raise OpenSSLError(f"{what}: {error.call}() failed {why}") from None
    bio = "10000080:BIO routines::no such file"
    if number != errno.ENOENT:
        bio = "10080002:BIO routines::system lib"
    raise OpenSSLError(
        f"{failed or f'{what}: BIO_new_file() failed'} "
        f"(SSL: error:{0x80000000 | number:08X}:system library::"
        f"{os.strerror(number)}:calling fopen({source}, r) error:{bio})"
    )


def only(content: bytes, labels: Collection[bytes], failed: str) -> bytes:
    """What `content` has in PEM under `labels`, at least one, written anew.

    Raises:
      OpenSSLError: there is none, or one that does not end or is not base64.
    """
    found = [match for match in _PEM.finditer(content) if match[1] in labels]
    begun = sum(content.count(b"-----BEGIN %s-----" % label) for label in labels)
    if not found:
        expected = "CERTIFICATE" if b"CERTIFICATE" in labels else "X509 CRL"
        raise OpenSSLError(
            f"{failed} (SSL: error:0480006C:PEM routines::no start line:"
            f"Expecting: {expected})"
        )
    pieces = []
    try:
        if begun != len(found):
            raise ValueError("one does not end")
        for label, text in (match.groups() for match in found):
            der = base64.b64decode(b"".join(text.split()), validate=True)
            pieces.append(
                b"-----BEGIN %s-----\n%s-----END %s-----\n"
                % (label, base64.encodebytes(der), label)
            )
    except ValueError:
        raise OpenSSLError(
            f"{failed} (SSL: error:04800064:PEM routines::bad base64 decode)"
        ) from None
    return b"".join(pieces)


@contextmanager
def named(content: bytes) -> Iterator[str]:
    """The name of a file that holds `content`, for `ssl`, which opens it itself.

    It is a file in memory: what was read once from a FIFO is not there again.
    """
    with os.fdopen(os.memfd_create("pem"), "wb") as file:  # on no disk
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"

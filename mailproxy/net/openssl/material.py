"""Files of the configuration -> OpenSSL's objects: certificates, keys, CRLs.

Paths are complete. A certificate or a key may also be given as ``data:`` and PEM
text, a key also as ``engine:NAME:ID`` or ``store:URI``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mailproxy import outside
from mailproxy.net.openssl.errors import OpenSSLError, failure
from mailproxy.net.openssl.library import (
    NeedsOpenSSLError,
    c,
    callback,
    owned,
    unreachable,
)

_PEM_NO_START_LINE = (9 << 23) | 108
_BIO_RESET = 1
_STORE_PKEY = 4
_ENGINE_ALL = 0xFFFF

MAX_FILE = 64 << 20
"""Octets of a file of certificates, keys or CRLs."""

Moment = tuple[int, ...]
"""Year, month, day, hour, minute and second in UTC: sorts as time passes."""


def shown(source: str) -> str:
    """A certificate or key of the configuration in a message, never its secrets."""
    if source.startswith("data:") and "PRIVATE KEY" in source:
        return "data:..."
    return source


@contextlib.contextmanager
def _opened(source: str, what: str) -> Iterator[int]:
    """A BIO to read a file, or the text after ``data:``."""
    if source.startswith("data:"):
        function, text = "BIO_new_mem_buf", os.fsencode(source.removeprefix("data:"))
        bio = c.BIO_new_mem_buf(text, len(text))
    else:
        content = _content(source, f'{what} "{source}"')
        function, bio = "BIO_new_file", _bio(source, content)
    if not bio:
        raise failure(f'{what} "{shown(source)}": {function}() failed')
    with owned(bio, c.BIO_free):
        yield bio


def _content(path: str, what: str) -> bytes | None:
    """What is in a file; None if OpenSSL shall say why it cannot be read.

    Raises:
      OpenSSLError: it is too large, or a FIFO that nobody writes to in time.
    """
    try:
        return outside.read(path, MAX_FILE)
    except outside.FileError as error:
        if error.errno in (errno.EFBIG, errno.ETIMEDOUT):
            why = f"({error.errno}: {error.strerror})"
            raise OpenSSLError(f"{what}: {error.call}() failed {why}") from None
    except ValueError:
        pass  # a zero octet in the name
    return None


def _bio(path: str, content: bytes | None) -> int:
    """A BIO to read `content`, which has to outlive it; 0 if there is none."""
    if content is None:
        return c.BIO_new_file(os.fsencode(path), b"r")
    return c.BIO_new_mem_buf(content, len(content))


@contextlib.contextmanager
def certificates(path: str) -> Iterator[list[int]]:
    """The certificates of a file, at least one; freed at the end.

    Raises:
      OpenSSLError: `cannot load certificate "PATH": …`
    """
    what = "cannot load certificate"
    found: list[int] = []
    try:
        with _opened(path, what) as bio:
            read, name = c.PEM_read_bio_X509_AUX, "PEM_read_bio_X509_AUX"
            while certificate := read(bio, None, None, None):
                found.append(certificate)
                read, name = c.PEM_read_bio_X509, "PEM_read_bio_X509"
            _expect_end(found, f'{what} "{shown(path)}": {name}() failed')
        yield found
    finally:
        for certificate in found:
            c.X509_free(certificate)


@contextlib.contextmanager
def revocation_lists(path: str) -> Iterator[list[int]]:
    """The CRLs of a file, at least one; freed at the end.

    Raises:
      OpenSSLError: `cannot load CRL "PATH": …`
    """
    found: list[int] = []
    try:
        with _opened(path, "cannot load CRL") as bio:
            while crl := c.PEM_read_bio_X509_CRL(bio, None, None, None):
                found.append(crl)
        _expect_end(found, f'cannot load CRL "{path}": PEM_read_bio_X509_CRL() failed')
        yield found
    finally:
        for crl in found:
            c.X509_CRL_free(crl)


def _expect_end(found: list[int], what: str) -> None:
    """Reading has stopped: at the end of the file, or because of an error?"""
    if not found or c.ERR_peek_last_error() != _PEM_NO_START_LINE:
        raise failure(what)
    c.ERR_clear_error()


@contextlib.contextmanager
def private_key(source: str, passwords: Sequence[bytes] | None) -> Iterator[int]:
    """A private key; freed at the end.

    Args:
      passwords: tried in turn; None lets OpenSSL ask at the terminal.

    Raises:
      OpenSSLError: `cannot load certificate key "…": …`
    """
    what = f'cannot load certificate key "{shown(source)}"'
    if source.startswith("engine:"):
        key = _from_engine(source.removeprefix("engine:"), what)
    elif source.startswith("store:"):
        key = _from_store(source.removeprefix("store:"), passwords, what)
    else:
        key = _from_file(source, passwords, what)
    with owned(key, c.EVP_PKEY_free):
        yield key


def _from_file(source: str, passwords: Sequence[bytes] | None, what: str) -> int:
    with _opened(source, "cannot load certificate key") as bio:
        for password in (None,) if passwords is None else passwords:
            c.ERR_clear_error()
            c.BIO_ctrl(bio, _BIO_RESET, 0, None)
            answer = _password_callback(password)
            key = c.PEM_read_bio_PrivateKey(bio, None, answer, None)
            if key:
                return key
    raise failure(f"{what}: PEM_read_bio_PrivateKey() failed")


def _password_callback(password: bytes | None) -> object:
    """What tells OpenSSL a password; it must be kept while OpenSSL may ask."""
    if password is None:
        return None

    @callback("ipiip")
    def answer(buffer: int, room: int, _writing: int, _data: int) -> int:
        size = min(len(password), room)
        ctypes.memmove(buffer, password, size)
        return size

    return answer


def _from_engine(name_and_id: str, what: str) -> int:
    name, colon, key_id = name_and_id.partition(":")
    if not colon:
        raise OpenSSLError(f"{what}: invalid syntax")
    if not c.has("ENGINE_by_id"):
        raise OpenSSLError(
            f'{what}: loading "engine:..." certificate keys is not supported'
        )
    engine = c.ENGINE_by_id(os.fsencode(name))
    if not engine:
        raise failure(f"{what}: ENGINE_by_id() failed")
    with owned(engine, c.ENGINE_free):
        key = c.ENGINE_load_private_key(engine, os.fsencode(key_id), None, None)
    if not key:
        raise failure(f"{what}: ENGINE_load_private_key() failed")
    return key


def _from_store(uri: str, passwords: Sequence[bytes] | None, what: str) -> int:
    """The first private key behind a URI (``pkcs11:…``, ``file:…``)."""
    answer = _password_callback(passwords[0] if passwords else None)
    method = c.UI_UTIL_wrap_read_pem_callback(answer, 0) if answer else 0
    with owned(method, c.UI_destroy_method):
        store = c.OSSL_STORE_open(os.fsencode(uri), method, None, None, None)
        if not store:
            raise failure(f"{what}: OSSL_STORE_open() failed")
        key = 0
        with owned(store, c.OSSL_STORE_close):
            while not key and not c.OSSL_STORE_eof(store):
                info = c.OSSL_STORE_load(store)
                if info:
                    with owned(info, c.OSSL_STORE_INFO_free):
                        if c.OSSL_STORE_INFO_get_type(info) == _STORE_PKEY:
                            key = c.OSSL_STORE_INFO_get1_PKEY(info)
        if not key:
            raise failure(f"{what}: OSSL_STORE_load() failed")
    c.ERR_clear_error()
    return key


@contextlib.contextmanager
def dh_parameters(path: str) -> Iterator[int]:
    """Diffie-Hellman parameters; freed at the end.

    Raises:
      OpenSSLError: in the words of nginx.
    """
    content = _content(path, f'cannot load DH parameters "{path}"')
    bio = _bio(path, content)
    if not bio:
        raise failure(f'BIO_new_file("{path}") failed')
    with owned(bio, c.BIO_free):
        parameters = c.PEM_read_bio_DHparams(bio, None, None, None)
    if not parameters:
        raise failure(f'PEM_read_bio_DHparams("{path}") failed')
    with owned(parameters, c.DH_free):
        yield parameters


@dataclass(frozen=True)
class Validity:
    """When a certificate is valid: from `begins` to `ends`, both included."""

    begins: Moment
    ends: Moment


def validity(certificate: int) -> Validity:
    """When a certificate is valid; a time that cannot be read does not limit it."""
    return Validity(
        _moment(c.X509_get0_notBefore(certificate)) or (0,),
        _moment(c.X509_get0_notAfter(certificate)) or (10_000,),
    )


def _moment(time: int) -> Moment:
    fields = (ctypes.c_int * 16)()  # struct tm begins with nine, and is not longer
    if not c.ASN1_TIME_to_tm(time, fields):
        c.ERR_clear_error()
        return ()
    second, minute, hour, day, month, year = fields[:6]
    return year + 1900, month + 1, day, hour, minute, second


def digest(item: int, function: Callable[..., int]) -> bytes:
    """SHA-1 of a certificate or of a name, as nginx identifies them."""
    buffer, size = ctypes.create_string_buffer(64), ctypes.c_uint()
    function(item, c.EVP_sha1(), buffer, ctypes.byref(size))
    return buffer.raw[: size.value]


def use_engine(name: str) -> None:
    """The `ssl_engine` directive: use an engine for all it can do.

    Raises:
      OpenSSLError: in the words of nginx.
    """
    if unreachable() is not None:
        raise NeedsOpenSSLError("ssl_engine")
    engine = c.ENGINE_by_id(os.fsencode(name))
    if not engine:
        raise failure(f'ENGINE_by_id("{name}") failed')
    with owned(engine, c.ENGINE_free):
        if not c.ENGINE_set_default(engine, _ENGINE_ALL):
            raise failure(f'ENGINE_set_default("{name}", ENGINE_METHOD_ALL) failed')

"""Files of the configuration -> OpenSSL's objects: certificates, keys, CRLs.

Paths are complete. A certificate or a key may also be given as ``data:`` and PEM
text, a key also as ``engine:NAME:ID`` or ``store:URI``.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence

from mailproxy import outside
from mailproxy.conf.values import shown
from mailproxy.net.openssl.errors import failure
from mailproxy.net.openssl.exceptions import OpenSSLError
from mailproxy.net.openssl.headers import crypto_h, pem_h, store_h, x509_h
from mailproxy.net.openssl.headers.prototype import callback, has
from mailproxy.net.openssl.headers.types import (
    BIO,
    DH,
    EVP_PKEY,
    OSSL_STORE_CTX,
    UI_METHOD,
    X509,
    X509_CRL,
    Int,
    Pointer,
)
from mailproxy.net.openssl.library import NeedsOpenSSLError, owned, unreachable

_NO_MORE = crypto_h.ERR_PACK(crypto_h.ERR_LIB_PEM, pem_h.PEM_R_NO_START_LINE)

MAX_FILE = 64 << 20
"""Octets of a file of certificates, keys or CRLs."""


@contextlib.contextmanager
def _opened(source: str, what: str) -> Iterator[BIO]:
    """A BIO to read a file, or the text after ``data:``."""
    if source.startswith("data:"):
        function, text = "BIO_new_mem_buf", os.fsencode(source.removeprefix("data:"))
        bio = pem_h.BIO_new_mem_buf(text, len(text))
    else:
        content = _content(source, f'{what} "{source}"')
        function, bio = "BIO_new_file", _bio(source, content)
    if not bio:
        raise failure(f'{what} "{shown(source)}": {function}() failed')
    with owned(bio, pem_h.BIO_free):
        yield bio


def _content(path: str, what: str) -> bytes | None:
    """What is in a file; None if OpenSSL shall say why it cannot be read.

    Raises:
      OpenSSLError: it is too large, or a FIFO that is not written to in time.
    """
    try:
        return outside.read(path, MAX_FILE)
    except outside.FileError as error:
        if error.limit is not None:
            why = f"({error.errno}: {error.strerror})"
            raise OpenSSLError(f"{what}: {error.call}() failed {why}") from None
    except ValueError:
        pass  # a zero octet in the name
    return None


def _bio(path: str, content: bytes | None) -> BIO:
    """A BIO to read `content`, which has to outlive it; 0 if there is none."""
    if content is None:
        return pem_h.BIO_new_file(os.fsencode(path), b"r")
    return pem_h.BIO_new_mem_buf(content, len(content))


@contextlib.contextmanager
def certificates(path: str) -> Iterator[list[X509]]:
    """The certificates of a file, at least one; freed at the end.

    Raises:
      OpenSSLError: `cannot load certificate "PATH": …`
    """
    what = "cannot load certificate"
    found: list[X509] = []
    try:
        with _opened(path, what) as bio:
            read, name = pem_h.PEM_read_bio_X509_AUX, "PEM_read_bio_X509_AUX"
            while certificate := read(bio, None, None, None):
                found.append(certificate)
                read, name = pem_h.PEM_read_bio_X509, "PEM_read_bio_X509"
            _expect_end(found, f'{what} "{shown(path)}": {name}() failed')
        yield found
    finally:
        for certificate in found:
            x509_h.X509_free(certificate)


@contextlib.contextmanager
def revocation_lists(path: str) -> Iterator[list[X509_CRL]]:
    """The CRLs of a file, at least one; freed at the end.

    Raises:
      OpenSSLError: `cannot load CRL "PATH": …`
    """
    found: list[X509_CRL] = []
    try:
        with _opened(path, "cannot load CRL") as bio:
            while crl := pem_h.PEM_read_bio_X509_CRL(bio, None, None, None):
                found.append(crl)
        _expect_end(found, f'cannot load CRL "{path}": PEM_read_bio_X509_CRL() failed')
        yield found
    finally:
        for crl in found:
            x509_h.X509_CRL_free(crl)


def _expect_end(found: Sequence[int], what: str) -> None:
    """Reading has stopped: at the end of the file, or because of an error?"""
    if not found or crypto_h.ERR_peek_last_error() != _NO_MORE:
        raise failure(what)
    crypto_h.ERR_clear_error()


@contextlib.contextmanager
def private_key(source: str, passwords: Sequence[bytes] | None) -> Iterator[EVP_PKEY]:
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
    with owned(key, crypto_h.EVP_PKEY_free):
        yield key


def _from_file(source: str, passwords: Sequence[bytes] | None, what: str) -> EVP_PKEY:
    with _opened(source, "cannot load certificate key") as bio:
        for password in (None,) if passwords is None else passwords:
            crypto_h.ERR_clear_error()
            pem_h.BIO_ctrl(bio, pem_h.BIO_CTRL_RESET, 0, None)
            answer = _password_callback(password)
            key = pem_h.PEM_read_bio_PrivateKey(bio, None, answer, None)
            if key:
                return key
    raise failure(f"{what}: PEM_read_bio_PrivateKey() failed")


def _password_callback(password: bytes | None) -> object:
    """What tells OpenSSL a password; it must be kept while OpenSSL may ask."""
    if password is None:
        return None

    @callback
    def answer(buffer: Pointer, room: Int, _writing: Int, _data: Pointer) -> Int:
        size = min(len(password), room)
        ctypes.memmove(buffer, password, size)
        return size

    return answer


def _from_engine(name_and_id: str, what: str) -> EVP_PKEY:
    name, colon, key_id = name_and_id.partition(":")
    if not colon:
        raise OpenSSLError(f"{what}: invalid syntax")
    if not has(store_h.ENGINE_by_id):
        raise OpenSSLError(
            f'{what}: loading "engine:..." certificate keys is not supported'
        )
    engine = store_h.ENGINE_by_id(os.fsencode(name))
    if not engine:
        raise failure(f"{what}: ENGINE_by_id() failed")
    with owned(engine, store_h.ENGINE_free):
        key = store_h.ENGINE_load_private_key(
            engine, os.fsencode(key_id), UI_METHOD(0), None
        )
    if not key:
        raise failure(f"{what}: ENGINE_load_private_key() failed")
    return key


def _from_store(uri: str, passwords: Sequence[bytes] | None, what: str) -> EVP_PKEY:
    """The first private key behind a URI (``pkcs11:…``, ``file:…``)."""
    answer = _password_callback(passwords[0] if passwords else None)
    method = (
        store_h.UI_UTIL_wrap_read_pem_callback(answer, 0) if answer else UI_METHOD(0)
    )
    with (
        owned(method, store_h.UI_destroy_method),
        _store(uri, method, what) as store,
    ):
        key = _first_key(store)
    if not key:
        raise failure(f"{what}: OSSL_STORE_load() failed")
    crypto_h.ERR_clear_error()
    return key


@contextlib.contextmanager
def _store(uri: str, method: UI_METHOD, what: str) -> Iterator[OSSL_STORE_CTX]:
    """What is behind a URI: a file is read as all others are, and once.

    Raises:
      OpenSSLError: nothing is, or the file is too large, or too slow.
    """
    path = _file_of(uri)
    content = None if path is None else _content(path, what)
    if content is None:  # no file, a folder, or OpenSSL says why it cannot be read
        store = store_h.OSSL_STORE_open(os.fsencode(uri), method, None, None, None)
        if not store:
            raise failure(f"{what}: OSSL_STORE_open() failed")
        with owned(store, store_h.OSSL_STORE_close):
            yield store
        return
    with owned(pem_h.BIO_new_mem_buf(content, len(content)), pem_h.BIO_free) as bio:
        store = store_h.OSSL_STORE_attach(
            bio, b"file", None, None, method, None, None, None, None
        )
        if not store:
            raise failure(f"{what}: OSSL_STORE_attach() failed")
        with owned(store, store_h.OSSL_STORE_close):
            yield store


def _file_of(uri: str) -> str | None:
    """The file that a URI means (ossl_store-file(7), RFC 8089); None: it means none.

    What has no scheme is a file for OpenSSL, too.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or "/" in scheme:
        return uri
    if scheme.lower() != "file":
        return None
    if rest.startswith("//"):
        host, _, path = rest[2:].partition("/")
        return f"/{path}" if host.lower() in {"", "localhost"} else None
    return rest if rest.startswith("/") else None


def _first_key(store: OSSL_STORE_CTX) -> EVP_PKEY:
    """The first private key in a store; 0 if there is none."""
    key = EVP_PKEY(0)
    while not key and not store_h.OSSL_STORE_eof(store):
        info = store_h.OSSL_STORE_load(store)
        if info:
            with owned(info, store_h.OSSL_STORE_INFO_free):
                if (
                    store_h.OSSL_STORE_INFO_get_type(info)
                    == store_h.OSSL_STORE_INFO_PKEY
                ):
                    key = store_h.OSSL_STORE_INFO_get1_PKEY(info)
    return key


@contextlib.contextmanager
def dh_parameters(path: str) -> Iterator[DH]:
    """Diffie-Hellman parameters; freed at the end.

    Raises:
      OpenSSLError: in the words of nginx.
    """
    content = _content(path, f'cannot load DH parameters "{path}"')
    bio = _bio(path, content)
    if not bio:
        raise failure(f'BIO_new_file("{path}") failed')
    with owned(bio, pem_h.BIO_free):
        parameters = pem_h.PEM_read_bio_DHparams(bio, None, None, None)
    if not parameters:
        raise failure(f'PEM_read_bio_DHparams("{path}") failed')
    with owned(parameters, crypto_h.DH_free):
        yield parameters


def use_engine(name: str) -> None:
    """The `ssl_engine` directive: use an engine for all it can do.

    Raises:
      OpenSSLError: in the words of nginx.
    """
    if unreachable() is not None:
        raise NeedsOpenSSLError("ssl_engine")
    engine = store_h.ENGINE_by_id(os.fsencode(name))
    if not engine:
        raise failure(f'ENGINE_by_id("{name}") failed')
    with owned(engine, store_h.ENGINE_free):
        if not store_h.ENGINE_set_default(engine, store_h.ENGINE_METHOD_ALL):
            raise failure(f'ENGINE_set_default("{name}", ENGINE_METHOD_ALL) failed')

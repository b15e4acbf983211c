"""Python signatures that are prototypes of OpenSSL's functions."""

import ctypes
from collections.abc import Callable
from typing import Any, cast

import pytest

from mailproxy.net.openssl import OpenSSLError
from mailproxy.net.openssl.headers import prototype, ssl_h
from mailproxy.net.openssl.headers.prototype import has
from mailproxy.net.openssl.headers.types import Int, Pointer, Size, UInt
from tests.tls import HEADERS, declared


def test_openssl_has_all_that_is_called() -> None:
    lacking = {
        name
        for header in HEADERS
        for name in declared(header)
        if not has(getattr(header, name))
    }
    assert lacking <= {"SSL_CTX_compress_certs"}


def test_a_function_that_openssl_lacks_is_an_error_when_called() -> None:
    @prototype.prototype
    def SSL_nothing(number: Int) -> Int:  # noqa: N802 - a name of C
        raise AssertionError

    assert not has(SSL_nothing)
    with pytest.raises(OpenSSLError, match=r"SSL_nothing\(\) is not available in"):
        SSL_nothing(1)


def test_a_signature_of_python_is_a_prototype_of_c() -> None:
    function: Any = ssl_h.SSL_CTX_set_session_id_context
    assert function.restype is ctypes.c_int
    assert function.argtypes == [ctypes.c_size_t, ctypes.c_char_p, ctypes.c_uint]
    function = ssl_h.SSL_CTX_free
    assert function.restype is None


def test_a_function_of_python_is_a_callback_of_c() -> None:
    @prototype.callback
    def lengthen(name: Pointer, factor: UInt) -> Size:
        return len(ctypes.string_at(name)) * factor

    call = cast("Callable[[int, int], int]", lengthen)
    text = ctypes.create_string_buffer(b"abc")
    assert call(ctypes.addressof(text), 2**31) == 3 * 2**31

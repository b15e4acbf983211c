"""<openssl/types.h>: pointers to OpenSSL's structures, and the types of C."""

import ctypes
from typing import Annotated, NewType

Int = Annotated[int, ctypes.c_int]
UInt = Annotated[int, ctypes.c_uint]
Long = Annotated[int, ctypes.c_long]
ULong = Annotated[int, ctypes.c_ulong]
UInt64 = Annotated[int, ctypes.c_uint64]
Size = Annotated[int, ctypes.c_size_t]

Pointer = Annotated[int, ctypes.c_size_t]
"""A pointer to anything; 0 is NULL."""
Octets = Annotated[bytes | None, ctypes.c_char_p]
"""Input: text that ends with a zero octet, or octets whose number is passed, too."""
Buffer = Annotated["ctypes.Array[ctypes.c_char]", ctypes.c_void_p]
"""Memory that the function writes to."""
Out = Annotated[object, ctypes.c_void_p]
"""``byref()`` of a variable for a result; None if the caller does not want it."""
Data = Annotated[bytes | int | None, ctypes.c_void_p]
"""``void *``: its meaning depends on another argument."""
Callback = Annotated[object, ctypes.c_void_p]
"""A function made by `callback`, or None."""

ASN1_INTEGER = NewType("ASN1_INTEGER", int)
ASN1_STRING = NewType("ASN1_STRING", int)
BIO = NewType("BIO", int)
BIO_METHOD = NewType("BIO_METHOD", int)
DH = NewType("DH", int)
ENGINE = NewType("ENGINE", int)
EVP_CIPHER = NewType("EVP_CIPHER", int)
EVP_PKEY = NewType("EVP_PKEY", int)
OSSL_STORE_CTX = NewType("OSSL_STORE_CTX", int)
OSSL_STORE_INFO = NewType("OSSL_STORE_INFO", int)
SSL = NewType("SSL", int)
SSL_CONF_CTX = NewType("SSL_CONF_CTX", int)
SSL_CTX = NewType("SSL_CTX", int)
SSL_METHOD = NewType("SSL_METHOD", int)
SSL_SESSION = NewType("SSL_SESSION", int)
STACK = NewType("STACK", int)
"""Any `STACK_OF(…)`."""
UI_METHOD = NewType("UI_METHOD", int)
X509 = NewType("X509", int)
X509_CRL = NewType("X509_CRL", int)
X509_NAME = NewType("X509_NAME", int)
X509_NAME_ENTRY = NewType("X509_NAME_ENTRY", int)
X509_STORE = NewType("X509_STORE", int)


class OSSL_PARAM(ctypes.Structure):
    """A parameter of an algorithm; an array of them ends with an empty one."""

    _fields_ = (
        ("key", ctypes.c_char_p),
        ("data_type", ctypes.c_uint),
        ("data", ctypes.c_char_p),
        ("data_size", ctypes.c_size_t),
        ("return_size", ctypes.c_size_t),
    )


OSSL_PARAM_UTF8_STRING = 4
Parameters = Annotated["ctypes.Array[OSSL_PARAM]", ctypes.c_void_p]

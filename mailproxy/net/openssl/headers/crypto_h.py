"""<openssl/crypto.h>, <openssl/err.h>, <openssl/evp.h> and <openssl/dh.h>."""
# mypy: disable-error-code="empty-body"

from mailproxy.net.openssl.headers.prototype import prototype
from mailproxy.net.openssl.headers.types import (
    DH,
    EVP_CIPHER,
    EVP_PKEY,
    STACK,
    Buffer,
    Int,
    Long,
    Octets,
    Out,
    Parameters,
    Pointer,
    Size,
    ULong,
)


@prototype
def OpenSSL_version_num() -> ULong: ...
@prototype
def OPENSSL_sk_new_null() -> STACK: ...
@prototype
def OPENSSL_sk_push(stack: STACK, item: Pointer) -> Int: ...
@prototype
def OPENSSL_sk_free(stack: STACK) -> None: ...
@prototype
def CRYPTO_free(memory: Pointer, file: Octets, line: Int) -> None: ...


# -- err.h -------------------------------------------------------------------------

ERR_LIB_RSA = 4
ERR_LIB_DH = 5
ERR_LIB_EVP = 6
ERR_LIB_PEM = 9
ERR_LIB_X509 = 11
ERR_LIB_ASN1 = 13
ERR_LIB_CRYPTO = 15
ERR_LIB_EC = 16
ERR_LIB_SSL = 20
ERR_LIB_BIO = 32
ERR_LIB_X509V3 = 34
ERR_LIB_RAND = 36
ERR_LIB_OFFSET = 23
ERR_REASON_MASK = (1 << ERR_LIB_OFFSET) - 1
ERR_TXT_STRING = 0x02


def ERR_PACK(library: int, reason: int) -> int:
    """Return the code of an error."""
    return library << ERR_LIB_OFFSET | reason


def ERR_GET_LIB(code: int) -> int:
    """Return the part of OpenSSL that an error comes from."""
    return code >> ERR_LIB_OFFSET


def ERR_GET_REASON(code: int) -> int:
    """Return the reason of an error, by the numbers of its part of OpenSSL."""
    return code & ERR_REASON_MASK


@prototype
def ERR_clear_error() -> None: ...
@prototype
def ERR_peek_last_error() -> ULong: ...
@prototype
def ERR_get_error_all(
    file: Out, line: Out, function: Out, data: Out, flags: Out
) -> ULong: ...
@prototype
def ERR_error_string_n(code: ULong, buffer: Buffer, size: Size) -> None: ...


# -- evp.h, dh.h -------------------------------------------------------------------

EVP_PKEY_RSA = 6
EVP_PKEY_EC = 408


@prototype
def EVP_aes_128_cbc() -> EVP_CIPHER: ...
@prototype
def EVP_aes_256_cbc() -> EVP_CIPHER: ...
@prototype
def EVP_EncryptInit_ex(
    context: Pointer, cipher: EVP_CIPHER, engine: Out, key: Octets, iv: Pointer
) -> Int: ...
@prototype
def EVP_DecryptInit_ex(
    context: Pointer, cipher: EVP_CIPHER, engine: Out, key: Octets, iv: Pointer
) -> Int: ...
@prototype
def EVP_MAC_init(
    context: Pointer, key: Octets, size: Size, parameters: Parameters
) -> Int: ...
@prototype
def d2i_PrivateKey(kind: Int, reuse: Out, start: Out, size: Long) -> EVP_PKEY: ...
@prototype
def d2i_AutoPrivateKey(reuse: Out, start: Out, size: Long) -> EVP_PKEY: ...
@prototype
def EVP_PKEY_free(key: EVP_PKEY) -> None: ...
@prototype
def DH_free(parameters: DH) -> None: ...

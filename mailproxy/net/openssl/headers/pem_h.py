"""<openssl/pem.h> and <openssl/bio.h>."""
# mypy: disable-error-code="empty-body"

from mailproxy.net.openssl.headers.prototype import prototype
from mailproxy.net.openssl.headers.types import (
    BIO,
    BIO_METHOD,
    DH,
    EVP_PKEY,
    X509,
    X509_CRL,
    Buffer,
    Callback,
    Data,
    Int,
    Long,
    Octets,
    Out,
)

PEM_R_NO_START_LINE = 108
"""<openssl/pemerr.h>."""


@prototype
def PEM_read_bio_X509(bio: BIO, reuse: Out, ask: Callback, data: Data) -> X509: ...
@prototype
def PEM_read_bio_X509_AUX(bio: BIO, reuse: Out, ask: Callback, data: Data) -> X509: ...
@prototype
def PEM_read_bio_X509_CRL(
    bio: BIO, reuse: Out, ask: Callback, data: Data
) -> X509_CRL: ...
@prototype
def PEM_read_bio_PrivateKey(
    bio: BIO, reuse: Out, ask: Callback, data: Data
) -> EVP_PKEY: ...
@prototype
def PEM_read_bio_DHparams(bio: BIO, reuse: Out, ask: Callback, data: Data) -> DH: ...


# -- bio.h -------------------------------------------------------------------------

BIO_CTRL_RESET = 1
BIO_CTRL_PENDING = 10


@prototype
def BIO_s_mem() -> BIO_METHOD: ...
@prototype
def BIO_new(method: BIO_METHOD) -> BIO: ...
@prototype
def BIO_new_file(path: Octets, mode: Octets) -> BIO: ...
@prototype
def BIO_new_mem_buf(octets: Octets, size: Int) -> BIO: ...
@prototype
def BIO_free(bio: BIO) -> Int: ...
@prototype
def BIO_read(bio: BIO, buffer: Buffer, size: Int) -> Int: ...
@prototype
def BIO_ctrl(bio: BIO, command: Int, number: Long, data: Data) -> Long: ...

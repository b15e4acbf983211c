"""The functions of OpenSSL, and the way from the objects of `ssl` to OpenSSL's.

An `ssl.SSLContext` is a Python object whose first field is the `SSL_CTX *`; in the
object behind an `ssl.SSLSocket`, the `SSL *` is the second field. CPython promises
neither, so both are verified once, by asking OpenSSL for values that Python has set.

Not every Python shares its OpenSSL: portable builds (uv's among them) carry it inside,
and show its functions to nobody. `unreachable` says so, and TLS is then done with what
`ssl` offers (portable.py).
"""

from __future__ import annotations

import _ssl  # CPython's half of `ssl`: which library, and how objects are laid out
import contextlib
import ctypes
import functools
import re
import ssl
import sys
from collections.abc import Callable, Iterator

_TYPES = {
    "p": ctypes.c_void_p,  # what a function takes: an address, bytes, an array, None
    "P": ctypes.c_size_t,  # what it returns: an address, 0 for NULL
    "i": ctypes.c_int,
    "u": ctypes.c_uint,
    "l": ctypes.c_long,
    "o": ctypes.c_uint64,
    "z": ctypes.c_size_t,
    "v": None,
}

_SIGNATURES: dict[str, str] = dict(
    re.findall(
        r"(\w+)=(\w+)",
        """
    SSL_CTX_new=Pp SSL_CTX_free=vp TLS_server_method=P SSL_CTX_ctrl=lpilp
    SSL_CTX_get_options=op SSL_CTX_set_options=opo SSL_CTX_clear_options=opo
    SSL_CTX_get_security_level=ip SSL_CTX_set_security_level=vpi
    SSL_CTX_get_num_tickets=zp SSL_CTX_set_cipher_list=ipp
    SSL_CTX_use_certificate=ipp SSL_CTX_use_PrivateKey=ipp SSL_CTX_compress_certs=ipi
    SSL_CTX_set_verify=vpip SSL_CTX_set_verify_depth=vpi SSL_CTX_get_cert_store=Pp
    SSL_CTX_add_client_CA=ipp SSL_CTX_set_alpn_select_cb=vppp
    SSL_CTX_set_info_callback=vpp SSL_CTX_set_session_id_context=ippu
    SSL_CTX_set_timeout=lpl SSL_CTX_get_timeout=lp SSL_CTX_remove_session=ipp
    SSL_CTX_sess_set_new_cb=vpp SSL_CTX_sess_set_get_cb=vpp
    SSL_CTX_sess_set_remove_cb=vpp SSL_CTX_set_tlsext_ticket_key_evp_cb=ipp
    SSL_CONF_CTX_new=P SSL_CONF_CTX_free=vp SSL_CONF_CTX_set_flags=upu
    SSL_CONF_CTX_set_ssl_ctx=vpp SSL_CONF_CTX_finish=ip SSL_CONF_cmd=ippp
    SSL_CONF_cmd_value_type=ipp
    SSL_CTX_set_client_hello_cb=vppp SSL_set_session_id_context=ippu
    SSL_get_SSL_CTX=Pp SSL_get_options=op SSL_version=ip SSL_get_session=Pp
    SSL_get_verify_result=lp SSL_get_servername=Ppi SSL_get_certificate=Pp
    SSL_select_next_proto=ipppupu
    SSL_SESSION_get_id=Ppp SSL_SESSION_get_time=lp SSL_SESSION_set_time=lpl
    SSL_SESSION_get_timeout=lp SSL_SESSION_set_timeout=lpl
    SSL_SESSION_set1_id_context=ippu i2d_SSL_SESSION=ipp d2i_SSL_SESSION=Pppl
    BIO_new=Pp BIO_s_mem=P BIO_new_file=Ppp BIO_new_mem_buf=Ppi BIO_free=ip
    BIO_read=ippi BIO_ctrl=lpilp
    PEM_read_bio_X509_AUX=Ppppp PEM_read_bio_X509=Ppppp PEM_read_bio_X509_CRL=Ppppp
    PEM_read_bio_PrivateKey=Ppppp PEM_read_bio_DHparams=Ppppp
    ENGINE_by_id=Pp ENGINE_load_private_key=Ppppp ENGINE_set_default=ipu ENGINE_free=ip
    OSSL_STORE_open=Pppppp OSSL_STORE_load=Pp OSSL_STORE_eof=ip OSSL_STORE_close=ip
    OSSL_STORE_INFO_get_type=ip OSSL_STORE_INFO_get1_PKEY=Pp OSSL_STORE_INFO_free=vp
    UI_UTIL_wrap_read_pem_callback=Ppi UI_destroy_method=vp
    X509_free=vp X509_CRL_free=vp EVP_PKEY_free=vp DH_free=vp CRYPTO_free=vppi
    X509_STORE_add_cert=ipp X509_STORE_add_crl=ipp X509_STORE_set_flags=ipl
    X509_get_subject_name=Pp X509_get_issuer_name=Pp X509_get_serialNumber=Pp
    X509_get_signature_nid=ip X509_get0_pubkey=Pp X509_digest=ipppp X509_CRL_digest=ipppp
    X509_NAME_digest=ipppp X509_NAME_print_ex=ippil X509_NAME_get_index_by_NID=ipii
    X509_NAME_get_entry=Ppi X509_NAME_ENTRY_get_data=Pp ASN1_STRING_to_UTF8=ipp
    i2a_ASN1_INTEGER=ipp d2i_X509=Pppl X509_verify_cert_error_string=Pl
    X509_get0_notBefore=Pp X509_get0_notAfter=Pp ASN1_TIME_to_tm=ipp
    EVP_PKEY_get_base_id=ip EVP_PKEY_get_bits=ip EVP_sha1=P OBJ_nid2sn=Pi
    OPENSSL_sk_new_null=P OPENSSL_sk_push=ipp OPENSSL_sk_free=vp
    EVP_aes_128_cbc=P EVP_aes_256_cbc=P EVP_EncryptInit_ex=ippppp
    EVP_DecryptInit_ex=ippppp EVP_MAC_init=ippzp RAND_bytes=ipi
    OpenSSL_version_num=l ERR_clear_error=v ERR_peek_last_error=l ERR_get_error_all=lppppp
    ERR_error_string_n=vlpz ERR_reason_error_string=Pl OPENSSL_init_ssl=iop
    """,
    )
)
"""The functions that are called: the type of the result, then those of arguments."""


class OpenSSLError(Exception):
    """OpenSSL refuses, or cannot do, what is asked; the text is nginx's."""


class PrivateKeyError(OpenSSLError):
    """The private key is what is wrong, not its certificate."""


class NeedsOpenSSLError(OpenSSLError):
    """A directive asks for what only OpenSSL's own functions can do.

    Attributes:
      directive: its name.
      remedy: what people can do.
    """

    def __init__(self, directive: str) -> None:
        super().__init__(
            f'"{directive}" needs a Python that shares the system\'s OpenSSL'
        )
        self.directive = directive
        self.remedy = (
            f"{unreachable() or 'OpenSSL cannot be called'}; "
            "run mailproxy with the python3 of your distribution"
        )


class _Library:
    """OpenSSL. A function that it lacks is an error when it is called for."""

    def __init__(self) -> None:
        # Where `_ssl` is built into the interpreter, so is OpenSSL.
        self._library = ctypes.PyDLL(getattr(_ssl, "__file__", None))

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = getattr(self._library, name, None)
        if function is None:
            raise OpenSSLError(f"{name}() is not available in {ssl.OPENSSL_VERSION}")
        signature = _SIGNATURES[name]
        function.restype = _TYPES[signature[0]]
        function.argtypes = [_TYPES[argument] for argument in signature[1:]]
        setattr(self, name, function)
        found: Callable[..., int] = function
        return found

    def has(self, name: str) -> bool:
        """Whether this OpenSSL has a function."""
        return hasattr(self._library, name)


c = _Library()


def callback(signature: str) -> Callable[[Callable[..., int | None]], object]:
    """Make a Python function one that OpenSSL can call; the caller keeps the result.

    Args:
      signature: as in the table above.
    """
    arguments = [kind for letter in signature[1:] if (kind := _TYPES[letter])]
    return ctypes.CFUNCTYPE(_TYPES[signature[0]], *arguments)


_LOWEST_ADDRESS = 4096
_CTX_FIELD = object.__basicsize__
_SSL_FIELD = object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)


def _field(owner: object, offset: int) -> int:
    return ctypes.c_void_p.from_address(id(owner) + offset).value or 0


def ctx_of(context: ssl.SSLContext) -> int:
    """The `SSL_CTX *` of a context; only where `unreachable` gives None."""
    return _field(context, _CTX_FIELD)


def ssl_of(tls: ssl.SSLSocket | ssl.SSLObject) -> int:
    """The `SSL *` of a connection; only where `unreachable` gives None.

    Raises:
      ValueError: the connection was closed.
    """
    inner = tls._sslobj  # type: ignore[union-attr] # noqa: SLF001 - the only way to it
    if inner is None:
        raise ValueError("the TLS connection is closed")
    return _field(inner, _SSL_FIELD)


@functools.cache
def unsupported() -> str | None:
    """Why contexts cannot be made with this Python; None where they can."""
    if ssl.OPENSSL_VERSION_INFO < (3,):
        return f"{ssl.OPENSSL_VERSION} is not supported, TLS needs OpenSSL 3.0"
    return None


@functools.cache
def unreachable() -> str | None:
    """Why the functions of OpenSSL cannot be called; None where they can."""
    product = f"{sys.implementation.name} {sys.version.split()[0]}"
    if sys.implementation.name != "cpython":
        return f"{product} is not CPython"
    # Another library of the process may have brought another OpenSSL.
    if not (c.has("SSL_CTX_ctrl") and c.has("OpenSSL_version_num")) or (
        c.OpenSSL_version_num() != ssl.OPENSSL_VERSION_NUMBER
    ):
        return "this Python carries OpenSSL inside"
    if not _layout_is_known():
        return f"the ssl module of {product} has a layout that is not known here"
    return None


def _layout_is_known() -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 5  # rare enough to be recognised
    ctx = ctx_of(context)
    if ctx < _LOWEST_ADDRESS or ctx % ctypes.sizeof(ctypes.c_void_p):
        return False
    if c.SSL_CTX_get_num_tickets(ctx) != context.num_tickets:
        return False
    if c.SSL_CTX_get_options(ctx) != context.options:
        return False
    connection = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    return c.SSL_get_SSL_CTX(ssl_of(connection)) == ctx


@functools.cache
def defaults() -> tuple[int, int]:
    """Options and security level of a context before `ssl` has changed it."""
    with owned(c.SSL_CTX_new(c.TLS_server_method()), c.SSL_CTX_free) as ctx:
        return c.SSL_CTX_get_options(ctx), c.SSL_CTX_get_security_level(ctx)


@contextlib.contextmanager
def owned(pointer: int, free: Callable[[int], object]) -> Iterator[int]:
    """Free an object of OpenSSL at the end of a with statement."""
    try:
        yield pointer
    finally:
        free(pointer)

"""<openssl/ssl.h> and <openssl/tls1.h>."""
# mypy: disable-error-code="empty-body"

from mailproxy.net.openssl.headers.prototype import prototype
from mailproxy.net.openssl.headers.types import (
    EVP_PKEY,
    SSL,
    SSL_CONF_CTX,
    SSL_CTX,
    SSL_METHOD,
    SSL_SESSION,
    STACK,
    X509,
    X509_STORE,
    Callback,
    Data,
    Int,
    Long,
    Octets,
    Out,
    Pointer,
    Size,
    UInt,
    UInt64,
)

# -- contexts ----------------------------------------------------------------------

SSL_CTRL_SET_TMP_DH = 3
SSL_CTRL_MODE = 33
SSL_CTRL_SET_TLSEXT_SERVERNAME_CB = 53
SSL_CTRL_SET_TLSEXT_SERVERNAME_ARG = 54
SSL_CTRL_SET_SESS_CACHE_SIZE = 42
SSL_CTRL_SET_SESS_CACHE_MODE = 44
SSL_CTRL_SET_TLSEXT_HOSTNAME = 55
SSL_CTRL_SET_TLSEXT_TICKET_KEYS = 59
SSL_CTRL_CHAIN_CERT = 89
SSL_CTRL_SET_GROUPS_LIST = 92

SSL_MODE_NO_AUTO_CHAIN = 0x08
SSL_MODE_RELEASE_BUFFERS = 0x10

SSL_VERIFY_PEER = 0x01

SSL_OP_DONT_INSERT_EMPTY_FRAGMENTS = 1 << 11
SSL_OP_NO_ANTI_REPLAY = 1 << 24
SSL_OP_NO_TX_CERTIFICATE_COMPRESSION = 1 << 32
"""Since OpenSSL 3.2."""


@prototype
def TLS_server_method() -> SSL_METHOD: ...
@prototype
def SSL_CTX_new(method: SSL_METHOD) -> SSL_CTX: ...
@prototype
def SSL_CTX_free(ctx: SSL_CTX) -> None: ...
@prototype
def SSL_CTX_ctrl(ctx: SSL_CTX, command: Int, number: Long, data: Data) -> Long: ...
@prototype
def SSL_CTX_callback_ctrl(ctx: SSL_CTX, command: Int, function: Callback) -> Long: ...
@prototype
def SSL_CTX_get_options(ctx: SSL_CTX) -> UInt64: ...
@prototype
def SSL_CTX_get_num_tickets(ctx: SSL_CTX) -> Size: ...
@prototype
def SSL_CTX_get_security_level(ctx: SSL_CTX) -> Int: ...
@prototype
def SSL_CTX_set_security_level(ctx: SSL_CTX, level: Int) -> None: ...
@prototype
def SSL_CTX_set_cipher_list(ctx: SSL_CTX, text: Octets) -> Int: ...
@prototype
def SSL_CTX_use_certificate(ctx: SSL_CTX, certificate: X509) -> Int: ...
@prototype
def SSL_CTX_use_PrivateKey(ctx: SSL_CTX, key: EVP_PKEY) -> Int: ...
@prototype
def SSL_CTX_use_cert_and_key(
    ctx: SSL_CTX, certificate: X509, key: EVP_PKEY, chain: STACK, override: Int
) -> Int: ...
@prototype
def SSL_CTX_compress_certs(ctx: SSL_CTX, algorithm: Int) -> Int: ...
@prototype
def SSL_CTX_set_verify(ctx: SSL_CTX, mode: Int, verify: Callback) -> None: ...
@prototype
def SSL_CTX_set_verify_depth(ctx: SSL_CTX, depth: Int) -> None: ...
@prototype
def SSL_CTX_get_cert_store(ctx: SSL_CTX) -> X509_STORE: ...
@prototype
def SSL_CTX_add_client_CA(ctx: SSL_CTX, authority: X509) -> Int: ...
@prototype
def SSL_CTX_set_info_callback(ctx: SSL_CTX, tell: Callback) -> None: ...
@prototype
def SSL_CTX_set_client_hello_cb(ctx: SSL_CTX, decide: Callback, data: Data) -> None: ...
@prototype
def SSL_CTX_set_alpn_select_cb(ctx: SSL_CTX, select: Callback, data: Data) -> None: ...


# -- connections -------------------------------------------------------------------

SSL_CB_ACCEPT_LOOP = 0x2001
SSL_CLIENT_HELLO_SUCCESS = 1
OPENSSL_NPN_NEGOTIATED = 1
SSL_TLSEXT_ERR_OK = 0
SSL_TLSEXT_ERR_ALERT_FATAL = 2
SSL_TLSEXT_ERR_NOACK = 3
SSL_AD_INTERNAL_ERROR = 80
SSL_AD_UNRECOGNIZED_NAME = 112
TLSEXT_NAMETYPE_host_name = 0


@prototype
def SSL_get_SSL_CTX(ssl: SSL) -> SSL_CTX: ...
@prototype
def SSL_ctrl(ssl: SSL, command: Int, number: Long, data: Data) -> Long: ...
@prototype
def SSL_get_options(ssl: SSL) -> UInt64: ...
@prototype
def SSL_read_ex(ssl: SSL, buffer: Pointer, size: Size, done: Out) -> Int: ...
@prototype
def SSL_write_ex(ssl: SSL, data: Pointer, size: Size, done: Out) -> Int: ...
@prototype
def SSL_get_error(ssl: SSL, result: Int) -> Int: ...
@prototype
def SSL_pending(ssl: SSL) -> Int: ...
@prototype
def SSL_shutdown(ssl: SSL) -> Int: ...
@prototype
def SSL_version(ssl: SSL) -> Int: ...
@prototype
def SSL_get_session(ssl: SSL) -> SSL_SESSION: ...
@prototype
def SSL_get1_session(ssl: SSL) -> SSL_SESSION: ...
@prototype
def SSL_set_session(ssl: SSL, session: SSL_SESSION) -> Int: ...
@prototype
def SSL_set_session_id_context(ssl: SSL, identity: Octets, size: UInt) -> Int: ...
@prototype
def SSL_session_reused(ssl: SSL) -> Int: ...
@prototype
def SSL_get_verify_result(ssl: SSL) -> Long: ...
@prototype
def SSL_get_servername(ssl: SSL, kind: Int) -> Octets: ...
@prototype
def SSL_new(ctx: SSL_CTX) -> SSL: ...
@prototype
def SSL_free(ssl: SSL) -> None: ...
@prototype
def SSL_certs_clear(ssl: SSL) -> None: ...
@prototype
def SSL_use_cert_and_key(
    ssl: SSL, certificate: X509, key: EVP_PKEY, chain: STACK, override: Int
) -> Int: ...
@prototype
def SSL_get_certificate(ssl: SSL) -> X509: ...
@prototype
def SSL_select_next_proto(
    out: Pointer,
    out_size: Pointer,
    ours: Octets,
    ours_size: UInt,
    theirs: Pointer,
    theirs_size: UInt,
) -> Int: ...


# -- sessions ----------------------------------------------------------------------

SSL_SESS_CACHE_OFF = 0x0000
SSL_SESS_CACHE_SERVER = 0x0002
SSL_SESS_CACHE_NO_AUTO_CLEAR = 0x0080
SSL_SESS_CACHE_NO_INTERNAL_STORE = 0x0200
SSL_SESS_CACHE_NO_INTERNAL = 0x0300


@prototype
def SSL_CTX_set_session_id_context(
    ctx: SSL_CTX, identity: Octets, size: UInt
) -> Int: ...
@prototype
def SSL_CTX_set_timeout(ctx: SSL_CTX, seconds: Long) -> Long: ...
@prototype
def SSL_CTX_get_timeout(ctx: SSL_CTX) -> Long: ...
@prototype
def SSL_CTX_remove_session(ctx: SSL_CTX, session: SSL_SESSION) -> Int: ...
@prototype
def SSL_CTX_sess_set_new_cb(ctx: SSL_CTX, store: Callback) -> None: ...
@prototype
def SSL_CTX_sess_set_get_cb(ctx: SSL_CTX, find: Callback) -> None: ...
@prototype
def SSL_CTX_sess_set_remove_cb(ctx: SSL_CTX, remove: Callback) -> None: ...
@prototype
def SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx: SSL_CTX, protect: Callback) -> Int: ...
@prototype
def SSL_SESSION_free(session: SSL_SESSION) -> None: ...
@prototype
def SSL_SESSION_is_resumable(session: SSL_SESSION) -> Int: ...
@prototype
def SSL_SESSION_get_id(session: SSL_SESSION, size: Out) -> Pointer: ...
@prototype
def SSL_SESSION_get_time(session: SSL_SESSION) -> Long: ...
@prototype
def SSL_SESSION_set_time(session: SSL_SESSION, seconds: Long) -> Long: ...
@prototype
def SSL_SESSION_get_timeout(session: SSL_SESSION) -> Long: ...
@prototype
def SSL_SESSION_set_timeout(session: SSL_SESSION, seconds: Long) -> Long: ...
@prototype
def SSL_SESSION_set1_id_context(
    session: SSL_SESSION, identity: Octets, size: UInt
) -> Int: ...
@prototype
def i2d_SSL_SESSION(session: SSL_SESSION, out: Out) -> Int: ...
@prototype
def d2i_SSL_SESSION(reuse: Out, start: Out, size: Long) -> SSL_SESSION: ...


# -- OpenSSL's own configuration language, SSL_CONF_cmd(3) -------------------------

SSL_CONF_FLAG_FILE = 0x2
SSL_CONF_FLAG_CLIENT = 0x4
SSL_CONF_FLAG_SERVER = 0x8
SSL_CONF_FLAG_SHOW_ERRORS = 0x10
SSL_CONF_FLAG_CERTIFICATE = 0x20
SSL_CONF_TYPE_FILE = 0x2
SSL_CONF_TYPE_DIR = 0x3


@prototype
def SSL_CONF_CTX_new() -> SSL_CONF_CTX: ...
@prototype
def SSL_CONF_CTX_free(configuration: SSL_CONF_CTX) -> None: ...
@prototype
def SSL_CONF_CTX_set_flags(configuration: SSL_CONF_CTX, flags: UInt) -> UInt: ...
@prototype
def SSL_CONF_CTX_set_ssl_ctx(configuration: SSL_CONF_CTX, ctx: SSL_CTX) -> None: ...
@prototype
def SSL_CONF_CTX_finish(configuration: SSL_CONF_CTX) -> Int: ...
@prototype
def SSL_CONF_cmd(configuration: SSL_CONF_CTX, name: Octets, value: Octets) -> Int: ...
@prototype
def SSL_CONF_cmd_value_type(configuration: SSL_CONF_CTX, name: Octets) -> Int: ...

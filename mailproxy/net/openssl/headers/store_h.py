"""<openssl/store.h>, <openssl/ui.h> and <openssl/engine.h>: keys that are no files."""
# mypy: disable-error-code="empty-body"

from mailproxy.net.openssl.headers.prototype import prototype
from mailproxy.net.openssl.headers.types import (
    BIO,
    ENGINE,
    EVP_PKEY,
    OSSL_STORE_CTX,
    OSSL_STORE_INFO,
    UI_METHOD,
    Callback,
    Data,
    Int,
    Octets,
    UInt,
)

OSSL_STORE_INFO_PKEY = 4


@prototype
def OSSL_STORE_open(
    uri: Octets, method: UI_METHOD, ui_data: Data, process: Callback, data: Data
) -> OSSL_STORE_CTX: ...
@prototype
def OSSL_STORE_attach(
    bio: BIO,
    scheme: Octets,
    library: Data,
    properties: Data,
    method: UI_METHOD,
    ui_data: Data,
    parameters: Data,
    process: Callback,
    data: Data,
) -> OSSL_STORE_CTX: ...
@prototype
def OSSL_STORE_load(store: OSSL_STORE_CTX) -> OSSL_STORE_INFO: ...
@prototype
def OSSL_STORE_eof(store: OSSL_STORE_CTX) -> Int: ...
@prototype
def OSSL_STORE_close(store: OSSL_STORE_CTX) -> Int: ...
@prototype
def OSSL_STORE_INFO_get_type(info: OSSL_STORE_INFO) -> Int: ...
@prototype
def OSSL_STORE_INFO_get1_PKEY(info: OSSL_STORE_INFO) -> EVP_PKEY: ...
@prototype
def OSSL_STORE_INFO_free(info: OSSL_STORE_INFO) -> None: ...


# -- ui.h --------------------------------------------------------------------------


@prototype
def UI_UTIL_wrap_read_pem_callback(ask: Callback, writing: Int) -> UI_METHOD: ...
@prototype
def UI_destroy_method(method: UI_METHOD) -> None: ...


# -- engine.h ----------------------------------------------------------------------

ENGINE_METHOD_ALL = 0xFFFF


@prototype
def ENGINE_by_id(name: Octets) -> ENGINE: ...
@prototype
def ENGINE_load_private_key(
    engine: ENGINE, key_id: Octets, method: UI_METHOD, data: Data
) -> EVP_PKEY: ...
@prototype
def ENGINE_set_default(engine: ENGINE, flags: UInt) -> Int: ...
@prototype
def ENGINE_free(engine: ENGINE) -> Int: ...

"""<openssl/x509.h>, <openssl/x509_vfy.h> and <openssl/asn1.h>."""
# mypy: disable-error-code="empty-body"

from mailproxy.net.openssl.headers.prototype import prototype
from mailproxy.net.openssl.headers.types import (
    ASN1_INTEGER,
    ASN1_STRING,
    BIO,
    X509,
    X509_CRL,
    X509_NAME,
    X509_NAME_ENTRY,
    X509_STORE,
    Int,
    Long,
    Octets,
    Out,
    ULong,
)

NID_commonName = 13
"""<openssl/obj_mac.h>."""
XN_FLAG_RFC2253 = 0x1110317


@prototype
def X509_free(certificate: X509) -> None: ...
@prototype
def d2i_X509(reuse: Out, start: Out, size: Long) -> X509: ...
@prototype
def i2d_X509(certificate: X509, out: Out) -> Int: ...
@prototype
def X509_get_subject_name(certificate: X509) -> X509_NAME: ...
@prototype
def X509_get_issuer_name(certificate: X509) -> X509_NAME: ...
@prototype
def X509_get_serialNumber(certificate: X509) -> ASN1_INTEGER: ...
@prototype
def X509_CRL_free(crl: X509_CRL) -> None: ...
@prototype
def i2d_X509_CRL(crl: X509_CRL, out: Out) -> Int: ...
@prototype
def i2d_X509_NAME(name: X509_NAME, out: Out) -> Int: ...
@prototype
def X509_NAME_print_ex(out: BIO, name: X509_NAME, indent: Int, flags: ULong) -> Int: ...
@prototype
def X509_NAME_get_index_by_NID(name: X509_NAME, nid: Int, after: Int) -> Int: ...
@prototype
def X509_NAME_get_entry(name: X509_NAME, index: Int) -> X509_NAME_ENTRY: ...
@prototype
def X509_NAME_ENTRY_get_data(entry: X509_NAME_ENTRY) -> ASN1_STRING: ...


# -- asn1.h ------------------------------------------------------------------------


@prototype
def ASN1_STRING_to_UTF8(out: Out, text: ASN1_STRING) -> Int: ...
@prototype
def i2a_ASN1_INTEGER(out: BIO, number: ASN1_INTEGER) -> Int: ...


# -- x509_vfy.h --------------------------------------------------------------------

X509_V_ERR_UNSPECIFIED = 1
X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT = 18
X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN = 19
X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY = 20
X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE = 21
X509_V_ERR_CERT_CHAIN_TOO_LONG = 22
X509_V_ERR_CERT_UNTRUSTED = 27


@prototype
def X509_STORE_add_cert(store: X509_STORE, certificate: X509) -> Int: ...
@prototype
def X509_STORE_add_crl(store: X509_STORE, crl: X509_CRL) -> Int: ...
@prototype
def X509_verify_cert_error_string(code: Long) -> Octets: ...

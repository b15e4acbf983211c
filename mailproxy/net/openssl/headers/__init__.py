"""Declarations of OpenSSL's headers: functions, types and numbers that mailproxy uses.

    prototype.py   how a Python signature becomes a C function
    types.py       <openssl/types.h>
    ssl_h.py       <openssl/ssl.h>, <openssl/tls1.h>
    x509_h.py      <openssl/x509.h>, <openssl/x509_vfy.h>, <openssl/asn1.h>
    pem_h.py       <openssl/pem.h>, <openssl/bio.h>
    crypto_h.py    <openssl/crypto.h>, <openssl/err.h>, <openssl/evp.h>, <openssl/dh.h>
    store_h.py     <openssl/store.h>, <openssl/ui.h>, <openssl/engine.h>

Names are OpenSSL's, so that its manual pages can be searched for them. Functions are
called through their module (``ssl_h.SSL_version(ssl)``).
"""

"""The certificates, keys and other files that cases ask for by `with`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import cache

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

PASSWORD = "swordfish"

# RFC 7919, appendix A.1 (ffdhe2048)
DH_PARAMETERS = b"""\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi7
MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


@cache
def fixtures() -> Mapping[str, bytes]:
    """The files by name; made once per run."""
    authority = trustme.CA()
    good = authority.issue_cert("mail.example.com")
    second = authority.issue_cert("mail.example.org", key_type=trustme.KeyType.RSA)
    key = serialization.load_pem_private_key(good.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PASSWORD.encode()),
    )
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    expired = authority.issue_cert(
        "mail.example.com", not_before=now - 2 * day, not_after=now - day
    )
    future = authority.issue_cert(
        "mail.example.com", not_before=now + day, not_after=now + 2 * day
    )
    other = trustme.CA().issue_cert("other.example.com")
    return {
        "good.crt": b"".join(pem.bytes() for pem in good.cert_chain_pems),
        "good.key": good.private_key_pem.bytes(),
        "good.pem": good.private_key_and_cert_chain_pem.bytes(),
        "expired.pem": expired.private_key_and_cert_chain_pem.bytes(),
        "future.pem": future.private_key_and_cert_chain_pem.bytes(),
        "rsa.crt": b"".join(pem.bytes() for pem in second.cert_chain_pems),
        "rsa.key": second.private_key_pem.bytes(),
        "other.key": other.private_key_pem.bytes(),
        "locked.key": locked,
        "password": b"wrong\n%s\n" % PASSWORD.encode(),
        "wrong-password": b"wrong\n",
        "ca.crt": authority.cert_pem.bytes(),
        "list.crl": _revocations(),
        "dh.pem": DH_PARAMETERS,
        "empty.pem": b"",
        "text.pem": b"this is not PEM\n",
        "ticket47": bytes(47),
        "ticket48": bytes(48),
        "ticket80": bytes(80),
    }


def _revocations() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    now = datetime.datetime.now(datetime.UTC)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")]))
        .last_update(now)
        .next_update(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return crl.public_bytes(serialization.Encoding.PEM)

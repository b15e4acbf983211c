"""Certificates for scripts, in the directory of a proxy.

`server.pem` is the proxy's. Clients have `client.pem` (signed by `ca.pem`, whom the
proxies know), `stranger.pem` (by someone unknown) and `expired.pem`. Names are fixed,
so that they can stand in scripts.
"""

import hashlib
import ssl
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import trustme
from cryptography import x509


def write(directory: Path) -> dict[bytes, bytes]:
    """Write all files; returns what is new in each run, with signs for it."""
    authority = trustme.CA(
        organization_name="Example CA", organization_unit_name="Tests"
    )
    stranger = trustme.CA(
        organization_name="Unknown CA", organization_unit_name="Tests"
    )
    authority.cert_pem.write_to_path(directory / "ca.pem")
    past = datetime(2020, 1, 1, tzinfo=UTC)
    issued = {
        "server": authority.issue_cert("mx.test"),
        "client": _issue(authority),
        "stranger": _issue(stranger),
        "expired": _issue(authority, not_after=past),
    }
    for name, certificate in issued.items():
        certificate.private_key_and_cert_chain_pem.write_to_path(
            directory / f"{name}.pem"
        )
    signs: dict[bytes, bytes] = {}
    for name, number in (("client", ""), ("stranger", "2")):
        signs |= _signs(issued[name].cert_chain_pems[0].bytes().decode(), number)
    return signs


def _issue(
    authority: trustme.CA, not_after: datetime | None = None
) -> trustme.LeafCert:
    return authority.issue_cert(
        "client.test",
        common_name="client",
        organization_name="Ünï, Ltd",
        organization_unit_name="Tests",
        not_before=not_after and datetime(2019, 1, 1, tzinfo=UTC),
        not_after=not_after,
    )


def _signs(pem: str, number: str) -> dict[bytes, bytes]:
    der = ssl.PEM_cert_to_DER_cert(pem)
    serial = f"{x509.load_der_x509_certificate(der).serial_number:X}"
    escaped = "".join(quote(c) if c in " \n%" else c for c in pem)
    return {
        escaped.encode(): f"⟨pem{number}⟩".encode(),
        hashlib.sha1(der).hexdigest().encode(): f"⟨fingerprint{number}⟩".encode(),
        serial.rjust(
            len(serial) + len(serial) % 2, "0"
        ).encode(): f"⟨serial{number}⟩".encode(),
    }

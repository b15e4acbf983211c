"""Directories of certificates: every layout is understood, and what cannot be used is named."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from trustme import KeyType

from mailproxy.net.openssl.folder import MAX_FILES, Folder, PairError, load_pair
from mailproxy.net.openssl.identities import Identity
from mailproxy.outside import FileError
from tests.named import Issuer


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


def read(issuer: Issuer, *passwords: bytes) -> Folder:
    return Folder(str(issuer.directory), passwords)


def found(folder: Folder) -> dict[str, str]:
    """Certificates and their keys, by paths below the directory."""
    return {
        os.path.relpath(pair.file, folder.path): os.path.relpath(
            pair.key_file, folder.path
        )
        for pair in folder.pairs
    }


def reasons(folder: Folder) -> dict[str, str]:
    return {
        os.path.relpath(path, folder.path): reason
        for path, reason in folder.passed_over.items()
    }


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        ("a.crt", "a.key"),
        ("a.pem", "a.pem"),
        ("a/fullchain.pem", "a/privkey.pem"),
        ("a_ecc/fullchain.cer", "a_ecc/a.key"),
        ("a/a.crt", "a/a.key"),
        ("tls.crt", "tls.key"),
        ("a.crt", "private/whatever.key"),
        ("public/a.crt", "private/a.key"),
        ("a.crt", "b.key"),
    ],
)
def test_layout_is_understood(issuer: Issuer, certificate: str, key: str) -> None:
    issuer.write(issuer.issue("a.example.org"), certificate, key)
    folder = read(issuer)
    assert found(folder) == {certificate: key}
    assert reasons(folder) == {}
    (pair,) = folder.pairs
    assert pair.leaf.names == ("a.example.org",)
    Identity(pair)


def test_certbot_has_poorer_copies(issuer: Issuer) -> None:
    leaf = issuer.issue("a.example.org")
    archive, live = issuer.directory / ".archive", issuer.directory / "a.example.org"
    archive.mkdir()
    live.mkdir()
    chain = [blob.bytes() for blob in leaf.cert_chain_pems]
    contents = {
        "cert": chain[0],
        "chain": issuer.ca.cert_pem.bytes(),
        "fullchain": chain[0] + issuer.ca.cert_pem.bytes(),
        "privkey": leaf.private_key_pem.bytes(),
    }
    for name, content in contents.items():
        (archive / f"{name}1.pem").write_bytes(content)
        (live / f"{name}.pem").symlink_to(f"../.archive/{name}1.pem")
    (issuer.directory / "README").write_text("-----BEGIN nothing\n")
    folder = read(issuer)
    assert found(folder) == {"a.example.org/fullchain.pem": "a.example.org/privkey.pem"}
    assert len(folder.pairs[0].chain) == 1
    assert reasons(folder) == {"README": "cannot be parsed"}


def test_kubernetes_has_links_to_links(issuer: Issuer) -> None:
    issuer.write(issuer.issue("a.example.org"), "..2026/tls.crt", "..2026/tls.key")
    (issuer.directory / "..data").symlink_to("..2026")
    for name in ("tls.crt", "tls.key"):
        (issuer.directory / name).symlink_to(f"..data/{name}")
    folder = read(issuer)
    assert found(folder) == {"tls.crt": "tls.key"}
    assert reasons(folder) == {}


def test_no_deeper_than_one_directory(issuer: Issuer) -> None:
    issuer.write(issuer.issue("a.example.org"), "x/y/a.crt", "x/y/a.key")
    issuer.write(issuer.issue("b.example.org"), ".b/b.crt", ".b/b.key")
    folder = read(issuer)
    assert (found(folder), reasons(folder)) == ({}, {})


def test_the_key_in_the_same_directory_comes_first(issuer: Issuer) -> None:
    leaf = issuer.issue("a.example.org")
    issuer.write(leaf, "b/a.crt", "a/a.key")
    issuer.write(leaf, "b/a.crt", "b/z.key")
    assert found(read(issuer)) == {"b/a.crt": "b/z.key"}


def test_reasons_are_told(issuer: Issuer) -> None:
    directory = issuer.directory
    lonely, other = (
        issuer.issue("lonely.example.org"),
        issuer.issue("other.example.org"),
    )
    issuer.write(lonely, "lonely.crt", "x")
    (directory / "x").unlink()
    issuer.write(issuer.issue("wrong.example.org"), "wrong.crt", "x")
    issuer.write(other, "x", "wrong.key")
    (directory / "x").unlink()
    (directory / "bad.pem").write_text(
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    )
    (directory / "torn.pem").write_bytes(
        issuer.issue("torn.example.org").cert_chain_pems[0].bytes()[:-30]
    )
    (directory / "text").write_text("nothing in here")
    (directory / "empty.pem").write_text("")
    (directory / "ca.pem").write_bytes(issuer.ca.cert_pem.bytes())
    (directory / "big.pem").write_bytes(b"-----BEGIN " + b"x" * (2 << 20))
    (directory / "nowhere.pem").symlink_to("absent")
    issuer.write(issuer.issue("192.0.2.1"), "address.crt", "address.key")
    folder = read(issuer)
    assert found(folder) == {}
    assert reasons(folder) == {
        "lonely.crt": "no key",
        "wrong.crt": "key does not match",
        "bad.pem": "cannot be parsed",
        "torn.pem": "cannot be parsed",
        "big.pem": "larger than 1 MiB",
        "nowhere.pem": "not readable",
        "address.crt": "no names",
    }


def test_a_request_for_a_certificate_is_none(issuer: Issuer) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a.example.org")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name)
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (issuer.directory / "a.csr").write_bytes(pem)
    folder = read(issuer)
    assert (found(folder), reasons(folder)) == ({}, {})


@pytest.mark.parametrize("traditional", [False, True])
def test_an_encrypted_key_needs_its_password(issuer: Issuer, traditional: bool) -> None:
    leaf = issuer.issue("a.example.org", kind=KeyType.RSA)
    issuer.write(leaf, "a.crt", "a.key")
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    form = serialization.PrivateFormat.PKCS8
    if traditional:
        form = serialization.PrivateFormat.TraditionalOpenSSL
    (issuer.directory / "a.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            form,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for passwords in ((), (b"wrong",), (b"",)):
        folder = read(issuer, *passwords)
        assert reasons(folder) == {"a.crt": "key is encrypted"}
    folder = read(issuer, b"wrong", b"secret")
    assert found(folder) == {"a.crt": "a.key"}
    Identity(folder.pairs[0])
    assert "secret" not in repr(folder.pairs)


@pytest.mark.parametrize("kind", ["rsa", "pkcs1", "ec", "sec1", "ed25519"])
def test_kinds_and_forms_of_keys(issuer: Issuer, kind: str) -> None:
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    if kind in ("rsa", "pkcs1"):
        key, wanted = rsa.generate_private_key(65537, 2048), "RSA 2048"
    elif kind in ("ec", "sec1"):
        key, wanted = ec.generate_private_key(ec.SECP384R1()), "ECDSA 384"
    else:
        key, wanted = ed25519.Ed25519PrivateKey.generate(), "Ed25519"
    traditional = kind in ("pkcs1", "sec1")
    write_self_signed(issuer.directory, key, traditional=traditional)
    folder = read(issuer)
    assert found(folder) == {"self.crt": "self.key"}
    (pair,) = folder.pairs
    assert pair.leaf.key_text == wanted
    Identity(pair)


def write_self_signed(
    directory: Path,
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
    *,
    traditional: bool = False,
    alternative: bool = True,
    common_name: str = "self.example.org",
) -> None:
    """What `openssl req -x509` makes: a CA, as it says."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=9))
        .add_extension(x509.BasicConstraints(alternative, None), True)
    )
    if alternative:
        names = x509.SubjectAlternativeName([x509.DNSName(common_name)])
        made = made.add_extension(names, False)
    ed = isinstance(key, ed25519.Ed25519PrivateKey)
    signed = made.sign(key, None if ed else hashes.SHA256())
    pem = signed.public_bytes(serialization.Encoding.PEM)
    (directory / "self.crt").write_bytes(pem)
    form = serialization.PrivateFormat.PKCS8
    if traditional:
        form = serialization.PrivateFormat.TraditionalOpenSSL
    (directory / "self.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, form, serialization.NoEncryption()
        )
    )


@pytest.mark.parametrize(
    ("name", "names"),
    [("Self.example.org", ("self.example.org",)), ("Our mail server", ())],
)
def test_without_alternative_names_the_common_name_counts(
    issuer: Issuer, name: str, names: tuple[str, ...]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    write_self_signed(issuer.directory, key, alternative=False, common_name=name)
    folder = read(issuer)
    if not names:
        assert reasons(folder) == {"self.crt": "no names"}
        return
    (pair,) = folder.pairs
    assert pair.leaf.names == names
    assert not pair.leaf.has_alt_names


def test_keys_that_everybody_can_read_are_named(issuer: Issuer) -> None:
    issuer.put("a.example.org")
    assert list(read(issuer).readable_keys()) == []
    (issuer.directory / "a.example.org.key").chmod(0o644)
    assert list(read(issuer).readable_keys()) == [
        str(issuer.directory / "a.example.org.key")
    ]


def test_what_has_not_changed_remains_the_same_object(issuer: Issuer) -> None:
    issuer.put("a.example.org")
    issuer.put("b.example.org")
    before = read(issuer)
    issuer.put("b.example.org")
    issuer.put("c.example.org")
    after = Folder(before.path, (), before)
    kept = set(before.pairs) & set(after.pairs)
    assert [pair.leaf.names for pair in kept] == [("a.example.org",)]
    assert len(after.pairs) == 3


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        Folder(str(tmp_path / "absent"))


def test_no_more_files_than_a_limit(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_FILES == 20_000
    monkeypatch.setattr("mailproxy.net.openssl.folder.MAX_FILES", 2)
    issuer.put("a.example.org")
    issuer.put("b.example.org")
    folder = read(issuer)
    assert found(folder) == {"a.example.org.crt": "a.example.org.key"}
    assert folder.listing.left_out == 2


def test_two_named_files_make_a_pair(issuer: Issuer) -> None:
    leaf, other = issuer.issue("a.example.org"), issuer.issue("b.example.org")
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    key, wrong = leaf.private_key_pem.bytes(), other.private_key_pem.bytes()
    pair = load_pair("a.crt", chain, "a.key", key)
    assert (pair.file, pair.key_file) == ("a.crt", "a.key")
    for content, key_content, of_key, reason in (
        (b"", key, False, "cannot be parsed"),
        (chain[:40], key, False, "cannot be parsed"),
        (chain, b"", True, "cannot be parsed"),
        (chain, wrong, True, "key does not match"),
    ):
        with pytest.raises(PairError) as caught:
            load_pair("a.crt", content, "a.key", key_content)
        assert (caught.value.of_key, caught.value.reason) == (of_key, reason)

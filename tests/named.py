"""Certificates for several names, in the layouts that ACME clients make."""

from __future__ import annotations

import os
import ssl
from datetime import datetime
from pathlib import Path
from typing import cast

import pytest
import trustme
from trustme import KeyType

from mailproxy.conf.tree import ConfigError
from mailproxy.mail.ssl import SslSettings
from mailproxy.process.configuration import ConfigErrors, Configuration, Loader
from tests.tls import Handshake, shake_hands


class Issuer:
    """A CA, and what it issues.

    Attributes:
      directory: where files without a directory of their own go.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA(key_type=KeyType.ECDSA)

    def issue(
        self,
        *names: str,
        kind: KeyType = KeyType.ECDSA,
        begins: datetime | None = None,
        ends: datetime | None = None,
        common_name: str | None = None,
    ) -> trustme.LeafCert:
        """Issue a certificate without writing it."""
        return self.ca.issue_cert(
            *names,
            common_name=common_name or names[0],
            key_type=kind,
            not_before=begins,
            not_after=ends,
        )

    def write(
        self,
        leaf: trustme.LeafCert,
        certificate: str,
        key: str,
    ) -> None:
        """Write a certificate with its chain, and its key; both names may be the same."""
        files: dict[str, bytes] = {}
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        files[certificate] = chain
        files[key] = files.get(key, b"") + leaf.private_key_pem.bytes()
        for name, content in files.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o600)

    def put(
        self,
        *names: str,
        file: str | None = None,
        kind: KeyType = KeyType.ECDSA,
        begins: datetime | None = None,
        ends: datetime | None = None,
    ) -> trustme.LeafCert:
        """Issue a certificate, and write FILE.crt and FILE.key."""
        leaf = self.issue(*names, kind=kind, begins=begins, ends=ends)
        stem = file or names[0].replace("*", "_")
        self.write(leaf, f"{stem}.crt", f"{stem}.key")
        return leaf

    def client(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A client that trusts the CA, and looks at no name."""
        context = ssl.create_default_context()
        context.check_hostname = False
        self.ca.configure_trust(context)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context


def names_shown(done: Handshake) -> set[str]:
    """The names of the certificate that a client has got."""
    found = done.client.getpeercert()
    assert found is not None
    return {
        str(value)
        for kind, value in cast("tuple[tuple[str, str], ...]", found["subjectAltName"])
        if kind == "DNS"
    }


def ask(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    name: str | None,
    session: ssl.SSLSession | None = None,
) -> Handshake:
    """Do a handshake in which the client asks for a name."""
    return shake_hands(server, client, session, name=name)


class Site:
    """A directory with a configuration and certificates.

    Attributes:
      issuer: of the certificates in `certs`.
      messages: of the last load.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "certs").mkdir()
        self.issuer = Issuer(directory / "certs")
        self.messages: list[str] = []
        leaf = self.issuer.issue("default.example.org")
        self.issuer.write(leaf, "../default.crt", "../default.key")

    def load(self, *servers: str, mail: str = "", main: str = "") -> Configuration:
        """Read a configuration with these servers.

        Raises:
          ConfigErrors: it cannot be used.
        """
        blocks = "\n".join(
            f"server {{ listen 127.0.0.1:{1000 + number} ssl; protocol imap; "
            f"server_name mail.example.org; {server} }}"
            for number, server in enumerate(servers)
        )
        (self.directory / "main").write_text(
            f"pid {os.devnull}; {main}\nevents {{}}\n"
            f"mail {{\nauth_http 127.0.0.1:9; {mail}\n{blocks}\n}}\n"
        )
        prefix = f"{self.directory}/"
        loader = Loader(prefix=prefix, path=f"{prefix}main", name="mailproxy")
        try:
            configuration = loader.load()
        except ConfigErrors as errors:
            self._keep(list(errors.messages))
            raise
        self._keep(list(configuration.messages))
        return configuration

    def _keep(self, messages: list[ConfigError]) -> None:
        self.messages = [
            f"[{each.level}] {each}".replace(f"{self.directory}/", "")
            for each in messages
        ]

    def serve(self, directives: str) -> SslSettings:
        """The TLS settings of one server."""
        (server,) = self.load(directives).servers
        return server.ssl

    def fails(self, directives: str) -> list[str]:
        """What is said of a server that cannot be served."""
        with pytest.raises(ConfigErrors):
            self.load(directives)
        return self.messages

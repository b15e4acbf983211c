"""Functions of OpenSSL that nginx uses and the `ssl` module does not offer.

This package is the one place that calls OpenSSL by ctypes, and only the OpenSSL that
`ssl` itself is linked with. What `ssl` and `cryptography` can do in nginx's way is left
to them. The rest is here: nginx's texts for OpenSSL's errors, engines and stores,
session caches and ticket keys, decisions during a handshake (ALPN, certificates of
clients), lists of groups, raw commands, and names as OpenSSL prints them.

`context_builder` makes contexts as nginx does, with nginx's error texts; the other
functions describe a handshake. What `ssl` offers is not repeated here: `version()`,
`cipher()` and `selected_alpn_protocol()` of an `ssl.SSLSocket` work as usual.

    headers/         the functions of OpenSSL that are called, and its numbers
    library.py       the layout of the objects of `ssl`; can OpenSSL be called?
    exceptions.py    the exceptions for its errors
    errors.py        OpenSSL's errors in nginx's words
    options.py       the options that nginx sets
    callbacks.py     functions that OpenSSL calls during a handshake
    material.py      certificates, keys and other files -> OpenSSL's objects
    contexts.py      ContextBuilder
    clients.py       ClientBuilder: TLS of this end as a client
    peers.py         who the peer is, and what was agreed with it
    certificates.py  the contents of certificates

certificates by name, and their renewal:

    pairs.py         a certificate with its key, as a value
    pem_files.py     the contents of PEM files
    folder.py        directories of certificates: what belongs together
    names.py         which certificates a name has
    variable_files.py  certificates in files for each name
    identities.py    pairs as OpenSSL has them
    choice.py        which certificate a client gets
    by_name.py       the functions that OpenSSL calls for it
    notes.py         what these have to say

and for Pythons that carry OpenSSL inside, so that its functions cannot be called:

    portable.py      PortableBuilder: contexts made with `ssl` alone
    portable_clients.py  PortableClientBuilder
    portable_files.py  the files for it
    plain.py         these contexts, their connections
    hello.py         what a client says before anything is encrypted
"""

from mailproxy.net.openssl.builder import client_builder, context_builder
from mailproxy.net.openssl.clients import (
    ClientBuilder,
    ClientSession,
    check_chain,
    hide_name,
    resumable_session,
    resume,
    trust_system,
)
from mailproxy.net.openssl.contexts import ContextBuilder
from mailproxy.net.openssl.errors import error_text, is_peers_fault
from mailproxy.net.openssl.exceptions import OpenSSLError, PrivateKeyError
from mailproxy.net.openssl.hello import MAX_HELLO, Hello, read_hello
from mailproxy.net.openssl.library import (
    NeedsOpenSSLError,
    ctx_of,
    unreachable,
    unsupported,
)
from mailproxy.net.openssl.material import use_engine
from mailproxy.net.openssl.pairs import Leaf, Pair
from mailproxy.net.openssl.peers import (
    UNTRUSTED,
    PeerCertificate,
    ServerCertificate,
    handshake_notes,
    key_digest,
    peer_certificate,
    remove_session,
    say_goodbye,
    server_certificate,
    server_name,
    verify_result,
)
from mailproxy.net.openssl.plain import (
    ALERT,
    LACKING,
    PortableContext,
    PortableSocket,
    refusal,
)

__all__ = [
    "ALERT",
    "LACKING",
    "MAX_HELLO",
    "UNTRUSTED",
    "ClientBuilder",
    "ClientSession",
    "ContextBuilder",
    "Hello",
    "Leaf",
    "NeedsOpenSSLError",
    "OpenSSLError",
    "Pair",
    "PeerCertificate",
    "PortableContext",
    "PortableSocket",
    "PrivateKeyError",
    "ServerCertificate",
    "Validity",
    "check_chain",
    "client_builder",
    "context_builder",
    "ctx_of",
    "error_text",
    "handshake_notes",
    "hide_name",
    "is_peers_fault",
    "key_digest",
    "peer_certificate",
    "read_hello",
    "refusal",
    "remove_session",
    "resumable_session",
    "resume",
    "say_goodbye",
    "server_certificate",
    "server_name",
    "trust_system",
    "unreachable",
    "unsupported",
    "use_engine",
    "verify_result",
]

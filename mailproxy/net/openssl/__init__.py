"""What nginx asks of OpenSSL and the `ssl` module does not offer.

This package is the one place that calls OpenSSL by ctypes, and only the OpenSSL that
`ssl` itself is linked with. `context_builder` makes contexts as nginx makes them, with
nginx's texts for what goes wrong; the other functions tell about a handshake. What
`ssl` offers is not repeated here: `version()`, `cipher()` and
`selected_alpn_protocol()` of an `ssl.SSLSocket` work as always.

    library.py       the functions of OpenSSL, the layout of the objects of `ssl`
    errors.py        OpenSSL's errors in nginx's words
    options.py       the options that nginx sets
    callbacks.py     what OpenSSL calls during a handshake
    material.py      certificates, keys and other files -> OpenSSL's objects
    contexts.py      ContextBuilder
    peers.py         who the peer is, and what was agreed with it

and for Pythons that carry OpenSSL inside, so that its functions cannot be called:

    portable.py      PortableBuilder: contexts made with `ssl` alone
    plain.py         these contexts, their connections
    hello.py         what a client says before anything is encrypted
    certificates.py  what certificates say
"""

from mailproxy.net.openssl.builder import context_builder
from mailproxy.net.openssl.contexts import ContextBuilder
from mailproxy.net.openssl.errors import OpenSSLError, error_level, error_text
from mailproxy.net.openssl.hello import MAX_HELLO, Hello, read_hello
from mailproxy.net.openssl.library import (
    NeedsOpenSSLError,
    PrivateKeyError,
    unreachable,
    unsupported,
)
from mailproxy.net.openssl.material import Validity, shown, use_engine
from mailproxy.net.openssl.peers import (
    PeerCertificate,
    ServerCertificate,
    peer_certificate,
    remove_session,
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
    "ContextBuilder",
    "Hello",
    "NeedsOpenSSLError",
    "OpenSSLError",
    "PeerCertificate",
    "PortableContext",
    "PortableSocket",
    "PrivateKeyError",
    "ServerCertificate",
    "Validity",
    "context_builder",
    "error_level",
    "error_text",
    "peer_certificate",
    "read_hello",
    "refusal",
    "remove_session",
    "server_certificate",
    "server_name",
    "shown",
    "unreachable",
    "unsupported",
    "use_engine",
    "verify_result",
]

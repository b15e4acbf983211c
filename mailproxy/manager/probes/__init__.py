"""Probes: whether one backend works, as a session would find out.

`probe`  one probe, from connect to goodbye
`peer`   the connection: lines within bounds, and what is said when it fails
`tls`    TLS on a stream of trio's
`talk`   what every protocol can be asked; `imap`, `pop3`, `smtp`: how
`expectation`  what a `match` block wants
"""

"""A mail proxy for IMAP, POP3 and SMTP that runs nginx mail configurations.

Four rooms, each importing only from those to its right:

    cli  ->  process  ->  mail  ->  net, conf

`conf`     text -> a validated tree of directives -> frozen settings
`net`      bytes and sockets: the engine, lines, the relay, TLS, PROXY headers, DNS
`mail`     one file per nginx mail module: its directives and what they do
`process`  master and workers: signals, reload, one nursery per listener

`log` and `errors` are open to all rooms.
"""

__version__ = "0.1.0"

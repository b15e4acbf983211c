"""The SMTP server of the demo, which delivers every letter to the mailbox."""

import base64

from mailproxy.demo.mailbox import PASSWORD, USER, Mailbox
from mailproxy.net.lines import LineStream

FEATURES = (
    b"250-demo.example.com\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-AUTH PLAIN LOGIN\r\n"
    b"250 XCLIENT NAME ADDR PORT PROTO HELO LOGIN\r\n"
)


async def smtp_session(client: LineStream, mailbox: Mailbox) -> None:
    """Serve one client of the SMTP server (RFC 5321, and Postfix's XCLIENT)."""
    sender, recipients = b"", 0
    await client.send(b"220 demo.example.com ESMTP\r\n")
    while True:
        name, _, argument = (await client.read_line()).rstrip(b"\r\n").partition(b" ")
        match name.upper():
            case b"EHLO":
                answer = FEATURES
            case b"HELO":
                answer = b"250 demo.example.com\r\n"
            case b"XCLIENT":
                sender, recipients = b"", 0
                answer = b"220 demo.example.com ESMTP\r\n"
            case b"AUTH":
                answer = await authenticate(client, argument)
            case b"MAIL":
                sender, recipients = argument, 0
                answer = b"250 2.1.0 OK\r\n"
            case b"RCPT" if sender:
                recipients += 1
                answer = b"250 2.1.5 OK\r\n"
            case b"DATA" if recipients:
                await client.send(b"354 end with a dot\r\n")
                await mailbox.deliver(await read_letter(client))
                sender, recipients = b"", 0
                answer = b"250 2.0.0 it is in the mailbox\r\n"
            case b"RSET":
                sender, recipients = b"", 0
                answer = b"250 OK\r\n"
            case b"NOOP":
                answer = b"250 OK\r\n"
            case b"QUIT":
                await client.send(b"221 see you\r\n")
                return
            case b"RCPT" | b"DATA":
                answer = b"503 5.5.1 MAIL and RCPT first\r\n"
            case _:
                answer = b"502 5.5.1 the demo does not know this command\r\n"
        await client.send(answer)


async def authenticate(client: LineStream, argument: bytes) -> bytes:
    """Execute AUTH PLAIN or AUTH LOGIN; returns the answer to the client."""

    async def ask(prompt: bytes) -> bytes:
        await client.send(b"334 %s\r\n" % base64.b64encode(prompt))
        return base64.b64decode((await client.read_line()).strip())

    mechanism, _, initial = argument.partition(b" ")
    if mechanism.upper() == b"PLAIN":
        said = base64.b64decode(initial) if initial else await ask(b"")
        login = said.split(b"\0")[1:]
    elif mechanism.upper() == b"LOGIN":
        user = base64.b64decode(initial) if initial else await ask(b"Username:")
        login = [user, await ask(b"Password:")]
    else:
        return b"504 5.5.4 PLAIN or LOGIN\r\n"
    if login == [USER, PASSWORD]:
        return b"235 2.7.0 OK\r\n"
    return b"535 5.7.8 wrong password\r\n"


async def read_letter(client: LineStream) -> bytes:
    """Read the lines after DATA, without the dots that the client added to them."""
    lines = []
    while (line := await client.read_line()) != b".\r\n":
        lines.append(line.removeprefix(b"."))
    return b"".join(lines)

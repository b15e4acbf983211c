"""The POP3 server of the demo: RFC 1939 with CAPA."""

from mailproxy.demo.mailbox import PASSWORD, USER, Mailbox
from mailproxy.net.lines import LineStream

CAPABILITIES = b"+OK\r\nUSER\r\nTOP\r\nUIDL\r\nPIPELINING\r\n.\r\n"


def multi_line(data: bytes) -> bytes:
    """Format a multi-line answer, with dots at the start of a line doubled."""
    stuffed = b"\r\n" + data.replace(b"\r\n.", b"\r\n..")
    return b"+OK%s%s.\r\n" % (stuffed, b"" if stuffed.endswith(b"\r\n") else b"\r\n")


async def pop3_session(client: LineStream, mailbox: Mailbox) -> None:
    """Serve one client of the POP3 server."""
    user = b""
    await client.send(b"+OK the demo's POP3 server\r\n")
    while True:  # AUTHORIZATION
        name, _, argument = (await client.read_line()).rstrip(b"\r\n").partition(b" ")
        match name.upper():
            case b"CAPA":
                await client.send(CAPABILITIES)
            case b"USER":
                user = argument
                await client.send(b"+OK\r\n")
            case b"PASS" if (user, argument) == (USER, PASSWORD):
                await client.send(b"+OK logged in\r\n")
                break
            case b"PASS":
                await client.send(b"-ERR wrong password\r\n")
            case b"QUIT":
                await client.send(b"+OK see you\r\n")
                return
            case _:
                await client.send(b"-ERR log in first\r\n")
    await transact(client, mailbox)


async def transact(client: LineStream, mailbox: Mailbox) -> None:
    """Serve a client in the TRANSACTION state, and the UPDATE state after QUIT."""
    messages = dict(enumerate(mailbox.messages, start=1))
    gone: set[int] = set()
    while True:
        name, *words = (await client.read_line()).upper().split() or [b""]
        number = int(words[0]) if words and words[0].isdigit() else 0
        left = {key: value for key, value in messages.items() if value.uid not in gone}
        match name:
            case b"CAPA":
                answer = CAPABILITIES
            case b"STAT":
                size = sum(len(message.data) for message in left.values())
                answer = b"+OK %d %d\r\n" % (len(left), size)
            case b"LIST" if not words:
                sizes = (
                    b"%d %d\r\n" % (key, len(value.data)) for key, value in left.items()
                )
                answer = multi_line(b"".join(sizes))
            case b"UIDL" if not words:
                uids = (b"%d %d\r\n" % (key, value.uid) for key, value in left.items())
                answer = multi_line(b"".join(uids))
            case b"NOOP":
                answer = b"+OK\r\n"
            case b"RSET":
                gone.clear()
                answer = b"+OK\r\n"
            case b"QUIT":
                mailbox.remove(gone)
                await client.send(b"+OK see you\r\n")
                return
            case _ if number not in left:
                answer = b"-ERR no such letter or command\r\n"
            case b"LIST":
                answer = b"+OK %d %d\r\n" % (number, len(left[number].data))
            case b"UIDL":
                answer = b"+OK %d %d\r\n" % (number, left[number].uid)
            case b"RETR":
                answer = multi_line(left[number].data)
            case b"TOP":
                lines_of_text = left[number].text.split(b"\r\n")[: int(words[1])]
                answer = multi_line(left[number].header + b"\r\n".join(lines_of_text))
            case b"DELE":
                gone.add(left[number].uid)
                answer = b"+OK\r\n"
            case _:
                answer = b"-ERR the demo does not know this command\r\n"
        await client.send(answer)

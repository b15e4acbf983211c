"""The IMAP server of the demo: RFC 3501 and IDLE, as far as mail readers need them."""

import re
import time
from collections.abc import Iterator

import trio

from mailproxy.demo.mailbox import PASSWORD, USER, DemoMessage, Mailbox
from mailproxy.net.lines import LineStream

CAPABILITIES = b"IMAP4rev1 LITERAL+ IDLE"
FLAGS = b"(\\Answered \\Flagged \\Deleted \\Seen \\Draft)"

LITERAL = re.compile(rb"\{(\d+)(\+?)\}\r?\n\Z")
WORD = re.compile(
    rb'"((?:[^"\\]|\\.)*)"|(\((?:[^()]|\([^()]*\))*\)|[^ ()\[]+\[[^]]*\]\S*|[^ ]+)',
    re.DOTALL,
)
ITEM = re.compile(rb"([A-Z0-9.]+)(?:\[([^][]*)\])?(?:<(\d+)\.(\d+)>)?")


async def read_command(client: LineStream) -> list[bytes]:
    """Read the words of a command: strings without quotes, literals inlined, lists whole."""
    line = await client.read_line()
    while match := LITERAL.search(line):
        if not match[2]:
            await client.send(b"+ go on\r\n")
        literal = await client.read_exactly(int(match[1]))
        quoted = re.sub(rb'(["\\])', rb"\\\1", literal)
        line = line[: match.start()] + b'"%s"' % quoted + await client.read_line()
    return [
        word[2] or re.sub(rb"\\(.)", rb"\1", word[1])
        for word in WORD.finditer(line.rstrip(b"\r\n"))
    ]


class ImapSession:
    """A session of the IMAP server."""

    def __init__(self, client: LineStream, mailbox: Mailbox) -> None:
        self.client = client
        self.mailbox = mailbox
        self.view: list[DemoMessage] = []
        self.authenticated = False
        self.selected = False

    async def run(self) -> None:
        """Greet, then answer commands until LOGOUT."""
        await self.client.send(
            b"* OK [CAPABILITY %s] the demo's IMAP server\r\n" % CAPABILITIES
        )
        while True:
            tag, *words = await read_command(self.client) or [b"*"]
            name = words[0].upper() if words else b""
            if name == b"LOGOUT":
                await self.client.send(b"* BYE see you\r\n%s OK LOGOUT\r\n" % tag)
                return
            try:
                await self.client.send(await self.answer(tag, name, words[1:]))
            except (IndexError, ValueError) as error:
                reason = str(error).encode() or b"arguments"
                await self.client.send(b"%s BAD %s\r\n" % (tag, reason))

    async def answer(self, tag: bytes, name: bytes, words: list[bytes]) -> bytes:
        """Execute a command and return everything to be sent for it."""
        done = b"%s OK %s\r\n" % (tag, name)
        if name == b"CAPABILITY":
            return b"* CAPABILITY %s\r\n" % CAPABILITIES + done
        if name == b"NOOP":
            return self.news() + done
        if name == b"LOGIN":
            self.authenticated = (words[0], words[1]) == (USER, PASSWORD)
            return done if self.authenticated else b"%s NO wrong password\r\n" % tag
        if not self.authenticated:
            return b"%s BAD log in first\r\n" % tag
        if name in (b"LIST", b"LSUB"):
            return b'* %s () "/" INBOX\r\n' % name + done
        if name in (b"SELECT", b"EXAMINE"):
            return self.select(words[0]) + done
        if name == b"STATUS":
            return self.status(words[1]) + done
        if not self.selected:
            return b"%s BAD select a mailbox first\r\n" % tag
        if name == b"IDLE":
            await self.idle()
            return self.news() + done
        if name == b"EXPUNGE":
            self.expunge()
            return self.news() + done
        if name == b"CLOSE":
            self.expunge()
            self.selected = False
            return done
        by_uid = name == b"UID"
        if by_uid:
            name, *words = words[0].upper(), *words[1:]
        if name == b"FETCH":
            return self.fetch(words, by_uid) + done
        if name == b"STORE":
            return self.store(words, by_uid) + done
        if name == b"SEARCH":
            return self.search(words, by_uid) + done
        return b"%s BAD the demo does not know this command\r\n" % tag

    def select(self, name: bytes) -> bytes:
        """Answer SELECT and EXAMINE; INBOX is the only mailbox."""
        if name.upper() != b"INBOX":
            raise ValueError("the demo has only an INBOX")
        self.selected = True
        self.view = list(self.mailbox.messages)
        return (
            b"* FLAGS %s\r\n* %d EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY 1] valid\r\n"
            % (
                FLAGS,
                len(self.view),
            )
        )

    def status(self, items: bytes) -> bytes:
        """Answer STATUS INBOX (MESSAGES UIDNEXT ...)."""
        messages = self.mailbox.messages
        values = {
            b"MESSAGES": len(messages),
            b"RECENT": 0,
            b"UIDNEXT": max((message.uid for message in messages), default=0) + 1,
            b"UIDVALIDITY": 1,
            b"UNSEEN": sum("Seen" not in message.flags for message in messages),
        }
        wanted = items.strip(b"()").upper().split()
        pairs = (b"%s %d" % (item, values[item]) for item in wanted if item in values)
        return b"* STATUS INBOX (%s)\r\n" % b" ".join(pairs)

    def news(self) -> bytes:
        """Format what has changed since the client was last told."""
        if not self.selected:
            return b""
        lines, now = [], self.mailbox.messages
        for message in [old for old in self.view if old not in now]:
            lines.append(b"* %d EXPUNGE\r\n" % (self.view.index(message) + 1))
            self.view.remove(message)
        if len(now) > len(self.view):
            lines.append(b"* %d EXISTS\r\n" % len(now))
        self.view = list(now)
        return b"".join(lines)

    async def idle(self) -> None:
        """Announce letters as they arrive, until DONE (IDLE, RFC 2177)."""

        async def tell() -> None:
            while True:
                async with self.mailbox.arrival:
                    await self.mailbox.arrival.wait()
                await self.client.send(self.news())

        await self.client.send(b"+ idling\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            await self.client.read_line()
            nursery.cancel_scope.cancel()

    def chosen(self, numbers: bytes, by_uid: bool) -> Iterator[tuple[int, DemoMessage]]:
        """Yield the letters of a sequence set such as 1:3,7,9:*, with their numbers."""
        last = (
            max((message.uid for message in self.view), default=0)
            if by_uid
            else len(self.view)
        )
        wanted: set[int] = set()
        for part in numbers.decode().replace("*", str(last)).split(","):
            first, _, end = part.partition(":")
            low, high = sorted((int(first), int(end or first)))
            wanted.update(range(low, min(high, last) + 1))
        for number, message in enumerate(self.view, start=1):
            if (message.uid if by_uid else number) in wanted:
                yield number, message

    def fetch(self, words: list[bytes], by_uid: bool) -> bytes:
        """Answer FETCH and UID FETCH."""
        items = b" ".join(words[1:]).upper()
        if items.startswith(b"("):
            items = items[1:-1]
        if by_uid and b"UID" not in items.split():
            items = b"UID " + items
        chosen = self.chosen(words[0], by_uid)
        return b"".join(
            answer_to_fetch(number, message, items) for number, message in chosen
        )

    def store(self, words: list[bytes], by_uid: bool) -> bytes:
        """Answer STORE and UID STORE, which can store only flags."""
        flags = set(words[2].decode().strip("()").replace("\\", "").split())
        lines = []
        for number, message in self.chosen(words[0], by_uid):
            if words[1].startswith(b"+"):
                message.flags |= flags
            elif words[1].startswith(b"-"):
                message.flags -= flags
            else:
                message.flags = set(flags)
            items = b"UID FLAGS" if by_uid else b"FLAGS"
            lines.append(answer_to_fetch(number, message, items))
        return b"".join(lines)

    def expunge(self) -> None:
        """Delete the letters with the flag Deleted."""
        self.mailbox.remove(
            {message.uid for message in self.view if "Deleted" in message.flags}
        )

    def search(self, words: list[bytes], by_uid: bool) -> bytes:
        """Answer SEARCH and UID SEARCH for ALL, SEEN and UNSEEN."""
        wanted = {b"ALL": (True, False), b"SEEN": (True,), b"UNSEEN": (False,)}.get(
            words[-1].upper()
        )
        if wanted is None:
            raise ValueError("the demo searches for ALL, SEEN and UNSEEN")
        hits = [
            message.uid if by_uid else number
            for number, message in enumerate(self.view, start=1)
            if ("Seen" in message.flags) in wanted
        ]
        return b"* SEARCH%s\r\n" % b"".join(b" %d" % hit for hit in hits)


def answer_to_fetch(number: int, message: DemoMessage, items: bytes) -> bytes:
    """Format one untagged FETCH line with its literals."""
    return b"* %d FETCH (%s)\r\n" % (number, b" ".join(fetched(message, items)))


def fetched(message: DemoMessage, items: bytes) -> Iterator[bytes]:
    """Yield the items of one FETCH answer."""
    for match in ITEM.finditer(items):
        name, section = match[1], match[2]
        if name == b"FLAGS":
            flags = " ".join(f"\\{flag}" for flag in sorted(message.flags))
            yield b"FLAGS (%s)" % flags.encode()
        elif name == b"UID":
            yield b"UID %d" % message.uid
        elif name == b"RFC822.SIZE":
            yield b"RFC822.SIZE %d" % len(message.data)
        elif name == b"INTERNALDATE":
            when = time.strftime(
                "%d-%b-%Y %H:%M:%S +0000", time.gmtime(message.received)
            )
            yield b'INTERNALDATE "%s"' % when.encode()
        elif name in (b"RFC822", b"RFC822.HEADER", b"RFC822.TEXT"):
            part = {b"RFC822.HEADER": b"HEADER", b"RFC822.TEXT": b"TEXT"}.get(name, b"")
            yield literal(name, part_of(message, part))
        elif name in (b"BODY", b"BODY.PEEK") and section is not None:
            data, label = part_of(message, section), b"BODY[%s]" % section
            if match[3]:
                start, size = int(match[3]), int(match[4])
                data, label = data[start : start + size], label + b"<%d>" % start
            if name == b"BODY":
                message.flags.add("Seen")
            yield literal(label, data)
        else:
            raise ValueError(f"the demo does not know the item {name.decode()}")


def literal(label: bytes, data: bytes) -> bytes:
    """Format an item whose value is a literal (RFC 3501, section 4.3)."""
    return b"%s {%d}\r\n%s" % (label, len(data), data)


def part_of(message: DemoMessage, section: bytes) -> bytes:
    """The part of a letter that BODY[section] names."""
    if section == b"HEADER":
        return message.header
    if section == b"TEXT" or section == b"1":
        return message.text
    if section.startswith(b"HEADER.FIELDS ("):
        wanted = section.partition(b"(")[2].rstrip(b")").split()
        fields = re.split(rb"\r\n(?![ \t])", message.header)
        kept = [field for field in fields if field.partition(b":")[0].upper() in wanted]
        return b"".join(field + b"\r\n" for field in kept) + b"\r\n"
    if section:
        raise ValueError("the demo does not take letters apart")
    return message.data

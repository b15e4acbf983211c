"""Line ends that two servers read differently, so that one mail becomes two.

mailproxy is no third opinion (CVE-2023-51764 and its likes): what is relayed is
relayed octet for octet, in the order of its coming. Before the relay, where commands
are read and said again, a lone CR is refused, and lines that are said again end in
CR LF and hold neither.
"""

import itertools

import pytest
import trio

from tests.play import Stage, play
from tests.security.acts import plain
from tests.security.world import World, world

ENDS = [
    b"\n.\n",
    b"\r.\r",
    b"\r\n.\n",
    b"\n.\r\n",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\r\n\0.\r\n",
]
ENDS += [b"\r\n.\r\n", b".\r\n", b"\r\r\n.\r\r\n", b"\r\n..\r\n", b"\n\r\n.\r\n\r"]
SMUGGLED = b"MAIL FROM:<evil@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nevil\r\n.\r\n"
BAD = "500 5.5.1 Invalid command"


async def enter(here: World) -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """A session that is relayed; both ends of it."""
    client = await here.connect()
    await client.read_until(b"ready\r\n")
    login = b"AUTH PLAIN %s\r\n" % plain("u", "p").encode()
    backend = await here.log_in(client, login)
    await backend.send(b"220 hi\r\n")
    await backend.read_until(b"HELO mx.test\r\n")
    await backend.send(b"250 hi\r\n")
    await client.expect(b"235 2.0.0 OK\r\n")
    return client.stream, backend.stream


async def receive(stream: trio.abc.Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more
        data += more
    return data


async def test_mails_pass_octet_for_octet() -> None:
    async with world("protocol smtp; xclient off; server_name mx.test;") as here:
        client, backend = await enter(here)
        for end in ENDS:
            mail = b"DATA\r\nSubject: x\r\n\r\nx" + end + SMUGGLED
            await client.send_all(mail)
            assert await receive(backend, len(mail)) == mail
            answer = b"250 x" + end
            await backend.send_all(answer)
            assert await receive(client, len(answer)) == answer


async def test_dots_over_borders_of_segments_pass() -> None:
    """Every way to cut the end of a mail in pieces."""
    async with world("protocol smtp; xclient off; server_name mx.test;") as here:
        client, backend = await enter(here)
        for end in (b"x\r\n.\r\n", b"x\n.\n", b"x\r.\r"):
            for size in (1, 2):
                for places in itertools.combinations(range(1, len(end)), size):
                    pieces = [0, *places, len(end)]
                    for start, stop in itertools.pairwise(pieces):
                        await client.send_all(end[start:stop])
                        assert await receive(backend, stop - start) == end[start:stop]


async def test_what_is_said_before_its_turn_passes_too() -> None:
    """Behind the login in one segment: read by us, and still not touched."""
    tail = b"MAIL FROM:<a@b>\nRCPT TO:<c@d>\r\r\nDATA\r\nx\n.\nQUIT\r\n\0\r"
    async with world("protocol smtp; xclient off; server_name mx.test;") as here:
        client = await here.connect()
        login = b"AUTH PLAIN %s\r\n" % plain("u", "p").encode()
        backend = await here.log_in(client, login + tail)
        await backend.send(b"220 hi\r\n")
        await backend.read_until(b"HELO mx.test\r\n")
        await backend.send(b"250 hi\r\n")
        await backend.expect(tail)


def smtp(script: str, directives: str = "smtp_auth none; xclient off;") -> Stage:
    return play(f"S: 220 mx.test ESMTP ready\n{script}", f"protocol smtp; {directives}")


@pytest.mark.parametrize(
    "line",
    [
        *("NOOP␍NOOP", "NOOP␍", "␍NOOP", "NOOP␍␍", "NO␍OP"),
        *(
            "EHLO me␍MAIL FROM:<a@b>",
            "MAIL FROM:<a@b>␍RCPT TO:<c@d>",
            "MAIL FROM:<a@b>␍",
        ),
        *("AUTH PLAIN␍", "RSET␍.␍", "STARTTLS␍"),
    ],
)
def test_a_lone_cr_is_refused(line: str) -> None:
    """Some take it for the end of a line."""
    smtp(f"C: {line}\nS: {BAD}\nC: NOOP\nS: 250 2.0.0 OK")


@pytest.mark.parametrize("answer", ["AHUAcA==␍", "␍AHUAcA==", "AHUA␍cA=="])
def test_a_lone_cr_in_an_answer_is_refused(answer: str) -> None:
    smtp(f"C: AUTH PLAIN\nS: 334␠\nC: {answer}\nS: {BAD}", "")


@pytest.mark.parametrize("end", ["⏎", "␊"])
def test_what_is_said_again_has_proper_ends(end: str) -> None:
    """A lone LF ends a line of a client, as in nginx; the backend gets CR LF."""
    smtp(
        f"""
        C: MAIL FROM:<a@b>{end}
        S: 250 2.0.0 OK
        C: RCPT TO:<c@d>{end}RCPT TO:<e@f>{end}DATA{end}…
        Q: ⟨any⟩
        A: OK
        B: 220 hi
        P: HELO mx.test
        B: 250 hi
        P: MAIL FROM:<a@b>
        B: 250 sender
        P: RCPT TO:<c@d>
        B: 250 recipient
        S: 250 recipient
        P: RCPT TO:<e@f>{end}
        P: DATA{end}
        """
    )


@pytest.mark.parametrize(
    "command", ["DATA", "BDAT 5 LAST", "XCLIENT ADDR=1.2.3.4", "."]
)
def test_mail_before_the_login_is_no_mail(command: str) -> None:
    smtp(f"C: {command}\nS: {BAD}", "")

"""SASL responses as nginx and Angie read them."""

import base64
import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.mail.commands import BadCommand
from mailproxy.mail.sasl import clients as sasl
from mailproxy.mail.sasl.backends import format_plain
from mailproxy.mail.sasl.clients import UserAndSecret

Parse = Callable[[bytes], object]


def encoded(text: bytes) -> bytes:
    return base64.b64encode(text)


def event(parse: Parse, response: bytes) -> str:
    """What the log says of a response that cannot be read."""
    with pytest.raises(BadCommand) as caught:
        parse(response)
    assert not caught.value.counted
    return caught.value.event


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        (b"", b""),
        (b"dQ==", b"u"),
        (b"dQ=", b"u"),
        (b"dQ", b"u"),
        (b"dXY", b"uv"),
        (b"AHUAcA======zzz", b"\0u\0p"),
        (b"dXV1=\x00*", b"uuu"),
        (b"=", b""),
        (b"//++", b"\xff\xff\xbe"),
    ],
)
def test_base64_ends_at_the_first_equals_sign(text: bytes, decoded: bytes) -> None:
    assert sasl.decode(text, "PLAIN") == decoded


@pytest.mark.parametrize(
    "text", [b"d", b"dXV1d", b"*", b"dQ-", b"d Q", b"dQ\n", b"dXV\x00", b"-_", b"\xff"]
)
def test_bad_base64_is_refused(text: bytes) -> None:
    assert (
        event(lambda t: sasl.decode(t, "X"), text)
        == "client sent invalid base64 encoding in AUTH X command"
    )


@given(st.binary())
def test_base64_of_anything_decodes_to_it(data: bytes) -> None:
    assert sasl.decode(encoded(data), "X") == data
    assert sasl.decode(encoded(data).rstrip(b"="), "X") == data


@pytest.mark.parametrize(
    ("message", "result"),
    [
        (b"\0u\0p", (b"u", b"p")),
        (b"authz\0u\0p", (b"u", b"p")),
        (b"\0\0", (b"", b"")),
        (b"\0u\0", (b"u", b"")),
        (b"\0u\0p\0q", (b"u", b"p\0q")),
    ],
)
def test_plain(message: bytes, result: tuple[bytes, bytes]) -> None:
    assert sasl.parse_plain(encoded(message)) == UserAndSecret(*result)


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (b"", "login"),
        (b"u", "login"),
        (b"u\0", "login"),
        (b"\0", "login"),
        (b"\0u", "password"),
    ],
)
def test_plain_that_is_not_well_formed(message: bytes, what: str) -> None:
    text = event(sasl.parse_plain, encoded(message))
    assert text == f"client sent invalid {what} in AUTH PLAIN command"


@pytest.mark.parametrize(
    ("message", "result"),
    [
        (b"u d", (b"u", b"d")),
        (b"u d e", (b"u", b"d e")),
        (b" d", (b"", b"d")),
        (b"u ", (b"u", b"")),
        (b"ud", (b"", b"")),
        (b"", (b"", b"")),
    ],
)
def test_cram_md5_is_split_at_the_first_space(
    message: bytes, result: tuple[bytes, bytes]
) -> None:
    assert sasl.split_cram_md5(encoded(message)) == UserAndSecret(*result)


@pytest.mark.parametrize(
    ("message", "result"),
    [
        (b"user=u\x01auth=Bearer t\x01\x01", (b"u", b"t")),
        (b"USER=u\x01Auth=bearer t\x01\x01", (b"u", b"t")),
        (b"user=\x01auth=Bearer \x01\x01", (b"", b"")),
        (b"user=a,b=c\x01auth=Bearer x y=\x01\x01", (b"a,b=c", b"x y=")),
    ],
)
def test_xoauth2(message: bytes, result: tuple[bytes, bytes]) -> None:
    assert sasl.parse_xoauth2(encoded(message)) == UserAndSecret(*result)


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (b"", "login"),
        (b"user=u", "login"),
        (b"auth=Bearer t\x01user=u\x01\x01", "login"),
        (b"user=u\x01", "token"),
        (b"user=u\x01auth=Bearer t", "token"),
        (b"user=u\x01auth=Bearer t\x01", "token"),
        (b"user=u\x01auth=Basic t\x01\x01", "token"),
        (b"user=u\x01host=h\x01auth=Bearer t\x01\x01", "token"),
    ],
)
def test_xoauth2_that_is_not_well_formed(message: bytes, what: str) -> None:
    text = event(sasl.parse_xoauth2, encoded(message))
    assert text == f"client sent invalid {what} in AUTH XOAUTH2 command"


@pytest.mark.parametrize(
    ("message", "result"),
    [
        (b"n,a=u,\x01auth=Bearer t\x01\x01", (b"u", b"t")),
        (b"N,A=u,\x01AUTH=BEARER t\x01\x01", (b"u", b"t")),
        (b"n,a=u,\x01host=h\x01port=143\x01auth=Bearer t\x01\x01", (b"u", b"t")),
        (b"n,a=a=2Cb=3Dc,\x01auth=Bearer t=\x01\x01", (b"a,b=c", b"t=")),
        (b"n,a=a=3D2C,\x01auth=Bearer t\x01\x01", (b"a=2C", b"t")),
        (b"n,a=a\0b,\x01auth=Bearer t\x01\x01", (b"a\0b", b"t")),
        (b"p=x,y,a=u,z\x01auth=Bearer t\x01", (b"u", b"t")),
    ],
)
def test_oauthbearer(message: bytes, result: tuple[bytes, bytes]) -> None:
    assert sasl.parse_oauthbearer(encoded(message)) == UserAndSecret(*result)


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (b"", "login"),
        (b"n,,\x01auth=Bearer t\x01\x01", "login"),
        (b"n,a=,\x01auth=Bearer t\x01\x01", "login"),
        (b"n,a=u\x01auth=Bearer t\x01\x01", "login"),
        (b"a=u,\x01auth=Bearer t\x01\x01", "login"),
        (b"n,a=a=b,\x01auth=Bearer t\x01\x01", "login"),
        (b"n,a=a=2,\x01auth=Bearer t\x01\x01", "login"),
        (b"n,\x01a=u,\x01auth=Bearer t\x01\x01", "login"),
        (b"n,a=u,", "token"),
        (b"n,a=u,\x01\x01", "token"),
        (b"n,a=u,\x01auth=Bearer \x01\x01", "token"),
        (b"n,a=u,\x01auth=Bearer t", "token"),
        (b"n,a=u,\x01auth=Basic t\x01\x01", "token"),
    ],
)
def test_oauthbearer_that_is_not_well_formed(message: bytes, what: str) -> None:
    text = event(sasl.parse_oauthbearer, encoded(message))
    assert text == f"client sent invalid {what} in AUTH OAUTHBEARER command"


PARSERS: list[Parse] = [
    sasl.parse_plain,
    sasl.split_cram_md5,
    sasl.parse_xoauth2,
    sasl.parse_oauthbearer,
]


@given(st.binary(), st.sampled_from(PARSERS))
def test_any_octets_are_read_or_refused(data: bytes, parse: Parse) -> None:
    for response in (data, encoded(data)):
        with contextlib.suppress(BadCommand):
            parse(response)


NAMES = st.binary(min_size=1).filter(lambda name: b"\x01" not in name)


@given(NAMES, NAMES)
def test_oauthbearer_of_any_user_and_token(user: bytes, token: bytes) -> None:
    name = user.replace(b"=", b"=3D").replace(b",", b"=2C")
    message = b"n,a=%s,\x01host=h\x01auth=Bearer %s\x01\x01" % (name, token)
    assert sasl.parse_oauthbearer(encoded(message)) == UserAndSecret(user, token)
    message = b"user=%s\x01auth=Bearer %s\x01\x01" % (user, token)
    assert sasl.parse_xoauth2(encoded(message)) == UserAndSecret(user, token)


PLAIN = st.binary().filter(lambda text: b"\0" not in text)


@given(PLAIN, PLAIN)
def test_what_is_said_to_backends_is_plain(user: bytes, password: bytes) -> None:
    assert sasl.parse_plain(format_plain(user, password)) == UserAndSecret(
        user, password
    )


@pytest.mark.parametrize("octet", [b"\r", b"\n", b"\0"])
def test_octets_that_would_end_a_line_or_a_string_are_refused(octet: bytes) -> None:
    with pytest.raises(BadCommand, match="client sent invalid login in X command"):
        sasl.check_credentials(b"a" + octet, b"p", "X")
    with pytest.raises(BadCommand, match="client sent invalid password in X command"):
        sasl.check_credentials(b"a", octet + b"p", "X")
    sasl.check_credentials(b"\t\x7f\xff", None, "X")


def test_mechanisms_are_announced_in_one_order() -> None:
    enabled = {"oauthbearer", "none", "apop", "external", "plain"}
    assert sasl.announced(enabled) == [b"PLAIN", b"EXTERNAL", b"OAUTHBEARER"]

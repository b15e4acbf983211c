"""Words become values, or nginx's errors."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.conf import addresses, values
from mailproxy.conf.addresses import AddressError, parse_url
from mailproxy.conf.directive import Reading, Value
from mailproxy.conf.syntax import parse
from mailproxy.conf.tree import ConfigError, SourceText


def convert(value: Value[object], text: str, reading: Reading | None = None) -> object:
    """What a directive `x` with these arguments comes to."""
    [found], error = parse(SourceText("F", f"x {text};"))
    assert error is None
    return value.parse(found, reading or Reading("/p/", "/c/"))


def refusal(value: Value[object], text: str) -> str:
    with pytest.raises((ConfigError, ValueError)) as caught:
        convert(value, text)
    error = caught.value
    return error.message if isinstance(error, ConfigError) else str(error)


def test_flags_are_on_and_off_in_any_case() -> None:
    assert convert(values.flag, "On") is True
    assert convert(values.flag, "OFF") is False
    assert refusal(values.flag, "yes") == (
        'invalid value "yes" in "x" directive, it must be "on" or "off"'
    )


@pytest.mark.parametrize(
    "text", ["-1", "+1", "0x1", "1 ", "", "٣", "9223372036854775808"]
)
def test_numbers_have_digits_only(text: str) -> None:
    assert refusal(values.number, f'"{text}"') == "invalid number"


def test_numbers_are_decimal_up_to_63_bits() -> None:
    assert convert(values.number, "010") == 10
    assert convert(values.number, str(2**63 - 1)) == 2**63 - 1
    assert convert(values.number, "0" * 100 + "7") == 7


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("10", 10), ("4k", 4096), ("1M", 1 << 20), ("8K", 8192)],
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert convert(values.size, text) == size


@pytest.mark.parametrize(
    "text", ["1g", "k", "", "-1", "1kk", "1.5k", "9223372036854775807k"]
)
def test_other_sizes_are_refused(text: str) -> None:
    assert refusal(values.size, f'"{text}"') == "invalid value"


def test_offsets_have_gigabytes() -> None:
    assert convert(values.offset, "2g") == 2 << 30


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1", 1),
        ("10ms", 0.01),
        ("1h30m", 5400),
        ("1m30s500ms", 90.5),
        ("1m30", 90),
        ("1m 30s", 90),
        ("1h 30", 3630),
        ("1s ", 1),
        ("5s5", 10),
        ("1ms1", 1.001),
        ("1hs", 3600),
        ("1w1d", 691200),
    ],
)
def test_times_in_milliseconds(text: str, seconds: float) -> None:
    assert convert(values.duration, f'"{text}"') == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("1y", "1M", "30m1h", "1h1h", "500ms1s", "-1", "1.5s", "1S"),
        *("s", "m", "", " 1s", "9223372036854775807"),
    ],
)
def test_other_times_in_milliseconds_are_refused(text: str) -> None:
    assert refusal(values.duration, f'"{text}"') == "invalid value"


def test_times_in_seconds_have_years_and_months() -> None:
    year, month = 365 * 86400, 30 * 86400
    assert convert(values.seconds, "1y1M1w1d1h1m1s") == year + month + 694861
    assert convert(values.seconds, '"1s 5"') == 6
    assert refusal(values.seconds, "10ms") == "invalid value"


@given(st.integers(0, 10**12))
def test_any_time_can_be_written_in_parts(milliseconds: int) -> None:
    rest, parts = milliseconds, ""
    for unit, size in [("w", 604800000), ("d", 86400000), ("h", 3600000), ("m", 60000)]:
        count, rest = divmod(rest, size)
        parts += f"{count}{unit}" if count else ""
    parts += f"{rest // 1000}s{rest % 1000}ms"
    assert values.parse_milliseconds(parts) == milliseconds


def test_a_choice_is_made_in_any_case() -> None:
    choice = values.choice("off", "on", "only")
    assert convert(choice, "ONLY") == "only"
    assert refusal(choice, "foo") == 'invalid value "foo"'


def test_choices_add_up_and_warn_of_what_is_said_twice() -> None:
    reading = Reading()
    assert convert(values.choices("A", "b"), "a B a", reading) == {"A", "b"}
    assert [str(each) for each in reading.messages] == ['duplicate value "a" in F:1']
    assert refusal(values.choices("a"), "a login") == 'invalid value "login"'


def test_file_names_are_relative_to_prefix_or_directory() -> None:
    assert convert(values.in_prefix, "logs/x") == "/p/logs/x"
    assert convert(values.in_directory, "x.pem") == "/c/x.pem"
    assert convert(values.in_directory, "/x.pem") == "/x.pem"


# -- addresses ---------------------------------------------------------------------


def texts(text: str) -> list[str]:
    return [each.text for each in parse_url(text, listen=True).addresses]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("143", ["0.0.0.0:143"]),
        ("*:143", ["0.0.0.0:143"]),
        ("127.0.0.1:143", ["127.0.0.1:143"]),
        ("[::1]:143", ["[::1]:143"]),
        ("[::]:143", ["[::]:143"]),
        ("unix:/a", ["unix:/a"]),
        ("UNIX:a", ["unix:a"]),
        ("143-145", ["0.0.0.0:143", "0.0.0.0:144", "0.0.0.0:145"]),
        ("[::1]:1-2", ["[::1]:1", "[::1]:2"]),
        ("127.0.0.1", ["127.0.0.1:0"]),
        ("*", ["0.0.0.0:0"]),
        ("[::1]", ["[::1]:0"]),
    ],
)
def test_addresses_to_listen_on(text: str, found: list[str]) -> None:
    assert texts(text) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0", "invalid port"),
        ("70000", "invalid port"),
        ("127.0.0.1:0", "invalid port"),
        ("127.0.0.1:x", "invalid port"),
        ("127.0.0.1:8145-", "invalid port"),
        ("8145-8143", "invalid port range"),
        ("127.0.0.1:8143/x", "invalid host"),
        ("[::1", "invalid host"),
        ("[::1]x:1", "invalid host"),
        ("[::g]:1", "invalid IPv6 address"),
        (":8143", "no host"),
        ("", "no host"),
        ("unix:", "no path in the unix domain socket"),
        ("unix:" + "a" * 108, "too long path in the unix domain socket"),
        ("nohost.invalid:1", "host not found"),
        ("8145-x", "host not found"),
        ("-5", "host not found"),
    ],
)
def test_addresses_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(AddressError, match=f"^{reason}$"):
        parse_url(text, listen=True)


def test_a_url_has_a_path_and_a_default_port() -> None:
    url = parse_url("127.0.0.1/a:b?c", 80, uri=True)
    assert (url.host, url.port, url.uri) == ("127.0.0.1", 80, "/a:b?c")
    assert parse_url("127.0.0.1:81?x", 80, uri=True).uri == "?x"
    assert parse_url("[::1]:81/x", 80, uri=True).addresses[0].text == "[::1]:81"
    unix = parse_url("unix:/run/a:/x", 80, uri=True)
    assert (unix.addresses[0].sockaddr, unix.uri) == ("/run/a", "/x")


def test_names_are_looked_up_once_for_every_address() -> None:
    url = parse_url("localhost:143", listen=True)
    assert url.addresses
    assert {each.sockaddr[1] for each in url.addresses} == {143}
    assert len(set(url.addresses)) == len(url.addresses)
    assert addresses.Address(socket.AF_INET, ("127.0.0.1", 143), "127.0.0.1:143") in (
        url.addresses
    )


networks: Value[object] = Value(addresses.cidr, "")


def test_networks() -> None:
    assert convert(networks, "10.0.0.0/8") == (ipaddress.ip_network("10.0.0.0/8"),)
    assert convert(networks, "::1") == (ipaddress.ip_network("::1/128"),)
    assert convert(networks, "unix:") == ("unix:",)
    assert refusal(networks, "10.0.0.1/33") == 'host not found in x "10.0.0.1/33"'


def test_bits_of_a_host_in_a_network_are_masked_with_a_warning() -> None:
    reading = Reading()
    assert convert(networks, "10.1.1.1/8", reading) == (
        ipaddress.ip_network("10.0.0.0/8"),
    )
    assert [str(each) for each in reading.messages] == [
        "low address bits of 10.1.1.1/8 are meaningless in F:1"
    ]


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    if any(char.isalpha() or ord(char) > 127 for char in text):
        return  # it may be a name; looking up is not what is tested
    for listen, uri in [(True, False), (False, True)]:
        try:
            url = parse_url(text, 80, listen=listen, uri=uri)
        except AddressError:
            continue
        assert url.addresses

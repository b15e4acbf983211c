"""Which certificates a name has, and what is a name at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.net.openssl.names import Names, certified_name, host_name
from mailproxy.net.openssl.pairs import Leaf, Pair

NOW = datetime(2026, 11, 26, tzinfo=UTC)
DAY = timedelta(days=1)


def pair(
    file: str,
    *names: str,
    kind: str = "ECDSA",
    begins: datetime = NOW - 10 * DAY,
    ends: datetime = NOW + 80 * DAY,
) -> Pair:
    leaf = Leaf(begins=begins, ends=ends, names=names, kind=kind)
    return Pair(file, f"{file}.key", leaf, b"", (), b"")


def files(found: tuple[Pair, ...]) -> list[str]:
    return [each.file for each in found]


@pytest.mark.parametrize(
    ("sni", "name"),
    [
        (b"mail.example.org", "mail.example.org"),
        (b"MAIL.Example.ORG", "mail.example.org"),
        (b"mail.example.org.", "mail.example.org"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"a_b-c.example", "a_b-c.example"),
        (b"127.0.0.1", "127.0.0.1"),
        (None, ""),
        (b"", ""),
        (b".", ""),
        (b"..", ""),
        (b"mail.example.org..", ""),
        (b".example.org", ""),
        (b"a..b", ""),
        (b"../x", ""),
        (b"a/b", ""),
        (b"a\0b", ""),
        (b"a b", ""),
        (b"[::1]", ""),
        ("bücher.example".encode(), ""),
        (b"bu\xfccher.example", ""),
        (b"*.example.org", ""),
        (b"a" * 64, ""),
        (b".".join([b"a" * 63] * 4)[:253], ".".join(["a" * 63] * 4)[:253]),
        (b".".join([b"a" * 63] * 4)[:254], ""),
        (b"a." * 150, ""),
        (b"a\n", ""),
    ],
)
def test_only_host_names_are_names(sni: bytes | None, name: str) -> None:
    assert host_name(sni) == name


@given(st.binary(max_size=300))
def test_a_name_has_nothing_that_paths_could_be_abused_with(sni: bytes) -> None:
    name = host_name(sni)
    assert len(name) <= 253
    assert not set(name) & set("/\0*")
    assert ".." not in name
    assert not name.startswith(".")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Mail.Example.org", "mail.example.org"),
        ("*.Example.org", "*.example.org"),
        ("a.*.example.org", ""),
        ("*", ""),
        ("*.*.example.org", ""),
        ("bücher.example", ""),
        ("not a host", ""),
    ],
)
def test_names_of_certificates_may_begin_with_a_star(text: str, name: str) -> None:
    assert certified_name(text) == name


def test_a_star_is_one_label() -> None:
    names = Names([pair("w", "*.example.org"), pair("x", "x.example.org")], NOW)
    assert files(names.exact("x.example.org")) == ["x"]
    assert files(names.covering("y.example.org")) == ["w"]
    assert names.covering("a.y.example.org") == ()
    assert names.covering("example.org") == ()
    assert names.covering("localhost") == ()
    assert names.exact("y.example.org") == ()


def test_each_kind_of_key_has_its_certificate() -> None:
    names = Names([pair("r", "a", kind="RSA"), pair("e", "a"), pair("x", "b")], NOW)
    assert sorted(files(names.exact("a"))) == ["e", "r"]
    assert files(names.exact("b")) == ["x"]
    assert names.doubles == {}


@pytest.mark.parametrize(
    ("other", "used"),
    [
        (pair("other", "a", begins=NOW - 5 * DAY), "other"),  # younger
        (pair("other", "a", begins=NOW - 20 * DAY), "first"),
        (pair("other", "a", begins=NOW + DAY), "first"),  # not valid yet
        (pair("other", "a", begins=NOW - 5 * DAY, ends=NOW - DAY), "first"),
        (pair("other", "a", ends=NOW + 90 * DAY), "other"),  # as young, lasts longer
        (pair("other", "a"), "first"),  # the path decides
    ],
)
def test_of_several_the_valid_then_the_youngest_is_used(other: Pair, used: str) -> None:
    for pairs in ([pair("first", "a"), other], [other, pair("first", "a")]):
        names = Names(pairs, NOW)
        assert files(names.exact("a")) == [used]
        assert {
            (name, kind): each.file for (name, kind), each in names.doubles.items()
        } == {("a", "ECDSA"): used}
        assert files(tuple(names.used())) == [used]


def test_a_name_that_stands_twice_in_a_certificate_is_no_double() -> None:
    assert Names([pair("a", "a", "a")], NOW).doubles == {}


def test_the_default_is_the_servers_own_or_the_first_in_the_alphabet() -> None:
    names = Names([pair("b", "b.org"), pair("a", "a.org"), pair("w", "*.z.org")], NOW)
    assert names.default("b.org") == ("b.org", names.exact("b.org"))
    name, found = names.default("x.z.org")
    assert (name, files(found)) == ("x.z.org", ["w"])
    name, found = names.default("nowhere")
    assert (name, files(found)) == ("*.z.org", ["w"])
    assert Names([], NOW).default("b.org") == ("", ())

"""Groups of backends: where sessions go, and what the log says on the way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from mailproxy.mail.server import Server
from mailproxy.net.dns import Resolver
from tests.name_servers import NEVER, FakeServers, Zone, resolver_settings
from tests.play import Stage, load_server, parse

WHO = '…, login: "u", upstream: '
FAILED = "S: * BAD internal server error\nS: ⟨close⟩"
HELLO = "S: * OK IMAP4 ready\nC: a LOGIN u p\nQ: plain u p"
TO_GROUP = "A: HTTP/1.0 200 OK\nA| Auth-Status: OK\nA| Auth-Server: u\nA|"
IN = 'B: * OK\nP: a LOGIN "u" "p"\nB: a OK in\nS: a OK in'
LOG_IN = f"{HELLO}\n{TO_GROUP}\n{IN}\nC: ⟨close⟩"
THREE = "server 127.0.0.1:9143; server 127.0.0.2:9143; server 127.0.0.3:9143;"


def fresh(group: str, directives: str = "", around: str = "") -> Server:
    """A server beside a group "u", of whose members nothing is known yet."""
    around = f"upstream u {{ {group} }} {around}"
    load = load_server.__wrapped__
    return load(f"protocol imap; {directives}", around)


def answer(*headers: str) -> str:
    return "\n".join(["A: HTTP/1.0 200 OK", *(f"A| {each}" for each in headers), "A|"])


def play_all(server: Server, scripts: Sequence[str], **options: object) -> list[Stage]:
    """Play sessions one after the other, in one time.

    A script that begins with a number of seconds waits for that time first.
    """
    stages = []

    async def play() -> None:
        for script in scripts:
            first, _, rest = script.partition("\n")
            if first.isdigit():
                await trio.sleep(int(first))
                script = rest
            stages.append(Stage(server, **options))  # type: ignore[arg-type]
            await stages[-1].perform(parse(script))

    trio.run(play, clock=MockClock(autojump_threshold=0))
    return stages


def places(stages: Sequence[Stage]) -> list[str]:
    """The last part of the addresses that sessions have connected to, in order."""
    return [str(at[0])[-1] for each in stages for at in each.network.reached]


def lines(stage: Stage) -> list[str]:
    """What was logged of a session beyond its beginning, without who it was."""
    usual = ", client: 127.0.0.1, server: 127.0.0.1:1143"
    return [
        f"[{level}] {text.replace(usual, ', …')}"
        for level, text in stage.log.events
        if level != "info"
    ]


# Turns


def test_weights_decide_how_often_a_member_is_chosen() -> None:
    server = fresh(
        "server 127.0.0.1:9143 weight=5; server 127.0.0.2:9143; server 127.0.0.3:9143;"
    )
    assert places(play_all(server, [LOG_IN] * 7)) == list("1121311")


def test_several_addresses_of_a_name_are_several_members(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [(2, "127.0.0.1"), (2, "127.0.0.2")]
    monkeypatch.setattr("mailproxy.outside.addresses", lambda *_: found)
    server = fresh("server mail.test:9143; server 127.0.0.3:9143;")
    assert places(play_all(server, [LOG_IN] * 3)) == list("123")


@pytest.mark.proves("server", "drain")
@pytest.mark.parametrize("parameter", ["down", "drain"])
def test_member_that_gets_no_sessions(parameter: str) -> None:
    server = fresh(f"server 127.0.0.1:9143 {parameter}; server 127.0.0.2:9143;")
    assert places(play_all(server, [LOG_IN] * 3)) == list("222")


# Failures

REFUSED = f"[error] connect() failed (111: Connection refused) while connecting to upstream, {WHO}"
OFF = f"[warn] upstream server temporarily disabled while connecting to upstream, {WHO}"
REFUSE_ONE = f"{HELLO}\n{TO_GROUP}\nB: ⟨refused⟩\n{IN}\nC: ⟨close⟩"


def pending(server: Server, scripts: Sequence[str]) -> list[Stage]:
    """The same as `play_all`, but connections wait for what the script says."""
    stages = []

    async def play() -> None:
        for script in scripts:
            first, _, rest = script.partition("\n")
            if first.isdigit():
                await trio.sleep(int(first))
                script = rest
            stage = Stage(server)
            stage.network.pending = True
            stages.append(stage)
            await stage.perform(
                parse(script.replace("B: * OK", "B: ⟨connected⟩\nB: * OK"))
            )

    trio.run(play, clock=MockClock(autojump_threshold=0))
    return stages


@pytest.mark.proves("server", "fail_timeout=", "max_fails=")
def test_dead_member_costs_one_try_per_fail_timeout_and_not_per_login() -> None:
    server = fresh("server 127.0.0.1:9143; server 127.0.0.2:9143;")
    within = [REFUSE_ONE, *[LOG_IN] * 5, f"9\n{LOG_IN}"]
    # Its weight has to grow from 0 before its turn comes.
    later = [f"3\n{LOG_IN}", LOG_IN, REFUSE_ONE, LOG_IN]
    played = pending(server, within + later)
    assert places(played) == list("1222222222122")
    first = played[0]
    assert lines(first) == [f"{OFF}127.0.0.1:9143", f"{REFUSED}127.0.0.1:9143"]
    assert [text for _, text in first.log.events if "logged in" in text] == [
        "client logged in, client: 127.0.0.1, server: 127.0.0.1:1143, "
        'login: "u", upstream: 127.0.0.2:9143'
    ]


def test_member_that_greets_again_after_fail_timeout_is_as_good_as_new() -> None:
    server = fresh("server 127.0.0.1:9143 max_fails=2; server 127.0.0.2:9143;")
    once = [REFUSE_ONE, f"11\n{LOG_IN}", LOG_IN]
    assert places(pending(server, once)) == list("1221")
    (group,) = server.upstreams.groups.values()
    assert [peer.fails for peer in group] == [0, 0]


def test_failures_are_counted_up_to_max_fails() -> None:
    server = fresh(
        "server 127.0.0.1:9143 max_fails=3 weight=100; server 127.0.0.2:9143;"
    )
    played = pending(server, [REFUSE_ONE] * 3 + [LOG_IN] * 2)
    assert places(played) == list("12121222")
    assert ["temporarily" in line for each in played for line in lines(each)] == [
        *[False, False, True, False]
    ]


def test_single_member_is_tried_whatever_happened() -> None:
    server = fresh("server 127.0.0.1:9143;")
    refused = f"{HELLO}\n{TO_GROUP}\nB: ⟨refused⟩\n{FAILED}"
    played = pending(server, [refused, refused, LOG_IN])
    assert places(played) == list("111")
    assert lines(played[0]) == [f"{REFUSED}127.0.0.1:9143"]


def test_nobody_is_left() -> None:
    server = fresh("server 127.0.0.1:9143; server 127.0.0.2:9143;")
    both = f"{HELLO}\n{TO_GROUP}\nB: ⟨refused⟩\nB: ⟨refused⟩\n{FAILED}"
    none = f"{HELLO}\n{TO_GROUP}\n{FAILED}\nat 0"
    played = pending(server, [both, none])
    assert places(played) == list("12")
    assert [line.rpartition(" ")[2] for line in lines(played[0])] == [
        *["127.0.0.1:9143"] * 2,
        *["127.0.0.2:9143"] * 2,
    ]
    assert lines(played[1]) == [
        f"[error] no live upstreams while connecting to upstream, {WHO}u"
    ]


def test_local_fault_is_not_the_member_s() -> None:
    server = fresh("server 127.0.0.1:9143; server 127.0.0.2:9143;")
    fail = f"{HELLO}\n{TO_GROUP}\n{FAILED}"
    stages = play_all(server, [fail, fail], failing={"P": 99})
    assert places(stages) == list("1221")
    assert lines(stages[0]) == [
        f"[crit] connect() to 127.0.0.{n}:9143 failed (99: Cannot assign requested "
        f"address) while connecting to upstream, {WHO}127.0.0.{n}:9143"
        for n in (1, 2)
    ]


@pytest.mark.proves("server", "backup")
def test_backups_are_for_sessions_that_no_other_member_takes() -> None:
    server = fresh(
        "server 127.0.0.1:9143 backup; server 127.0.0.2:9143; server 127.0.0.3:9143;"
    )
    two = f"{HELLO}\n{TO_GROUP}\nB: ⟨refused⟩\nB: ⟨refused⟩\n{IN}\nC: ⟨close⟩"
    played = pending(server, [LOG_IN, LOG_IN, two, LOG_IN, f"12\n{LOG_IN}"])
    assert places(played) == list("2323113")


def test_time_is_up_is_an_error_of_a_member() -> None:
    server = fresh(
        "server 127.0.0.1:9143; server 127.0.0.2:9143;", "proxy_connect_timeout 3s;"
    )
    late = f"{HELLO}\n{TO_GROUP}\nP: ⟨close⟩\n{IN}\nC: ⟨close⟩"
    (stage,) = pending(server, [late])
    assert lines(stage)[1] == (
        "[error] upstream timed out (110: Connection timed out) while connecting to "
        f"upstream, {WHO}127.0.0.1:9143"
    )


@pytest.mark.parametrize(
    "event", ["⟨close⟩", "⟨reset⟩", "* BYE busy", "* PREAUTH hello", "421 busy", "+OK"]
)
def test_member_that_does_not_greet_is_not_asked_again(event: str) -> None:
    server = fresh("server 127.0.0.1:9143; server 127.0.0.2:9143;")
    first = f"{HELLO}\n{TO_GROUP}\nB: {event}\n{IN}\nC: ⟨close⟩"
    played = play_all(server, [first, LOG_IN, LOG_IN])
    assert places(played) == list("1222")
    warning, error = lines(played[0])
    assert warning.startswith("[warn] upstream server temporarily disabled")
    assert error.startswith("[error] ")
    assert error.endswith("upstream: 127.0.0.1:9143")
    assert not lines(played[1])


def test_member_that_closes_after_the_password_is_not_blamed() -> None:
    server = fresh("server 127.0.0.1:9143; server 127.0.0.2:9143;")
    cut = f'{HELLO}\n{TO_GROUP}\nB: * OK\nP: a LOGIN "u" "p"\nB: ⟨close⟩\n{FAILED}'
    played = play_all(server, [cut, LOG_IN, LOG_IN])
    assert places(played) == list("121")


@pytest.mark.parametrize(
    ("directives", "wait", "tried"),
    [
        ("proxy_next_upstream off;", 0, "1"),
        ("proxy_next_upstream_tries 1;", 0, "1"),
        ("proxy_next_upstream_tries 2;", 0, "12"),
        ("proxy_next_upstream_timeout 1s;", 1, "1"),
        ("proxy_next_upstream_timeout 2s;", 1, "12"),
    ],
)
def test_limits_of_tries(directives: str, wait: int, tried: str) -> None:
    server = fresh(THREE, directives)
    fail = "\n".join(f"wait {wait}\nB: ⟨close⟩" for _ in tried)
    (stage,) = play_all(server, [f"{HELLO}\n{TO_GROUP}\n{fail}\n{FAILED}"])
    assert places([stage]) == list(tried)
    errors = [line for line in lines(stage) if line.startswith("[error]")]
    assert len(errors) == len(tried)


# Keys


@pytest.mark.proves("hash", "consistent")
@pytest.mark.parametrize("mode", ["", "consistent"])
@pytest.mark.parametrize(
    ("key", "headers", "client", "same"),
    [
        ("$auth_user", (), None, True),
        ("$auth_user", ("Auth-User: v",), ("Auth-User: w",), False),
        ("$auth_user", ("Auth-User: v",), ("Auth-User: v",), True),
        ("$auth_domain", ("Auth-User: a@x",), ("Auth-User: b@c@x",), True),
        ("$auth_domain", ("Auth-User: a@x",), ("Auth-User: a@y",), False),
        ("$auth_domain-", ("Auth-User: a@x",), ("Auth-User: b@z",), False),
    ],
)
def test_same_key_leads_to_the_same_member(
    mode: str,
    key: str,
    headers: tuple[str, ...],
    client: tuple[str, ...] | None,
    same: bool,
) -> None:
    many = " ".join(f"server 127.0.0.{n}:9143;" for n in range(1, 10))
    server = fresh(f"hash {key} {mode}; {many}")

    def log_in(extra: tuple[str, ...]) -> str:
        name = extra[0].partition(" ")[2] if extra else "u"
        said = answer("Auth-Status: OK", "Auth-Server: u", *extra)
        return f"{HELLO}\n{said}\n{IN}\nC: ⟨close⟩".replace('"u"', f'"{name}"')

    others = headers if client is None else client
    first, *rest = places(play_all(server, [log_in(headers), *[log_in(others)] * 3]))
    assert len(set(rest)) == 1
    assert (rest[0] == first) is same


@pytest.mark.parametrize("key", ["$remote_addr", "$binary_remote_addr"])
def test_client_can_be_the_key(key: str) -> None:
    many = " ".join(f"server 127.0.0.{n}:9143;" for n in range(1, 10))
    server = fresh(f"hash {key}; {many}")
    script = LOG_IN.replace("plain u p", "⟨any⟩")
    there = {
        client: set(places(play_all(server, [script] * 2, client=client)))
        for client in ("192.0.2.1", "192.0.2.7", "2001:db8::1", "unix:")
    }
    assert all(len(found) == 1 for found in there.values())
    assert len(set(map(str, there.values()))) > 1


def test_user_without_a_domain_has_no_key_and_takes_turns() -> None:
    server = fresh(f"hash $auth_domain; {THREE}")
    assert places(play_all(server, [LOG_IN] * 3)) == list("123")


# What an auth source may say

ADDRESS = ("Auth-Server: 127.0.0.7", "Auth-Port: 9143")
NO_NAME = 'auth http server 127.0.0.1:9000 sent invalid server address:"%s", wanted an IPv4 or IPv6 address, %s'
WANTED = "or the name of an upstream"
MISSING = (
    "auth http server 127.0.0.1:9000 did not send server or port: "
    '"HTTP/1.0 200 OK", wanted %s as well'
)


@pytest.mark.parametrize(
    ("headers", "place"),
    [
        (("Auth-Status: OK", *ADDRESS), "7"),
        (("Auth-Status: OK", "Auth-Server: u"), "1"),
        (("Auth-Status: OK", "Auth-Server: U"), "1"),
        (("Auth-Status: OK", "Auth-Server: u", "Auth-Port: 4711"), "1"),
        (("Auth-Status: OK", "Auth-Server: u", "Auth-Port: x"), "1"),
        (("Auth-Status: OK", "Auth-Server: u.v", "Auth-Port: 1"), "2"),
        (("Auth-Server: u", "Auth-Port: 1"), "1"),
        (("Auth-Server: u",), MISSING % "Auth-Status and Auth-Port"),
        (("Auth-Status: OK", "Auth-Server: v"), MISSING % "Auth-Port"),
        (
            ("Auth-Status: OK", "Auth-Server: v", "Auth-Port: 1"),
            NO_NAME % ("v", WANTED),
        ),
        (
            ("Auth-Status: OK", "Auth-Server: unix:/x", "Auth-Port: 1"),
            NO_NAME % ("unix:/x", WANTED),
        ),
        (
            ("Auth-Status: OK", "Auth-Server: [::1]", "Auth-Port: 1"),
            NO_NAME % ("[::1]", WANTED),
        ),
        (
            ("Auth-Status: OK", "Auth-Server: 127.1", "Auth-Port: 1"),
            NO_NAME % ("127.1", WANTED),
        ),
        (("Auth-Status: OK",), MISSING % "Auth-Server and Auth-Port"),
        (("Auth-Status: OK", "Auth-Port: 1"), MISSING % "Auth-Server"),
        ((), MISSING % "Auth-Status and Auth-Server and Auth-Port"),
    ],
)
def test_answer_of_the_auth_server(headers: tuple[str, ...], place: str) -> None:
    server = fresh(THREE, around="upstream u.V { server 127.0.0.2:9143; }")
    check_answer(server, headers, place)


@pytest.mark.proves("proxy_pass", "unix:")
@pytest.mark.parametrize(
    ("target", "place"), [("U", "1"), ("127.0.0.5:9143", "5"), ("unix:/tmp/x9", "9")]
)
@pytest.mark.parametrize(
    ("headers", "otherwise"),
    [
        (("Auth-Status: OK",), None),
        (("Auth-Status: OK", *ADDRESS), "7"),
        (("Auth-Status: OK", "Auth-Server: w"), "3"),
        (("Auth-Status: OK", "Auth-Port: 1"), MISSING % "Auth-Server"),
        ((), MISSING % "Auth-Status and Auth-Server and Auth-Port"),
        (("Auth-Port: 1",), MISSING % "Auth-Status and Auth-Server"),
    ],
)
def test_answer_that_names_nothing_where_proxy_pass_does(
    target: str, place: str, headers: tuple[str, ...], otherwise: str | None
) -> None:
    other = "upstream w { server 127.0.0.3:9143; }"
    server = fresh(THREE, f"proxy_pass {target};", around=other)
    check_answer(server, headers, otherwise or place)


def check_answer(server: Server, headers: tuple[str, ...], place: str) -> None:
    """See that an answer leads to a place, or is refused with an error."""
    leads = len(place) == 1
    script = f"{HELLO}\n{answer(*headers)}\n" + (
        f"{IN}\nC: ⟨close⟩" if leads else FAILED
    )
    (stage,) = play_all(server, [script])
    if leads:
        assert [
            str(at if isinstance(at, str) else at[0])[-1]
            for at in stage.network.reached
        ] == [place]
    else:
        (line,) = lines(stage)
        assert line.startswith(f"[error] {place} while in http auth state")


def test_server_has_its_own_default() -> None:
    around = "proxy_pass u; upstream w { server 127.0.0.8:9143; }"
    for own, place in (("", "1"), ("proxy_pass W;", "8")):
        server = fresh(THREE, own, around=around)
        check_answer(server, ("Auth-Status: OK",), place)


def test_error_page_is_no_way_to_the_default() -> None:
    server = fresh(THREE, "proxy_pass u;")
    script = f"{HELLO}\nA: HTTP/1.0 502 Bad Gateway\nA| Server: x\nA|\n{FAILED}"
    (stage,) = play_all(server, [script])
    assert not stage.network.reached


# Names that are looked up while running

HOST = answer("Auth-Status: OK", "Auth-Server: Mail.test", "Auth-Port: 9143")
ZONE: Zone = {
    "mail.test. A": ["60 A 127.0.0.1", "60 A 127.0.0.2"],
    "mail.test. AAAA": ["60 AAAA ::9"],
}


def looked_up(
    scripts: Sequence[str], zone: Zone, resolver: str = "127.0.0.1"
) -> list[Stage]:
    server = fresh(THREE, f"resolver {resolver}; resolver_timeout 5s;")
    known = Resolver(resolver_settings(), 5.0, FakeServers(zone))
    return play_all(server, scripts, resolver=known)


@pytest.mark.proves("resolver", context="mail")
def test_host_that_an_auth_server_names_is_a_group_of_its_addresses() -> None:
    script = f"{HELLO}\n{HOST}\n{IN}\nC: ⟨close⟩"
    stages = looked_up([script] * 4, ZONE)
    assert places(stages) == list("1291")
    assert any("upstream: [::9]:9143" in text for _, text in stages[2].log.events)


def test_address_that_comes_twice_is_one_member() -> None:
    script = f"{HELLO}\n{HOST}\n{IN}\nC: ⟨close⟩"
    zone: Zone = {"mail.test. A": ["60 A 127.0.0.1", "60 A 127.0.0.2"]}
    zone["mail.test. A"] = [*zone["mail.test. A"], "60 A 127.0.0.1"]
    assert places(looked_up([script] * 4, zone)) == list("1212")


def test_next_address_of_a_host_is_tried_and_the_failure_remembered() -> None:
    one = f"{HELLO}\n{HOST}\nB: ⟨close⟩\n{IN}\nC: ⟨close⟩"
    two = f"{HELLO}\n{HOST}\n{IN}\nC: ⟨close⟩"
    stages = looked_up([one, two, two], ZONE)
    assert places(stages) == list("1292")


@pytest.mark.parametrize(
    ("zone", "reason", "seconds"),
    [
        ({}, "3: Host not found", 0),
        ({"mail.test. A": "SERVFAIL"}, "2: Server failure", 0),
        ({"mail.test. A": NEVER}, "110: Operation timed out", 5),
    ],
)
def test_host_that_is_not_found(zone: Zone, reason: str, seconds: int) -> None:
    script = f"{HELLO}\n{HOST}\n{FAILED}\nat {seconds}"
    (stage,) = looked_up([script], zone)
    assert lines(stage) == [
        f"[error] Mail.test could not be resolved ({reason}) while connecting to "
        f"upstream, {WHO}Mail.test:9143"
    ]


@pytest.mark.parametrize(
    "name", ["127.1", "a..b", "a_b", "1", "0x7f.1", "a.1", "x" * 64]
)
def test_what_is_no_name_of_a_host(name: str) -> None:
    said = answer("Auth-Status: OK", f"Auth-Server: {name}", "Auth-Port: 9143")
    (stage,) = looked_up([f"{HELLO}\n{said}\n{FAILED}"], ZONE)
    (line,) = lines(stage)
    assert f'sent invalid server address:"{name}"' in line


def test_host_needs_a_port() -> None:
    said = answer("Auth-Status: OK", "Auth-Server: mail.test")
    (stage,) = looked_up([f"{HELLO}\n{said}\n{FAILED}"], ZONE)
    (line,) = lines(stage)
    assert "did not send server or port" in line

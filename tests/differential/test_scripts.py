"""The same dialogues with nginx and with mailproxy; no difference but the named ones."""

import subprocess
from collections.abc import Callable

import pytest

from tests.differential.__main__ import report
from tests.differential.player import Playback, Player
from tests.differential.script import NGINX, OURS, Script, read_all
from tests.differential.stages import play_all, staged
from tests.processes import find_program, need, openssl_inside

NGINX_VERSION = "1.22."
"""Whose words the scripts record; other versions differ in some."""

PACES = (1, 4, 16)
"""How many times as long the times of a script are, from try to try.

Real programs have real clocks: on a busy machine a limit of 300 ms is over before the
script comes to the silence that it is about. One that is about time, and failed, is
played again at the next pace; a proxy that does something else does so at all paces.
"""

_SCRIPTS = read_all()

Playbacks = dict[str, Playback]
PlayAll = Callable[[str], Playbacks]


@pytest.fixture(scope="module")
def playbacks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PlayAll:
    """Plays all scripts that were chosen for a test, together: most of the time is waiting."""
    done: dict[str, Playbacks | AssertionError] = {}
    chosen: dict[str, list[Script]] = {}
    for item in request.session.items:
        call = getattr(item, "callspec", None)
        if isinstance(item, pytest.Function) and call and "script" in call.params:
            chosen.setdefault(item.originalname, []).append(call.params["script"])

    def play(test: str) -> Playbacks:
        proxy = NGINX if test == test_nginx_says_what_is_written.__name__ else OURS
        bytewise = test == test_segments_make_no_difference.__name__
        hidden = test == test_openssl_inside_python_makes_no_difference.__name__
        environment = openssl_inside() if hidden else None
        played: Playbacks = {}
        left = chosen[test]
        for pace in PACES:
            scripts = [script.slowed(pace) for script in left]
            folder = tmp_path_factory.mktemp(proxy)
            with staged(proxy, scripts, folder, environment) as stages:
                both = zip(scripts, stages, strict=True)
                players = [Player(*each, bytewise=bytewise) for each in both]
                play_all(players)
            played |= {each.script.name: each.playback for each in players}
            left = [s for s in left if s.is_timed() and played[s.name].fault]
            if not left:
                break
        return played

    def play_once(test: str) -> Playbacks:
        if test not in done:
            try:
                done[test] = play(test)
            except AssertionError as error:  # it did not start, and would not next time
                done[test] = error
        outcome = done[test]
        if isinstance(outcome, AssertionError):
            raise outcome
        return outcome

    return play_once


def check(script: Script, playback: Playback) -> None:
    """Fail with the whole dialogue where a play left its script."""
    if playback.fault:
        pytest.fail(report(script, playback), pytrace=False)


def playable(proxy: str) -> pytest.MarkDecorator:
    """All scripts that `proxy` can play."""
    scripts = [script for script in _SCRIPTS if script.only in {"", proxy}]
    return pytest.mark.parametrize("script", scripts, ids=lambda script: script.name)


@pytest.fixture(scope="module")
def nginx() -> None:
    """Skip, or fail where peers are required, without the nginx that was recorded."""
    found = find_program("nginx")
    version = ""
    if found is not None:
        version = subprocess.run(
            [found, "-v"], capture_output=True, text=True, check=True
        ).stderr
    recorded = f"nginx/{NGINX_VERSION}" in version
    need(recorded, f"nginx {NGINX_VERSION}x, found {version.strip() or 'none'}")


@playable(NGINX)
def test_nginx_says_what_is_written(
    script: Script, nginx: None, playbacks: PlayAll
) -> None:
    check(script, playbacks(test_nginx_says_what_is_written.__name__)[script.name])


@playable(OURS)
def test_mailproxy_says_what_is_written(script: Script, playbacks: PlayAll) -> None:
    check(script, playbacks(test_mailproxy_says_what_is_written.__name__)[script.name])


_SPLITTABLE = [s for s in _SCRIPTS if s.only in {"", OURS} and s.bytewise == "yes"]


@pytest.mark.parametrize("script", _SPLITTABLE, ids=lambda script: script.name)
def test_segments_make_no_difference(script: Script, playbacks: PlayAll) -> None:
    check(script, playbacks(test_segments_make_no_difference.__name__)[script.name])


_PORTABLE = [
    script
    for script in _SCRIPTS
    if script.only in {"", OURS}
    and ("⟨tls" in "".join(map(str, script.steps)) or script.listen == "ssl")
    # What `ssl` alone cannot do: tests/mail/test_ssl_portable.py has these.
    and "optional_no_ca" not in script.directives(OURS)
    and "SSL certificate error" not in "".join(map(str, script.steps))
]


@pytest.mark.parametrize("script", _PORTABLE, ids=lambda script: script.name)
def test_openssl_inside_python_makes_no_difference(
    script: Script, playbacks: PlayAll
) -> None:
    check(
        script,
        playbacks(test_openssl_inside_python_makes_no_difference.__name__)[script.name],
    )


def test_what_differs_has_a_reason_and_does_differ() -> None:
    for script in _SCRIPTS:
        if script.differs():
            nginx, ours = (
                [
                    str(step).removeprefix(f"{proxy} ")
                    for step in script.steps_for(proxy)
                ]
                for proxy in (NGINX, OURS)
            )
            assert nginx != ours, script.name

"""Every differential script again, at level debug and with secrets that can be found.

Its passwords are single letters for the most part, which are in every line; here each
gets a long one, in clear and in base64. What mailproxy says is not compared.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mailproxy.log import DEBUG
from tests.differential.notation import line_bytes
from tests.differential.script import FOLDER, OURS, Script, groups, read
from tests.play import Step, load_server
from tests.security.acts import LONGEST, Act

PASSWORD = "Pa55w0rd"
"""In the place of every password, and of every token of OAuth."""
DIGEST = "0123456789abcdef0123456789abcdef"
NOT_IN_MEMORY = ("resolver", "ssl_verify_client", "auth_http_pass_client_cert")
"""Directives of scripts that need a name server, or certificates of clients."""

_BASE64 = re.compile(
    r"(?<![A-Za-z0-9+/=])(?:[A-Za-z0-9+/]{2,}={1,2}|"
    r"(?!(?i:authenticate))(?=\S*[a-z0-9])[A-Za-z0-9+/]{12,})"
)
_IN_CLEAR = re.compile(r"(?i)\b(LOGIN \S+ |PASS |LOGIN \{1\+?\}⏎\S+ )p\b")


def encoded_again(found: re.Match[str]) -> str:
    """A message of SASL with the password in the place of a short one."""
    try:
        message = base64.b64decode(found[0], validate=True)
    except binascii.Error:
        return found[0]
    message = re.sub(rb"\0p\Z|\Ap\Z", lambda m: m[0][:-1] + PASSWORD.encode(), message)
    message = re.sub(rb"Bearer t(?=\x01)", b"Bearer " + PASSWORD.encode(), message)
    return base64.b64encode(message).decode()


def disguised(kind: str, text: str) -> str:
    """A line of a script with the long password."""
    if kind == "A":
        return re.sub(r"^(Auth-Pass: ).+", rf"\1{PASSWORD}", text)
    if kind == "C" and text == "p":
        return PASSWORD
    text = re.sub(r"^(u \{)1(\+?\})", rf"\g<1>{len(PASSWORD)}\2", text)
    text = _IN_CLEAR.sub(rf"\1{PASSWORD}", text)
    return _BASE64.sub(encoded_again, text) if kind == "C" else text


def steps_of(script: Script) -> list[Step]:
    """What the client, the auth server and the backend say in a script."""
    steps = []
    for group in groups(script.steps_for(OURS)):
        first = group[0]
        if first.kind == "pause":
            steps.append(Step("wait", ("1",), first.number))
        elif first.kind in "CAB" and first.label == 1:
            texts = tuple(disguised(first.kind, step.text) for step in group)
            if texts[0].startswith("⟨tls"):
                texts = ("⟨tls⟩",)
            if not re.fullmatch("⟨(open|close|fin|reset)⟩", texts[0]):
                steps.append(Step(first.kind, texts, first.number))
    return steps


def secrets_of(steps: list[Step]) -> set[str]:
    """The password, and every message of SASL that a client sends."""
    sent = "\n".join(text for step in steps for text in step.texts if step.kind == "C")
    return {PASSWORD, DIGEST, *_BASE64.findall(sent)}


def debug_log_of(script: Script) -> tuple[Act, list[Step]]:
    """The session of a script as far as it goes."""
    directives = script.directives(OURS)
    directives = re.sub(r"\b(server|ca)\.pem", "⟨cert⟩", directives)
    listen = f"listen 127.0.0.1:1143 {script.listen};"
    server = load_server(f"protocol {script.protocol}; {listen} {directives}")
    act, steps = Act(server, level=DEBUG), steps_of(script)

    async def run() -> None:
        with trio.fail_after(LONGEST):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(act.run_session)
                await act.follow(steps)
                for who in act.present:
                    act.leave(who, "close")

    trio.run(run, clock=MockClock(autojump_threshold=0))
    return act, steps


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.txt")), ids=lambda p: p.stem)
def test_no_script_shows_a_secret(file: Path) -> None:
    played = said = 0
    for script in read(file):
        if any(name in script.directives(OURS) for name in NOT_IN_MEMORY):
            continue
        act, steps = debug_log_of(script)
        lines = [*act.log.debug, *(text for _, text in act.log.events)]
        for secret in secrets_of(steps):
            shown = [line for line in lines if secret in line]
            assert not shown, f"{script.name}: {secret}"
        played += 1
        said += sum('from client: "' in line for line in act.log.debug)
    assert said >= played // 2 or file.stem == "resolver", (said, played)


def test_the_scripts_have_secrets() -> None:
    """A sign that the passwords were found: they are sent where they belong."""
    sent = b""
    for stem in ("imap-sasl", "pop3-sasl", "smtp-sasl", "imap-commands", "pop3"):
        for script in read(FOLDER / f"{stem}.txt"):
            for step in steps_of(script):
                sent += b"".join(map(line_bytes, step.texts))
    plain = base64.b64encode(b"\0u\0" + PASSWORD.encode())
    login = base64.b64encode(PASSWORD.encode())
    for wanted in (b" u " + PASSWORD.encode(), b"PASS " + PASSWORD.encode(), plain):
        assert sent.count(wanted) > 3, wanted
    assert login in sent

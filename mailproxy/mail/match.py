"""`match`: what a health check sends, and what it expects; as in NGINX Plus' stream.

https://nginx.org/en/docs/stream/ngx_stream_upstream_hc_module.html#match
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mailproxy.conf.directive import Block, Reading, Settings, Value, directive
from mailproxy.conf.tree import ConfigError, Directive, Word
from mailproxy.mail.load_state import load_state
from mailproxy.mail.probing import Expected, Match

MAX_SENT = 4096
"""Octets of `send`."""

_HEXADECIMAL = re.compile(rb"\\x([0-9A-Fa-f]{2})")


def _octets(word: Word) -> bytes:
    r"""The octets of a word, with ``\x0D`` for one that cannot be written."""
    return _HEXADECIMAL.sub(lambda found: bytes.fromhex(found[1].decode()), word.octets)


def _parse_send(found: Directive, _: Reading) -> bytes:
    octets = _octets(found.words[1])
    if len(octets) > MAX_SENT:
        raise ValueError("invalid value")
    return octets


def _parse_expect(found: Directive, _: Reading) -> Expected | None:
    *how, word = found.words[1:]
    if not how:
        return _octets(word)
    if how[0].value not in ("~", "~*"):
        raise ConfigError(
            f'invalid parameter "{how[0].value}"',
            how[0],
            'a text, or "~" and a regular expression',
        )
    flags = re.IGNORECASE if how[0].value == "~*" else 0
    try:
        return re.compile(word.octets, flags)
    except re.error as error:
        at = word.octets[error.pos or 0 :].decode("utf-8", "surrogateescape")
        raise ConfigError(
            f'pcre2_compile() failed: {error.msg} in "{word.value}" at "{at}"', word
        ) from None


@dataclass(frozen=True, kw_only=True)
class MatchSettings(Settings):
    """What health checks send and expect: `match NAME { … }`, for `health_check match=`."""

    send: bytes = directive(
        Value(_parse_send, "string"),
        default=b"",
        contexts="match",
        origin="NGINX Plus (stream)",
    )
    r"""What is sent to a backend, once the probe has gone as far as its `type` says; in
    double quotes `\r\n` ends a line, and `\x00` is an octet in hexadecimal."""

    expect: Expected | None = directive(
        Value(_parse_expect, "string | ~ regex | ~* regex", most=2),
        default=None,
        contexts="match",
        shown="",
        origin="NGINX Plus (stream)",
    )
    r"""What has to be in the first 8 KiB that the backend sends, greeting included: a text
    (with `\x00` as in `send`), or what a regular expression of Python's matches, in any case
    after `~*`. After STARTTLS what came before it does not count. An expression that
    takes long for long texts (`(a+)+$`) keeps the manager process from other work."""


def open_match(block: Block, reading: Reading) -> None:
    """Check at the beginning of a block that its name is new.

    Raises:
      ConfigError: it is not.
    """
    assert block.directive is not None, "it is written somewhere"
    word = block.directive.words[1]
    known = load_state(reading).matches
    if word.value in known:
        raise ConfigError(f'duplicate match "{word.value}"', word)
    known[word.value] = None


def close_match(block: Block, reading: Reading) -> Iterator[ConfigError]:
    """Keep the block under its name, unless it has an error."""
    assert block.directive is not None, "it is written somewhere"
    name = block.directive.values[1]
    if not block.failed:
        settings = MatchSettings.make(block, reading)
        load_state(reading).matches[name] = Match(
            name=name, send=settings.send, expect=settings.expect
        )
    yield from ()

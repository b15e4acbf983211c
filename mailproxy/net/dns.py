"""The resolver: find host names and addresses, and cache them for their lifetime.

The rest of the program asks name servers only while it reads its configuration.
"""

from __future__ import annotations

import errno
import itertools
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from mailproxy.conf.addresses import Address, IPAddress
from mailproxy.net.dns_messages import (
    MAX_ALIASES,
    NOT_FOUND,
    SERVER_FAILURE,
    Answer,
    Kind,
    Question,
    forward_question,
    packed,
    reverse_question,
    service_question,
)
from mailproxy.net.resolver_settings import ResolverSettings

TIMED_OUT = errno.ETIMEDOUT
"""The code of a lookup that took longer than `resolver_timeout`. Codes of name servers
have four bits, so it differs from all of them; nginx uses the same number."""

RESEND_AFTER = 5.0
"""Seconds without an answer after which the next server is asked as well."""
MAX_SERVER_WAIT = 4 * RESEND_AFTER
"""Seconds that one server has to answer."""
MAX_LOOKUPS = 2048
"""Lookups that one resolver runs at once; further ones wait. A client whose name server
is silent takes a place for `resolver_timeout`; there are enough for all the others."""
MAX_CACHED = 4096
"""Answers that one resolver caches."""
MAX_CACHED_VALUES = 64
"""Values of an answer that is cached; the client controls how many an answer has."""

_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""Errors that say that we have no room for a socket; the server may be fine."""


Ask = Callable[[Address, Question], Awaitable[Answer]]
"""Ask one server once; see `NameServers.ask`."""


@dataclass
class _Lookup:
    """A question on its way, and the event that all its askers wait for."""

    done: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None


class Resolver:
    """Asks the name servers of one `resolver` directive and remembers the answers."""

    def __init__(self, settings: ResolverSettings, timeout: float, ask: Ask) -> None:
        """Args:
        timeout: `resolver_timeout`, seconds for each lookup.
        ask: asks one server once.
        """
        self._settings = settings
        self._timeout = timeout
        self._ask = ask
        self._turn = itertools.count()
        self._slots = trio.Semaphore(MAX_LOOKUPS)
        self._running: dict[Question, _Lookup] = {}
        self._cache: dict[Question, tuple[float, Answer]] = {}

    async def find_name(self, address: IPAddress) -> Answer:
        """Return the one host name that the owner of an address gave it, or a code."""
        question = reverse_question(address)
        return await self._within_timeout(self._find(question))

    async def find_addresses(self, name: bytes, wanted: IPAddress) -> Answer:
        """Return addresses of a name (see `packed`), or a code.

        Args:
          name: `is_host_name` must hold for it.
          wanted: once this address is found, the lookup does not wait for others.
        """
        return await self._within_timeout(self._find_addresses(name, packed(wanted)))

    async def find_all(self, name: bytes) -> Answer:
        """Return all addresses of a name, those of IPv4 first, or a code.

        Args:
          name: `is_host_name` must hold for it.
        """
        return await self._within_timeout(self._find_addresses(name, b""))

    async def find_services(self, name: bytes) -> Answer:
        """Return the servers of a service (see `read_service`), or a code.

        Args:
          name: `is_service_name` must hold for it.
        """
        return await self._within_timeout(self._find(service_question(name)))

    async def _within_timeout(self, lookup: Awaitable[Answer]) -> Answer:
        with trio.move_on_after(self._timeout):
            return await lookup
        return Answer(TIMED_OUT)

    async def _find_addresses(self, name: bytes, wanted: bytes) -> Answer:
        """Look up both kinds of addresses; one that is `wanted` ends that."""
        kinds = {Kind.A: self._settings.ipv4, Kind.AAAA: self._settings.ipv6}
        found: dict[Kind, Answer] = {}
        async with trio.open_nursery() as nursery:

            async def find(kind: Kind) -> None:
                answer = found[kind] = await self._find(forward_question(kind, name))
                if wanted in answer.values:
                    nursery.cancel_scope.cancel()

            for kind, on in kinds.items():
                if on:
                    nursery.start_soon(find, kind)
        answers = [found[kind] for kind in kinds if kind in found]
        values = tuple(value for answer in answers for value in answer.values)
        if values:
            ttl = min(answer.ttl for answer in answers if answer.values)
            return Answer(0, values, ttl)
        # One server that failed may have known more than one that knew nothing.
        codes = [answer.code for answer in answers if answer.code != NOT_FOUND]
        return Answer(codes[0] if codes else NOT_FOUND)

    async def _find(self, question: Question) -> Answer:
        """Look up a question, following aliases; return values or a code.

        Aliases that lead back to themselves name nothing, as in nginx. More aliases than
        are followed are a temporary failure: the name may exist.
        """
        asked: set[Question] = set()
        while len(asked) < MAX_ALIASES:
            asked.add(question)
            answer = await self._look_up(question)
            if answer.code or answer.values:
                return answer
            question = Question(question.kind, answer.alias)
            if question in asked:
                return Answer(NOT_FOUND)
        return Answer(SERVER_FAILURE)

    async def _look_up(self, question: Question) -> Answer:
        """Answer one question from the cache, a running lookup, or a server."""
        while True:
            kept = self._cache.get(question)
            if kept is not None and kept[0] > trio.current_time():
                return kept[1]
            other = self._running.get(question)
            if other is None:
                break
            await other.done.wait()
            if other.answer is not None:
                return other.answer
        lookup = self._running[question] = _Lookup()
        try:
            async with self._slots:
                lookup.answer = await self._exchange(question)
        finally:
            del self._running[question]
            lookup.done.set()
        self._keep(question, lookup.answer)
        return lookup.answer

    def _keep(self, question: Question, answer: Answer) -> None:
        self._cache.pop(question, None)
        valid = self._settings.valid
        seconds = answer.ttl if valid is None else valid
        if answer.code or seconds <= 0 or len(answer.values) > MAX_CACHED_VALUES:
            return
        while len(self._cache) >= MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        self._cache[question] = trio.current_time() + seconds, answer

    async def _exchange(self, question: Question) -> Answer:
        """Ask one server after the other until one answers.

        If there is no room for a single socket, the answer is a server failure.
        """
        send, receive = trio.open_memory_channel[Answer | OSError](math.inf)

        async def try_server(server: Address) -> None:
            send.send_nowait(await self._try(server, question))

        servers = self._settings.servers
        first = next(self._turn)
        failed = without_room = 0
        async with trio.open_nursery() as nursery:
            for turn in itertools.count(first):
                nursery.start_soon(try_server, servers[turn % len(servers)])
                with trio.move_on_after(RESEND_AFTER):
                    while True:
                        result = await receive.receive()
                        if isinstance(result, Answer):
                            nursery.cancel_scope.cancel()
                            return result
                        without_room += result.errno in _NO_ROOM
                        if without_room == len(servers):
                            nursery.cancel_scope.cancel()
                            return Answer(SERVER_FAILURE)
                        failed += 1
                        if failed < len(servers):
                            break  # ask the next one at once, but each only once
        raise AssertionError("the servers never run out")

    async def _try(self, server: Address, question: Question) -> Answer | OSError:
        """Return the answer of one server, or the error that prevented it."""
        with trio.move_on_after(MAX_SERVER_WAIT):
            try:
                return await self._ask(server, question)
            except OSError as error:
                return error
        return TimeoutError(
            f"{server.text} has not answered for {MAX_SERVER_WAIT:.0f} s"
        )

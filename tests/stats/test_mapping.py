"""The shared mapping: rows and cells, and that no number is lost or counted twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from mailproxy.stats.cells import (
    BOARD_CELLS,
    HEADER_CELLS,
    Board,
    CellKey,
    CellKind,
    Role,
    RowHeader,
    State,
)
from mailproxy.stats.mapping import MIN_CELLS, MIN_ROWS, Row, Statistics
from mailproxy.stats.peers import PeerNumbers, peer_keys

LOGINS = CellKey(CellKind.COUNTER, "logins", ("imap:143",))
SESSIONS = CellKey(CellKind.GAUGE, "sessions", ("imap:143",))
STATE = CellKey(CellKind.BOARD, "state", ("mail",))
KEYS = (LOGINS, SESSIONS, STATE)


@pytest.fixture
def statistics() -> Statistics:
    made = Statistics()
    assert made.need(KEYS, workers=2) == []
    return made


def in_child(work: Callable[[], object]) -> None:
    """Do something in a process of its own."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def worker(statistics: Statistics) -> Row:
    row = statistics.take_row(Role.WORKER)
    row.begin()
    return row


class TestRows:
    def test_numbers_of_all_rows_are_summed_up(self, statistics: Statistics) -> None:
        first, second = worker(statistics), worker(statistics)
        first.cell(LOGINS).add(3)
        second.cell(LOGINS).add(4)
        assert [row.cell(LOGINS).own for row in (first, second)] == [3, 4]
        assert [row.cell(LOGINS).total for row in (first, second)] == [7, 7]

    def test_what_a_child_counts_is_seen_by_all(self, statistics: Statistics) -> None:
        rows = [statistics.take_row(Role.WORKER) for _ in range(3)]

        def count(row: Row) -> None:
            row.begin()
            row.cell(LOGINS).add(5)

        for row in rows[1:]:
            in_child(partial(count, row))
        assert rows[0].cell(LOGINS).total == 10

    def test_a_reaped_process_leaves_counters_and_no_gauges(
        self, statistics: Statistics
    ) -> None:
        living, dying = worker(statistics), worker(statistics)
        for row in (living, dying):
            row.cell(LOGINS).add(1)
            row.cell(SESSIONS).add(1)
        statistics.free_row(dying)
        assert living.cell(LOGINS).total == 2
        assert living.cell(SESSIONS).total == 1

    def test_the_next_process_goes_on_adding(self, statistics: Statistics) -> None:
        dead = worker(statistics)
        dead.cell(LOGINS).add(2)
        statistics.free_row(dead)
        after = worker(statistics)
        assert after.number == dead.number
        after.cell(LOGINS).add(1)
        assert after.cell(LOGINS).total == 3

    def test_the_lowest_free_row_is_given(self, statistics: Statistics) -> None:
        rows = [worker(statistics) for _ in range(4)]
        assert [row.number for row in rows] == [1, 2, 3, 4]
        for row in (rows[2], rows[1]):
            statistics.free_row(row)
        assert [worker(statistics).number for _ in range(3)] == [2, 3, 5]

    def test_a_living_process_is_the_only_one_in_its_row(
        self, statistics: Statistics
    ) -> None:
        rows = [worker(statistics) for _ in range(MIN_ROWS - 1)]
        assert len({row.number for row in rows}) == len(rows)
        assert min(row.number for row in rows) == 1

    def test_a_process_without_a_row_counts_for_itself_and_sees_the_others(
        self, statistics: Statistics
    ) -> None:
        rows = [worker(statistics) for _ in range(MIN_ROWS - 1)]
        extra = worker(statistics)
        assert extra.has_mapping
        assert not extra.is_shared
        rows[-1].cell(LOGINS).add(1)
        extra.cell(LOGINS).add(10)
        extra.cell(LOGINS).add(10)
        assert extra.cell(LOGINS).total == 21
        assert rows[0].cell(LOGINS).total == 1
        statistics.free_row(extra)
        assert not worker(statistics).is_shared

    def test_many_workers_get_many_rows(self) -> None:
        statistics = Statistics()
        statistics.need((), workers=20)
        rows = [statistics.take_row(Role.WORKER) for _ in range(160)]
        assert [row.is_shared for row in rows] == [True] * 159 + [False]

    def test_a_row_says_whose_it_is(self, statistics: Statistics) -> None:
        statistics.begin_generation()
        row = statistics.take_row(Role.MANAGER)
        start = row.number * MIN_CELLS
        header = row.mapping[start : start + HEADER_CELLS]
        assert header[RowHeader.STATE] == State.STARTING
        row.begin()
        assert header[RowHeader.PID] == os.getpid()
        assert header[RowHeader.ROLE] == Role.MANAGER
        assert header[RowHeader.GENERATION] == 1
        assert header[RowHeader.STATE] == State.RUNNING
        statistics.free_row(row)
        assert (header[RowHeader.PID], header[RowHeader.STATE]) == (0, State.FREE)

    def test_the_board_tells_how_many_rows_are_free(
        self, statistics: Statistics
    ) -> None:
        row = worker(statistics)
        board = row.mapping
        assert board[Board.ROWS_FREE] == MIN_ROWS - 2
        statistics.free_row(row)
        assert board[Board.ROWS_FREE] == MIN_ROWS - 1


class TestCells:
    def test_a_key_keeps_its_cell(self, statistics: Statistics) -> None:
        row = worker(statistics)
        row.cell(LOGINS).add(1)
        more = tuple(CellKey(CellKind.COUNTER, "more", (str(n),)) for n in range(100))
        assert statistics.need((*more, *KEYS), workers=2) == []
        assert row.cell(LOGINS).total == 1
        assert row.cell(more[99]).total == 0

    def test_no_two_keys_share_a_cell(self, statistics: Statistics) -> None:
        keys = [CellKey(CellKind.COUNTER, "more", (str(n),)) for n in range(500)]
        statistics.need(keys, workers=2)
        row = worker(statistics)
        for number, key in enumerate((*keys, LOGINS, SESSIONS)):
            row.cell(key).add(number)
        assert [row.cell(key).own for key in (*keys, LOGINS, SESSIONS)] == list(
            range(502)
        )
        assert row.mapping[row.number * MIN_CELLS + RowHeader.PID] == os.getpid()

    def test_a_table_has_twice_the_room_it_needs_at_first(self) -> None:
        keys = [CellKey(CellKind.COUNTER, "many", (str(n),)) for n in range(5000)]
        statistics = Statistics()
        assert statistics.need(keys, workers=1) == []
        more = [CellKey(CellKind.COUNTER, "more", (str(n),)) for n in range(5000)]
        assert statistics.need(more, workers=1) == []

    def test_what_has_no_room_is_counted_by_each_process_for_itself(
        self, statistics: Statistics
    ) -> None:
        room = MIN_CELLS - BOARD_CELLS - len(KEYS)
        keys = [CellKey(CellKind.COUNTER, "more", (str(n),)) for n in range(room + 2)]
        assert statistics.need(keys, workers=2) == keys[room:]
        first, second = worker(statistics), worker(statistics)
        for row in (first, second):
            row.cell(keys[room - 1]).add(1)
            row.cell(keys[room]).add(1)
        assert first.cell(keys[room - 1]).total == 2
        assert first.cell(keys[room]).total == 1

    def test_the_board_is_read_by_all(self, statistics: Statistics) -> None:
        writer, reader = worker(statistics), worker(statistics)
        writer.cell(STATE).set(7)
        assert reader.cell(STATE).own == reader.cell(STATE).total == 7

    def test_a_gauge_does_not_fall_below_nothing(self, statistics: Statistics) -> None:
        with pytest.raises(ValueError, match="invalid value"):
            worker(statistics).cell(SESSIONS).add(-1)


class TestWithoutMapping:
    @pytest.fixture(params=["none", "not needed"])
    def row(self, request: pytest.FixtureRequest) -> Iterator[Row]:
        statistics = Statistics()
        yield Row() if request.param == "none" else statistics.take_row(Role.WORKER)
        assert not statistics.exists

    def test_a_process_counts_for_itself(self, row: Row) -> None:
        row.begin()
        assert not row.has_mapping
        for key in KEYS:
            row.cell(key).add(2)
            row.cell(key).add(2)
            assert (row.cell(key).own, row.cell(key).total) == (4, 4)

    def test_a_mapping_may_come_later(self) -> None:
        statistics = Statistics()
        before = statistics.take_row(Role.WORKER)
        statistics.need(KEYS, workers=1)
        after = worker(statistics)
        after.cell(LOGINS).add(1)
        before.cell(LOGINS).add(1)
        assert (before.cell(LOGINS).total, after.cell(LOGINS).total) == (1, 1)
        statistics.free_row(before)


class TestPeers:
    @pytest.fixture
    def rows(self) -> list[Row]:
        statistics = Statistics()
        statistics.need(peer_keys("imap", "192.0.2.1:143"), workers=2)
        return [worker(statistics), worker(statistics)]

    def test_sessions_of_all_workers_count(self, rows: list[Row]) -> None:
        first, second = (PeerNumbers(row, "imap", "192.0.2.1:143") for row in rows)
        first.enter()
        second.enter()
        second.enter()
        assert (first.conns, second.conns) == (3, 3)
        assert (first.own_conns, second.own_conns) == (1, 2)
        second.leave()
        second.fail()
        assert (first.conns, first.selected, first.fails) == (2, 3, 1)

    def test_peers_are_counted_apart(self, rows: list[Row]) -> None:
        PeerNumbers(rows[0], "imap", "192.0.2.1:143").enter()
        assert PeerNumbers(rows[0], "imap", "192.0.2.2:143").conns == 0
        assert PeerNumbers(rows[0], "pop", "192.0.2.1:143").conns == 0

    def test_state_and_weight_are_on_the_board(self, rows: list[Row]) -> None:
        manager, reader = (PeerNumbers(row, "imap", "192.0.2.1:143") for row in rows)
        assert (reader.state, reader.weight) == (0, 0)
        manager.publish(5, 10)
        assert (reader.state, reader.weight) == (5, 10)

"""The shared mapping: a table of numbers that all processes of one program see.

The master makes it before it forks a process that needs it, and keeps it as long as it
lives, over all generations; so a reload loses nothing.

- A **row** belongs to one living process, its only writer. So a number is added to
  without a lock, and a process that is killed in the middle leaves the old number or the
  new one: cells are aligned, and the size of a machine word. A row is given to a life and
  not to the slot of a worker: two workers of one slot may live at the same time.
- **Row 0** is the board: what one process knows and all others want to read.
- A **cell** is a number of a row, the same number in all rows. The directory says which
  cell a key has. A key that was once entered keeps its cell for ever.
- The master takes a row before it forks, and frees it after it has reaped the process. It
  sets the gauges to 0 then, and leaves the counters: who gets the row next goes on
  adding, so the sum of a column never falls.

What reads a column sums it up cell by cell. Each number was true at some time, but two
of them need not be of the same moment.
"""

from __future__ import annotations

import heapq
import mmap
import os
import time
from collections.abc import Iterable

from mailproxy.stats.cells import (
    BOARD_CELLS,
    LAYOUT,
    Board,
    CellKey,
    CellKind,
    Role,
    RowHeader,
    State,
)

MIN_CELLS = 4096
"""Cells of a row, at least."""
MIN_ROWS = 64
"""Rows, at least."""
ROWS_EACH = 8
"""Rows for each of `worker_processes`: generations whose last sessions have not ended."""

_OCTETS = 8
_NOTHING = memoryview(b"").cast("Q")


class Statistics:
    """The mapping, as the master has it; before `need` was called there is none."""

    def __init__(self) -> None:
        self._cells = 0
        self._view = _NOTHING
        self._free: list[int] = []
        self._directory: dict[CellKey, int] = {}
        self._generation = 0

    @property
    def exists(self) -> bool:
        """Whether there is a mapping."""
        return bool(self._view)

    def need(self, keys: Iterable[CellKey], workers: int) -> list[CellKey]:
        """Have a mapping in which all `keys` have cells.

        Args:
          workers: `worker_processes`. When the mapping is made, it decides about its
            size, which does not change later.

        Returns:
          The keys that there is no room for.
        """
        new = [key for key in dict.fromkeys(keys) if key not in self._directory]
        if not self.exists:
            self._make(len(new), workers)
        room = self._cells - BOARD_CELLS - len(self._directory)
        for cell, key in enumerate(new[:room], self._cells - room):
            self._directory[key] = cell
        return new[room:]

    def _make(self, keys: int, workers: int) -> None:
        least = max(MIN_CELLS, 2 * (BOARD_CELLS + keys))
        self._cells = 1 << (least - 1).bit_length()
        rows = max(MIN_ROWS, ROWS_EACH * workers)
        # Anonymous and shared: forks see it. Pages that nobody touches cost nothing.
        self._view = memoryview(mmap.mmap(-1, rows * self._cells * _OCTETS)).cast("Q")
        self._free = list(range(1, rows))
        self._view[Board.LAYOUT] = LAYOUT
        self._view[Board.ROWS_USED] = 1
        self._view[Board.STARTED] = _now()
        self._view[Board.GENERATION] = self._generation
        self._view[Board.ROWS_FREE] = len(self._free)

    def begin_generation(self) -> None:
        """Count a new configuration."""
        self._generation += 1
        if self.exists:
            self._view[Board.GENERATION] = self._generation

    def take_row(self, role: Role) -> Row:
        """Give a row to the process that is about to be forked.

        If there is no mapping, or no row is left, the result counts in memory of its own.
        """
        if not self._free:
            return Row(self._view, self._cells, 0, self._directory)
        number = heapq.heappop(self._free)
        row = Row(self._view, self._cells, number, self._directory)
        row.header(RowHeader.GENERATION, self._generation)
        row.header(RowHeader.ROLE, role)
        row.header(RowHeader.STARTED, _now())
        row.header(RowHeader.STATE, State.STARTING)
        board = self._view
        board[Board.ROWS_USED] = max(board[Board.ROWS_USED], number + 1)
        board[Board.ROWS_FREE] = len(self._free)
        return row

    def set_front(self, row: Row | None) -> None:
        """Say which manager writes the board; None: there is none."""
        if self.exists:
            self._view[Board.FRONT] = 0 if row is None else row.number

    def free_row(self, row: Row) -> None:
        """Take back the row of a process that has ended, or was not forked."""
        if not row.is_shared:
            return
        start = row.number * self._cells
        for key, cell in self._directory.items():
            if key.kind is CellKind.GAUGE:
                self._view[start + cell] = 0
        if self._view[Board.FRONT] == row.number:
            self._view[Board.FRONT] = 0
        row.header(RowHeader.PID, 0)
        row.header(RowHeader.STATE, State.FREE)
        heapq.heappush(self._free, row.number)
        self._view[Board.ROWS_FREE] = len(self._free)


class Row:
    """The numbers of one process, and its view of all others.

    Attributes:
      number: which row of the mapping it is; 0: none, what it counts nobody else sees.
      mapping: all cells of all rows, or nothing.
    """

    def __init__(
        self,
        mapping: memoryview[int] = _NOTHING,
        cells: int = 0,
        number: int = 0,
        directory: dict[CellKey, int] | None = None,
    ) -> None:
        """By default there is no mapping."""
        self.number = number
        self.mapping = mapping
        self._cells = cells
        self._directory = {} if directory is None else directory
        self._alone: dict[CellKey, Cell] = {}

    @property
    def is_shared(self) -> bool:
        """Whether others see what it counts."""
        return self.number > 0

    @property
    def has_mapping(self) -> bool:
        """Whether it sees what others count."""
        return bool(self.mapping)

    @property
    def is_front(self) -> bool:
        """Whether this process is the manager that writes the board."""
        return self.is_shared and self.mapping[Board.FRONT] == self.number

    def header(self, cell: RowHeader, value: int) -> None:
        """Set a cell of the row's header; a row that is not shared has none."""
        if self.is_shared:
            self.mapping[self.number * self._cells + cell] = value

    def begin(self) -> None:
        """Note that the process runs; it calls this itself."""
        self.header(RowHeader.PID, os.getpid())
        self.header(RowHeader.STATE, State.RUNNING)

    def cell(self, key: CellKey) -> Cell:
        """The cell of a key: of the mapping, if it is there, or else one of our own."""
        cell = self._directory.get(key)
        if cell is None:
            if key not in self._alone:
                self._alone[key] = Cell(_one_cell(), 0, _NOTHING, 0, 1)
            return self._alone[key]
        if key.kind is CellKind.BOARD:
            return Cell(self.mapping, cell, _NOTHING, 0, 1)
        if not self.is_shared:
            if key not in self._alone:
                own = _one_cell()
                self._alone[key] = Cell(own, 0, self.mapping, cell, self._cells)
            return self._alone[key]
        start = self.number * self._cells
        return Cell(self.mapping, start + cell, self.mapping, cell, self._cells)


class Cell:
    """A number of one process, and the sum of that number over all."""

    __slots__ = ("_all", "_column", "_index", "_own", "_step")

    def __init__(
        self,
        own: memoryview[int],
        index: int,
        others: memoryview[int],
        column: int,
        step: int,
    ) -> None:
        """Args:
        own, index: where the number of this process is.
        others: the mapping, or nothing.
        column: the place of the cell in each row.
        step: cells of a row.
        """
        self._own = own
        self._index = index
        self._all = others
        self._column = column
        self._step = step

    def add(self, number: int = 1) -> None:
        """Add to the number of this process, which stays 0 or more."""
        self._own[self._index] += number

    def set(self, number: int) -> None:
        """Replace the number of this process."""
        self._own[self._index] = number

    @property
    def own(self) -> int:
        """The number of this process."""
        return self._own[self._index]

    @property
    def total(self) -> int:
        """The sum over all processes, those that have ended included."""
        everything = self._all
        if not everything:
            return self._own[self._index]
        step = self._step
        end = everything[Board.ROWS_USED] * step
        found = sum(everything[self._column + step : end : step])
        # Without a row, the number of this process is not among them.
        return found if self._own is everything else found + self._own[self._index]


def _one_cell() -> memoryview[int]:
    return memoryview(bytearray(_OCTETS)).cast("Q")


def _now() -> int:
    return time.time_ns() // 1_000_000

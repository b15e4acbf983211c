"""The layout of the shared numbers: keys, and the cells that every row begins with."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class CellKind(IntEnum):
    """What a cell holds."""

    COUNTER = 1
    """A number that only grows, also when the process that counted has ended."""
    GAUGE = 2
    """How much there is now; 0 once the process that counted has ended."""
    BOARD = 3
    """A value that only row 0 has: one process writes it, all read it."""


class CellKey(NamedTuple):
    """What a cell is for."""

    kind: CellKind
    name: str
    labels: tuple[str, ...] = ()


class RowHeader(IntEnum):
    """The cells that each row but the board begins with."""

    PID = 0
    GENERATION = 1
    """Which configuration the process was born of, counted from 1."""
    ROLE = 2
    """A `Role`."""
    STARTED = 3
    """Milliseconds since 1970."""
    STATE = 4
    """A `State`."""


class Role(IntEnum):
    """What the process of a row is."""

    WORKER = 1
    MANAGER = 2


class State(IntEnum):
    """Whether a row is in use."""

    FREE = 0
    STARTING = 1
    RUNNING = 2


class Board(IntEnum):
    """The cells that row 0 begins with; only the master writes them."""

    LAYOUT = 0
    """Version of this layout: `LAYOUT`."""
    ROWS_USED = 1
    """The rows from here on have never been used, so they hold zeros."""
    GENERATION = 2
    """The latest generation."""
    STARTED = 3
    """Milliseconds since 1970."""
    ROWS_FREE = 4
    """How many more processes can be counted."""
    FRONT = 5
    """The row of the manager of the current generation, which alone writes the rest of
    row 0; 0: there is none."""


LAYOUT = 1
HEADER_CELLS = 16
"""Cells that a row sets aside for `RowHeader`."""
BOARD_CELLS = 64
"""Cells that row 0 sets aside for `Board`. Keys have cells from here on, in all rows."""

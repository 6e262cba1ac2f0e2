"""Shared counters: numbers that several processes add to at once, without waiting for a lock and without a disk.

They are in memory that is shared by all processes forked after it was made: a row for each process that counts; the sum
of the rows is the total. A process takes a row at its first count by locking one byte of a nameless file. The kernel
unlocks it when the process ends, in whatever way; the next one continues from the values of the row. So no count is
lost with a process that is killed, and no two processes ever write to one row.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from tempfile import TemporaryFile

ROWS = 512
"""How many processes can count at the same time: one for each job that runs, the dispatcher, and their parent."""


class Counters:
    """A list of numbers that begin at zero and only grow."""

    def __init__(self, width: int, rows: int = ROWS) -> None:
        """Make room for `width` numbers. Raises OSError."""
        self._width = width
        self._rows = rows
        # Eight bytes each, aligned: a process that is killed has written a number or not, never half of it.
        self._cells = memoryview(mmap.mmap(-1, width * rows * 8)).cast("d")
        self._locks = _nameless_file()
        self._owner: int | None = None
        self._first: int | None = None

    def add(self, place: int, amount: float) -> None:
        """Add to one of the numbers. From one thread only of each process."""
        process = os.getpid()
        if self._owner != process:  # forked since
            self._first = self._take_row()
            self._owner = process
        if self._first is not None:
            self._cells[self._first + place] += amount

    def totals(self) -> list[float]:
        """Sum up what all processes have added."""
        return [sum(self._cells[place :: self._width]) for place in range(self._width)]

    def _take_row(self) -> int | None:
        """Lock a free row and return its first index, or None if there is none: work matters more than its count."""
        for row in range(self._rows):
            try:
                fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, row)
            except OSError:
                continue  # a living process has it
            return row * self._width
        return None


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):  # on Linux
        return os.memfd_create("fleetbeat-counters")  # in a container there may be no folder to write to
    with TemporaryFile() as file:
        return os.dup(file.fileno())

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from fleetbeat_worker.telemetry.shared_counters import Counters
from helpers import eventually
from processes import end_of, fork


def adding(counters: Counters, times: int) -> Callable[[], None]:
    """Return a function that adds 1 to the first number and 0.5 to the second, so many times."""

    def add() -> None:
        for _ in range(times):
            counters.add(0, 1)
            counters.add(1, 0.5)

    return add


def test_processes_that_count_at_once() -> None:
    """The totals have all that several processes and their parent add at the same time."""
    counters = Counters(3)
    running = [fork(adding(counters, 20_000)) for _ in range(6)]
    adding(counters, 20_000)()
    assert [end_of(process) for process in running] == [0] * 6
    assert counters.totals() == [140_000, 70_000, 0]


def test_a_killed_process_loses_nothing() -> None:
    """What a process added before SIGKILL stays, and the next one continues from it in the same row."""
    counters = Counters(2, rows=1)

    def add_and_die() -> None:
        adding(counters, 10)()
        os.kill(os.getpid(), signal.SIGKILL)

    assert [end_of(fork(add_and_die)) for _ in range(3)] == [-signal.SIGKILL] * 3
    assert counters.totals() == [30, 15]


def test_no_two_processes_share_a_row() -> None:
    """A row is locked as long as its process lives; a process that finds no free one works uncounted."""
    counters = Counters(2, rows=1)
    read, write = os.pipe()

    def add_and_wait() -> None:
        adding(counters, 1)()
        os.close(write)
        os.read(read, 1)

    first = fork(add_and_wait)
    eventually(lambda: counters.totals() == [1, 0.5])
    assert end_of(fork(adding(counters, 5))) == 0
    assert counters.totals() == [1, 0.5]
    os.close(write)
    assert end_of(first) == 0
    os.close(read)
    assert end_of(fork(adding(counters, 5))) == 0
    assert counters.totals() == [6, 3]


def test_a_forked_child_takes_a_row_of_its_own() -> None:
    """A worker that has counted forks its job, which counts beside it, not in its place."""
    counters = Counters(2, rows=2)

    def worker() -> None:
        counters.add(0, 1)
        job = fork(adding(counters, 1000))
        adding(counters, 1000)()
        end_of(job)

    assert end_of(fork(worker)) == 0
    assert counters.totals() == [2001, 1000]

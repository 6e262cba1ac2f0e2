"""Processes that a test may kill: forked, so that they start at once, each with clients and engines of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkProcess

import psutil

from fleetbeat_shared.connection import connect
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.ingest.job import Ingest
from fleetbeat_worker.workers.pool import Pool
from helpers import eventually

_FORK = multiprocessing.get_context("fork")


def fork(main: Callable[[], object]) -> ForkProcess:
    """Start a process that does something. The caller's engines hold no connection at this time."""
    process = _FORK.Process(target=main)
    process.start()
    return process


def end_of(process: ForkProcess) -> int:
    """Wait for a process; return its exit code, or minus the signal that killed it."""
    process.join(30)
    if process.exitcode is None:
        process.kill()
        process.join()
        message = "a process didn't end in time"
        raise AssertionError(message)
    return process.exitcode


def ingest_once(settings: Settings, consumer: str, before: Callable[[], None] = lambda: None) -> int:
    """Run an ingest job in a process of its own, with `before` called in it; return its exit code."""

    def main() -> None:
        before()
        client = connect(settings.redis_url, timeout_seconds=5)
        Ingest(client, open_engine(settings.sql_url), settings, consumer).run(10)

    return end_of(fork(main))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def children(handle: psutil.Process, *, recursive: bool = False) -> list[psutil.Process]:
    """Return a process's children, or all that it and they started.

    Asked anew each time: psutil compares the start times, by a wall clock that may have been set in between.
    """
    return psutil.Process(handle.pid).children(recursive=recursive)


def _run_pool(settings: Settings, workers: int) -> None:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    settings.export(os.environ)
    pool = Pool(settings, workers)
    pool.start()
    while not asked:
        pool.supervise(0.1)
    pool.stop()


@contextmanager
def running_pool(settings: Settings, workers: int = 1) -> Iterator[psutil.Process]:
    """Run what `fleetbeat worker` runs; afterwards all its processes are gone."""
    process = fork(lambda: _run_pool(settings, workers))
    handle = psutil.Process(process.pid)
    family: list[psutil.Process] = []
    try:
        eventually(lambda: len(children(handle)) == workers + 2)  # with the dispatcher and the controller
        yield handle
        if process.is_alive():
            family = children(handle, recursive=True)
            process.terminate()
            assert end_of(process) == 0
    finally:
        family += [handle, *children(handle, recursive=True)] if process.is_alive() else []
        for member in family:
            if member.is_running():
                member.kill()
        psutil.wait_procs(family, timeout=10)
        process.join(10)


def kill_family(handle: psutil.Process) -> None:
    """Kill a process and all that it started, at once, as when a machine goes down."""
    family = [handle, *children(handle, recursive=True)]
    for member in family:
        member.suspend()
    for member in family:
        member.kill()

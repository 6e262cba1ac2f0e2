"""A pool: one dispatcher and some RQ workers, each a process, kept running by their parent.

The parent imports what the jobs need once and forks; it makes no client and no engine before it does. A child that ends
by itself (RQ's workers do when Redis fails them) is started again, after a pause that grows.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from fleetbeat_shared.connection import connect, reason
from fleetbeat_worker import jobs
from fleetbeat_worker.dispatcher import run_dispatcher
from fleetbeat_worker.log import logger
from fleetbeat_worker.metrics import RESTARTS, count
from fleetbeat_worker.rq_worker import run_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkProcess

    from fleetbeat_shared.settings import Settings
    from fleetbeat_worker.exporter import Exporter

LIVED_LONG_SECONDS = 10.0
"""A child that lived this long is started again at once."""
LONGEST_PAUSE_SECONDS = 5.0
STOP_SECONDS = 30.0
"""How long a child may take to finish its batch when the pool stops."""

_STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

_FORK = multiprocessing.get_context("fork")


@dataclass
class _Child:
    """A place in the pool, and the process that fills it now."""

    role: str
    main: Callable[[Settings], None]
    process: ForkProcess | None = None
    started_at: float = 0.0
    start_again_at: float = 0.0
    quick_ends: int = field(default=0)


class Pool:
    """The processes of one `fleetbeat worker`."""

    def __init__(self, settings: Settings, workers: int, exporter: Exporter | None = None) -> None:
        """Prepare for a number of RQ workers, and for a process that serves metrics; `start` starts them."""
        self._settings = settings
        self._children = [_Child("dispatcher", _dispatch), *(_Child("worker", _work) for _ in range(workers))]
        self._exporter = exporter
        if exporter is not None:
            self._children.append(_Child("exporter", exporter.run))
        # Its writing end is held by the parent alone: when the parent is gone, however it went, children read its end.
        self._alive_read, self._alive_write = os.pipe()

    def start(self) -> None:
        """Start all processes."""
        for child in self._children:
            self._start(child)

    def look_after(self, seconds: float) -> None:
        """Wait for a time, or until a child ends; start again what has ended."""
        waiting = [child.process.sentinel for child in self._children if child.process is not None]
        soonest = min((child.start_again_at for child in self._children if child.process is None), default=None)
        if soonest is not None:
            seconds = max(0.0, min(seconds, soonest - time.monotonic()))
        if waiting:
            wait(waiting, timeout=seconds)
        else:
            time.sleep(seconds)
        for child in self._children:
            self._restart_if_ended(child)

    def stop(self) -> None:
        """End all processes in order: each finishes what it is at, within a time."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        ends_at = time.monotonic() + STOP_SECONDS
        for process in running:
            process.join(max(0.0, ends_at - time.monotonic()))
            if process.is_alive():
                logger.warning("A process doesn't end and is killed", extra={"pid": process.pid})
                process.kill()
                process.join()
        for child in self._children:
            child.process = None
        if self._exporter is not None:
            self._exporter.close()
        os.close(self._alive_read)
        os.close(self._alive_write)

    def _start(self, child: _Child) -> None:
        child.started_at = time.monotonic()
        not_its_own = self._exporter if child.role != "exporter" else None
        arguments = (child.main, self._settings, self._alive_read, self._alive_write, not_its_own)
        child.process = _FORK.Process(target=_child_main, args=arguments, name=f"fleetbeat-{child.role}")
        # A signal between the fork and the moment that the child is ready for it would be lost on the parent's handler.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            child.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _restart_if_ended(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is not None and not child.process.is_alive():
            child.process.join()
            lived = now - child.started_at
            child.quick_ends = 0 if lived > LIVED_LONG_SECONDS else child.quick_ends + 1
            pause = min(LONGEST_PAUSE_SECONDS, 0.1 * 2**child.quick_ends) if child.quick_ends else 0.0
            fields = {"role": child.role, "pid": child.process.pid, "exit_code": child.process.exitcode}
            logger.warning("A process ended and is started again", extra=fields)
            count(RESTARTS)
            child.process = None
            child.start_again_at = now + pause
        if child.process is None and now >= child.start_again_at:
            self._start(child)


def _child_main(
    main: Callable[[Settings], None], settings: Settings, alive_read: int, alive_write: int, exporter: Exporter | None
) -> None:
    os.close(alive_write)
    if exporter is not None:
        exporter.close()  # a worker that outlives the pool to end its batch would keep the port from the next one
    os.setpgid(0, 0)  # Ctrl-C in a terminal reaches the parent alone, which ends us in order
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    threading.Thread(target=_end_with_parent, args=(alive_read,), name="parent", daemon=True).start()
    main(settings)


def _end_with_parent(alive_read: int) -> None:
    os.read(alive_read, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _dispatch(settings: Settings) -> None:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    run_dispatcher(settings, lambda: bool(asked))


def _work(settings: Settings) -> None:
    name = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(2)}"
    client = connect(settings.redis_url, timeout_seconds=jobs.WORKER_TIMEOUT_SECONDS, name=name)
    pause = 0.1
    while True:
        with suppress(RedisError, OSError):  # the dispatcher tells about it, once for all
            client.ping()
            break
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
    try:
        run_worker(client, name)
    except (RedisError, OSError) as error:
        sys.exit(f"RQ's worker {name} ended, as Redis failed it ({reason(error)}).")

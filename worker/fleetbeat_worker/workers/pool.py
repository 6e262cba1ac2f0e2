"""A pool: a dispatcher, a steward and some RQ workers, each a process, kept running by their parent.

The parent imports what the jobs need, rehearses them (see `rehearsal`) and forks; it holds no client and no engine when
it does. A child that ends by itself (RQ's workers do when Redis fails them) is started again, after a pause that grows.
How many workers there should be can change while the pool runs: the steward hears it (see `steward`). A surplus one is
asked to end, finishes its batch, and isn't started again; the others go on meanwhile.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from redis.exceptions import RedisError

from fleetbeat_shared.connection import connect
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker import rq_queue
from fleetbeat_worker.rules.backoff import backoff, backoff_seconds
from fleetbeat_worker.telemetry.exporter import Exporter
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import RESTARTS, count
from fleetbeat_worker.telemetry.problems import Complaint, PipeRelay, Troubles, relay_through
from fleetbeat_worker.workers.autoscale import Bounds
from fleetbeat_worker.workers.controller import Orders, Report, new_mandate, run_steward
from fleetbeat_worker.workers.dispatcher import REDIS_IS_BACK, redis_trouble, run_dispatcher
from fleetbeat_worker.workers.rq_worker import run_worker
from fleetbeat_worker.workers.warmup import rehearse

LIVED_LONG_SECONDS = 10.0
"""A child that lived this long is started again at once."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
"""How long to wait before a child that ended early is started again, and between tries to reach Redis."""
STOP_SECONDS = 30.0
"""How long a child may take to finish its batch when it is asked to end."""
REDIS_FAILED = 75
"""The exit status of a worker that ended because Redis failed it; then it has told so."""

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
    ends_by: float = 0.0
    """When it is killed, once it was asked to end."""


class Pool:
    """The processes of one `fleetbeat worker`."""

    def __init__(
        self, settings: Settings, workers: int, bounds: Bounds | None = None, exporter: Exporter | None = None
    ) -> None:
        """Prepare for a number of RQ workers, and for a process that serves metrics; `start` starts them.

        Within `bounds`, the number of workers follows the lag.
        """
        self._settings = settings
        self._mandate = new_mandate(bounds or Bounds(workers, workers), workers)
        self._steward = _Child("steward", self._keep_in_touch)
        self._children = [_Child("dispatcher", _dispatch), self._steward]
        self._children += [_Child("worker", _work) for _ in range(workers)]
        self._leaving: list[_Child] = []
        self._to_steward: Connection | None = None
        self._to_parent: Connection | None = None
        self._exporter = exporter
        if exporter is not None:
            self._children.append(_Child("exporter", exporter.run))
        # Its writing end is held by the parent alone: when the parent is gone, however it went, children read its end.
        self._alive_read, self._alive_write = os.pipe()
        self._troubles = Troubles()
        self._told_read, self._told_write = os.pipe()
        os.set_blocking(self._told_read, False)
        os.set_blocking(self._told_write, False)

    def start(self) -> None:
        """Start all processes."""
        rehearse()
        for child in self._children:
            self._start(child)

    def scale(self, workers: int) -> None:
        """Change the number of RQ workers: start more, or ask surplus ones to end when their batch is done."""
        present = self._workers()
        for _ in range(workers - len(present)):
            child = _Child("worker", _work)
            self._children.append(child)
            self._start(child)
        for child in present[workers:]:
            self._children.remove(child)
            if child.process is not None:
                child.process.terminate()
                child.ends_by = time.monotonic() + STOP_SECONDS
                self._leaving.append(child)

    def look_after(self, seconds: float) -> None:
        """Wait for a time, or until something happens; start again what has ended."""
        waiting: list[int | Connection] = [self._told_read]
        waiting += [child.process.sentinel for child in (*self._children, *self._leaving) if child.process is not None]
        waiting += [self._to_steward] if self._to_steward is not None else []
        soonest = min((child.start_again_at for child in self._children if child.process is None), default=None)
        if soonest is not None:
            seconds = max(0.0, min(seconds, soonest - time.monotonic()))
        wait(waiting, timeout=seconds)
        self._troubles.read(self._told_read)
        self._troubles.review()
        self._hear_steward()
        for child in self._children:
            self._restart_if_ended(child)
        self._leaving = [child for child in self._leaving if not _has_left(child)]

    def stop(self) -> None:
        """End all processes in order: each finishes what it is at, within a time."""
        now = time.monotonic()
        for child in self._children:
            if child.process is not None:
                child.process.terminate()
                child.ends_by = now + STOP_SECONDS
        self._hang_up()  # or the steward would wait for an answer
        # Those that are leaving were asked already; RQ's worker takes a second request for an order to drop its job.
        for child in (*self._children, *self._leaving):
            while child.process is not None and not _has_left(child):
                child.process.join(max(0.0, child.ends_by - time.monotonic()))
        self._troubles.read(self._told_read)
        self._leaving.clear()
        if self._exporter is not None:
            self._exporter.close()
        for file in (self._alive_read, self._alive_write, self._told_read, self._told_write):
            os.close(file)

    def _workers(self) -> list[_Child]:
        return [child for child in self._children if child.role == "worker"]

    def _hear_steward(self) -> None:
        """Do what the steward asks for, and tell it what is there; one that died is heard no more."""
        if self._to_steward is None:
            return
        try:
            if not self._to_steward.poll():
                return
            orders = self._to_steward.recv()
            if isinstance(orders, Orders):
                self._mandate = replace(self._mandate, bounds=orders.bounds, count=orders.count)
                self.scale(orders.count)
                processes = [child.process for child in (*self._workers(), *self._leaving)]
                self._to_steward.send(Report(tuple(process.pid or 0 for process in processes if process is not None)))
        except (EOFError, OSError):
            self._hang_up()

    def _hang_up(self) -> None:
        if self._to_steward is not None:
            self._to_steward.close()
            self._to_steward = None

    def _keep_in_touch(self, settings: Settings) -> None:
        asked = _asked_to_stop()
        if self._to_parent is not None:
            run_steward(settings, self._mandate, self._to_parent, asked)

    def _start(self, child: _Child) -> None:
        child.started_at = time.monotonic()
        if child is self._steward:
            self._hang_up()
            self._to_steward, self._to_parent = _FORK.Pipe()
        not_its_own = self._exporter if child.role != "exporter" else None
        parents = [held for held in (self._to_steward, not_its_own) if held is not None]
        prepare = partial(_prepare_child, self._alive_read, self._alive_write, self._told_write, parents)
        arguments = (prepare, child.main, self._settings)
        child.process = _FORK.Process(target=_child_main, args=arguments, name=f"fleetbeat-{child.role}")
        # A signal between the fork and the moment that the child is ready for it would be lost on the parent's handler.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            child.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if self._to_parent is not None:  # the steward alone holds it, so that the pipe ends with it
                self._to_parent.close()
                self._to_parent = None

    def _restart_if_ended(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is not None and not child.process.is_alive():
            child.process.join()
            lived = now - child.started_at
            child.quick_ends = 0 if lived > LIVED_LONG_SECONDS else child.quick_ends + 1
            fields = {"role": child.role, "pid": child.process.pid, "exit_code": child.process.exitcode}
            level = logging.DEBUG if child.process.exitcode == REDIS_FAILED else logging.WARNING
            logger.log(level, "A process ended and is started again", extra=fields)
            count(RESTARTS)
            child.process = None
            child.start_again_at = now + backoff_seconds(child.quick_ends, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        if child.process is None and now >= child.start_again_at:
            self._start(child)


def _has_left(child: _Child) -> bool:
    """Return whether a process that was asked to end has ended; kill it if its time is up."""
    process = child.process
    if process is None:
        return True
    if process.is_alive():
        if time.monotonic() < child.ends_by:
            return False
        logger.warning("A process doesn't end and is killed", extra={"pid": process.pid})
        process.kill()
    process.join()
    child.process = None
    return True


def _child_main(prepare: Callable[[], None], main: Callable[[Settings], None], settings: Settings) -> None:
    prepare()
    main(settings)


def _prepare_child(
    alive_read: int, alive_write: int, told_write: int, parents: Sequence[Connection | Exporter]
) -> None:
    os.close(alive_write)
    for held in parents:
        # The pipe to the steward ends with the parent alone; and a worker that outlives the pool, to end its batch,
        # would keep the port from the next one.
        held.close()
    os.setpgid(0, 0)  # Ctrl-C in a terminal reaches the parent alone, which ends us in order
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    relay_through(PipeRelay(told_write))
    threading.Thread(target=_end_with_parent, args=(alive_read,), name="parent", daemon=True).start()


def _end_with_parent(alive_read: int) -> None:
    os.read(alive_read, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _asked_to_stop() -> Callable[[], bool]:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    return lambda: bool(asked)


def _dispatch(settings: Settings) -> None:
    run_dispatcher(settings, _asked_to_stop())


def _work(settings: Settings) -> None:
    name = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(2)}"
    client = connect(settings.redis_url, timeout_seconds=rq_queue.WORKER_TIMEOUT_SECONDS, name=name)
    complaint = Complaint("redis", "worker")
    for pause in backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS):
        with suppress(RedisError, OSError):  # the dispatcher tells about it
            client.ping()
            break
        time.sleep(pause)
    complaint.over(REDIS_IS_BACK)
    try:
        run_worker(client, name)
    except (RedisError, OSError) as error:
        complaint.trouble(redis_trouble(settings, error))
        sys.exit(REDIS_FAILED)

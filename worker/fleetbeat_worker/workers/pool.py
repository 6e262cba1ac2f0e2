"""Pool: a dispatcher, a controller and some RQ workers, each a process, kept running by their parent.

The parent imports what the jobs need, warms up (see `warmup`) and forks; it holds no client and no engine when it does.
A child that ends unasked (RQ's workers do when Redis fails) is restarted, after a pause that doubles. The number of
workers can change while the pool runs: the controller requests it. A surplus worker is asked to end, finishes its
batch, and isn't restarted; the others continue meanwhile.
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
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.server import connect_worker
from fleetbeat_worker.jobs import sigterm_flag
from fleetbeat_worker.rules.backoff import backoff, backoff_seconds
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import RESTARTS, count
from fleetbeat_worker.telemetry.problems import ProblemLog, ProblemReporter, report_through
from fleetbeat_worker.workers.autoscale import Bounds
from fleetbeat_worker.workers.controller import RunningWorkers, TargetCount, new_pool_spec, run_controller
from fleetbeat_worker.workers.dispatcher import REDIS_IS_BACK, describe_redis_failure, run_dispatcher
from fleetbeat_worker.workers.rq_worker import run_worker
from fleetbeat_worker.workers.warmup import warm_up

if TYPE_CHECKING:
    from fleetbeat_worker.telemetry.exporter import Exporter  # it imports an HTTP server

LIVED_LONG_SECONDS = 10.0
"""A child that lived this long is restarted at once."""
FIRST_PAUSE_SECONDS = 0.2
"""How long to wait before a child that ended early is restarted, and between tries to reach Redis."""
LONGEST_PAUSE_SECONDS = 5.0
STOP_SECONDS = 30.0
"""How long a child may take to finish its batch when it is asked to end."""
REDIS_FAILED = 75
"""The exit status of a worker that ended because Redis failed, and that has reported so."""

_STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

_FORK = multiprocessing.get_context("fork")


@dataclass
class _Child:
    """A place in the pool, and the process that fills it now."""

    role: str
    main: Callable[[Settings], None]
    process: ForkProcess | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    early_ends: int = 0
    """How often in a row it ended early."""
    ends_by: float = 0.0
    """When it is killed, once it was asked to end."""

    def ask_to_end(self) -> None:
        """Send SIGTERM, if it runs."""
        if self.process is not None:
            self.process.terminate()
            self.ends_by = time.monotonic() + STOP_SECONDS

    def has_ended(self) -> bool:
        """Find out whether it has ended after it was asked to; kill it if its time is up."""
        if self.process is None:
            return True
        if self.process.is_alive():
            if time.monotonic() < self.ends_by:
                return False
            logger.warning("A process doesn't end and is killed", extra={"pid": self.process.pid})
            self.process.kill()
        self.process.join()
        self.process = None
        return True


class Pool:
    """The processes of one `fleetbeat worker`."""

    def __init__(
        self, settings: Settings, workers: int, bounds: Bounds | None = None, exporter: Exporter | None = None
    ) -> None:
        """Prepare for a number of RQ workers, and for a process that serves metrics; `start` starts them.

        Within `bounds`, the number of workers follows the lag.
        """
        self._settings = settings
        self._spec = new_pool_spec(bounds or Bounds(workers, workers), workers)
        self._controller = _Child("controller", self._control)
        self._children = [_Child("dispatcher", _dispatch), self._controller]
        self._children += [_Child("worker", _work) for _ in range(workers)]
        self._ending: list[_Child] = []
        self._to_controller: Connection | None = None
        self._to_parent: Connection | None = None
        self._exporter = exporter
        if exporter is not None:
            self._children.append(_Child("exporter", exporter.run))
        # The parent alone holds the writing end: when it is gone, in whatever way, its children read the pipe's end.
        self._alive_read, self._alive_write = os.pipe()
        self._problems = ProblemLog()
        self._problems_read, self._problems_write = os.pipe()
        os.set_blocking(self._problems_read, False)
        os.set_blocking(self._problems_write, False)

    def start(self) -> None:
        """Start all processes."""
        warm_up()
        for child in self._children:
            self._start(child)

    def scale(self, workers: int) -> None:
        """Change the number of RQ workers: start more, or ask surplus ones to end after their batch."""
        present = self._workers()
        for _ in range(workers - len(present)):
            child = _Child("worker", _work)
            self._children.append(child)
            self._start(child)
        for child in present[workers:]:
            self._children.remove(child)
            child.ask_to_end()
            self._ending.append(child)

    def supervise(self, seconds: float) -> None:
        """Wait for a time, or until something happens; restart what has ended."""
        events: list[int | Connection] = [self._problems_read]
        events += [child.process.sentinel for child in (*self._children, *self._ending) if child.process is not None]
        events += [self._to_controller] if self._to_controller is not None else []
        soonest = min((child.restart_at for child in self._children if child.process is None), default=None)
        if soonest is not None:
            seconds = max(0.0, min(seconds, soonest - time.monotonic()))
        wait(events, timeout=seconds)
        self._problems.read(self._problems_read)
        self._problems.drop_ended_processes()
        self._answer_controller()
        for child in self._children:
            self._restart_if_ended(child)
        self._ending = [child for child in self._ending if not child.has_ended()]

    def stop(self) -> None:
        """End all processes in order: each may finish its batch, within a time."""
        for child in self._children:
            child.ask_to_end()
        self._close_controller_pipe()  # or the controller would wait for an answer
        # Those in `_ending` were asked already; RQ's worker takes a second request for an order to drop its job.
        for child in (*self._children, *self._ending):
            while child.process is not None and not child.has_ended():
                child.process.join(max(0.0, child.ends_by - time.monotonic()))
        self._problems.read(self._problems_read)
        self._ending.clear()
        if self._exporter is not None:
            self._exporter.close()
        for pipe in (self._alive_read, self._alive_write, self._problems_read, self._problems_write):
            os.close(pipe)

    def _workers(self) -> list[_Child]:
        return [child for child in self._children if child.role == "worker"]

    def _answer_controller(self) -> None:
        """Apply the number of workers that the controller requests, and send it the pids that run."""
        if self._to_controller is None:
            return
        try:
            if not self._to_controller.poll():
                return
            target = self._to_controller.recv()
            if isinstance(target, TargetCount):
                self._spec = replace(self._spec, bounds=target.bounds, count=target.count)
                self.scale(target.count)
                processes = [child.process for child in (*self._workers(), *self._ending)]
                pids = tuple(process.pid or 0 for process in processes if process is not None)
                self._to_controller.send(RunningWorkers(pids))
        except (EOFError, OSError):  # it died
            self._close_controller_pipe()

    def _close_controller_pipe(self) -> None:
        if self._to_controller is not None:
            self._to_controller.close()
            self._to_controller = None

    def _control(self, settings: Settings) -> None:
        if self._to_parent is not None:
            with sigterm_flag() as stop_requested:
                run_controller(settings, self._spec, self._to_parent, stop_requested)

    def _start(self, child: _Child) -> None:
        child.started_at = time.monotonic()
        if child is self._controller:
            self._close_controller_pipe()
            self._to_controller, self._to_parent = _FORK.Pipe()
        unused_exporter = self._exporter if child.role != "exporter" else None
        parents = [held for held in (self._to_controller, unused_exporter) if held is not None]
        prepare = partial(_prepare_child, self._alive_read, self._alive_write, self._problems_write, parents)
        arguments = (prepare, child.main, self._settings)
        child.process = _FORK.Process(target=_child_main, args=arguments, name=f"fleetbeat-{child.role}")
        # A signal between the fork and the moment when the child is ready for it would reach the parent's handler.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            child.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if self._to_parent is not None:  # the controller alone holds it, so that the pipe ends with it
                self._to_parent.close()
                self._to_parent = None

    def _restart_if_ended(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is not None and not child.process.is_alive():
            child.process.join()
            child.early_ends = 0 if now - child.started_at > LIVED_LONG_SECONDS else child.early_ends + 1
            fields = {"role": child.role, "pid": child.process.pid, "exit_code": child.process.exitcode}
            level = logging.DEBUG if child.process.exitcode == REDIS_FAILED else logging.WARNING
            logger.log(level, "A process ended and is restarted", extra=fields)
            count(RESTARTS)
            child.process = None
            child.restart_at = now + backoff_seconds(child.early_ends, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        if child.process is None and now >= child.restart_at:
            self._start(child)


def _child_main(prepare: Callable[[], None], main: Callable[[Settings], None], settings: Settings) -> None:
    prepare()
    main(settings)


def _prepare_child(
    alive_read: int, alive_write: int, problems_write: int, parents: Sequence[Connection | Exporter]
) -> None:
    os.close(alive_write)
    for held in parents:
        # The pipe to the controller must end with the parent; and a worker that outlives the pool, to finish its
        # batch, would keep the metrics port from the next one.
        held.close()
    os.setpgid(0, 0)  # Ctrl-C in a terminal reaches the parent alone, which ends us in order
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    report_through(problems_write)
    threading.Thread(target=_end_with_parent, args=(alive_read,), name="parent", daemon=True).start()


def _end_with_parent(alive_read: int) -> None:
    os.read(alive_read, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _dispatch(settings: Settings) -> None:
    with sigterm_flag() as stop_requested:
        run_dispatcher(settings, stop_requested)


def _work(settings: Settings) -> None:
    name = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(2)}"
    client = connect_worker(settings, name)
    problem = ProblemReporter("redis", "worker")
    for pause in backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS):
        with suppress(RedisError, OSError):  # the dispatcher reports it
            client.ping()
            break
        time.sleep(pause)
    problem.resolve(REDIS_IS_BACK)
    try:
        run_worker(client, name)
    except (RedisError, OSError) as error:
        problem.report(describe_redis_failure(settings, error))
        sys.exit(REDIS_FAILED)

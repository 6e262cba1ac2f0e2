"""Dispatcher: watches the inbox and the clock, and enqueues RQ jobs.

Each pool of workers has one, in a process of its own. They elect one by a Redis lock with a short time to live; if that
one dies, another takes over within seconds. When Redis is too full for RQ, which needs memory to enqueue, each
dispatcher does the work itself, elected or not: reading and acknowledging need no memory.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import cast

from redis import Redis
from redis.exceptions import LockError, OutOfMemoryError, RedisError, ResponseError
from rq.utils import now as rq_now
from sqlalchemy.exc import SQLAlchemyError

from fleetbeat_shared.connection import place, reason
from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.redis_keys import DISPATCHER_LOCK, OLD_ROWS
from fleetbeat_shared.settings import Settings
from fleetbeat_worker import jobs
from fleetbeat_worker.broker.inbox import Demand, Inbox, is_missing
from fleetbeat_worker.broker.rq_queue import open_queue, read_waiting_ids, read_workers
from fleetbeat_worker.broker.server import connect_worker, probe_write, read_eviction_warning
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.ingest.job import DATABASE_IS_BACK, Ingest
from fleetbeat_worker.notifications.due import are_due
from fleetbeat_worker.rules.backoff import backoff
from fleetbeat_worker.sweep.job import sweep
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.problems import ProblemReporter

LOCK_SECONDS = 5.0
"""How long after its death a dispatcher still holds the lock."""
RENEW_SECONDS = 1.0
"""How often the lock is renewed, and how often Redis's room, old rows and notifications are checked."""
POLL_SECONDS = 0.1
"""How often the inbox is checked while a job reads it; while none does, an arrival wakes the dispatcher."""
LONGEST_PAUSE_SECONDS = 5.0
"""How long to wait at most between two tries to reach Redis."""
SCALE_SECONDS = 1.0
"""How often further ingest jobs are added for a backlog."""
FAILED_JOB_SECONDS = 3600
"""How long a failed job can be looked at. RQ's year would keep one for every sweep that failed."""
SWEEP_TIMEOUT_SECONDS = 300
PRUNE_SECONDS = 60.0
"""How often old rows are searched for."""
PRUNE_AGAIN_SECONDS = 2.0
"""How soon a job follows one that left old rows: a worker that is never idle has half a second for each."""
PRUNE_TIMEOUT_SECONDS = 300
NOTIFY_AGAIN_SECONDS = 2.0
"""How soon another job sends the notifications that are left."""
NOTIFY_TIMEOUT_SECONDS = 100
INGEST_TIMEOUT_SECONDS = 600
"""Beyond its slice: a job may wait long for a lock, but not for ever."""
IDLE_WORKER_SECONDS = 25.0
"""A worker counts as idle if its last heartbeat is not older: an idle one sends one every 15 s."""

REDIS_IS_BACK = "Redis is available again; work continues."


class Dispatcher:
    """One dispatcher, in its own process."""

    def __init__(self, client: Redis, settings: Settings, stop: Callable[[], bool]) -> None:
        """Use a client of its own; `stop` is asked again and again whether to end."""
        self._client = client
        self._settings = settings
        self._stop = stop
        self._inbox = Inbox(client)
        self._queue = open_queue(client)
        self._lock = client.lock(DISPATCHER_LOCK, timeout=LOCK_SECONDS, blocking=False, thread_local=False)
        self._is_elected = False
        self._renew_at = 0.0
        self._sweep_at = 0.0
        self._pruned_at = time.monotonic()
        self._old_rows_left = False
        self._next: dict[str, float] = {}
        self._redis_problem = ProblemReporter("redis", "dispatcher")
        self._memory_problem = ProblemReporter("full", "dispatcher")
        self._database_problem = ProblemReporter("database", "dispatcher")

    def run(self) -> None:
        """Dispatch until asked to stop, whatever happens to Redis."""
        pauses = backoff(POLL_SECONDS, LONGEST_PAUSE_SECONDS)
        while not self._stop():
            try:
                self._step()
            except OutOfMemoryError:
                self._work_directly()
            except (RedisError, OSError) as error:
                self._redis_problem.report(describe_redis_failure(self._settings, error))
                self._is_elected = False
                time.sleep(next(pauses))
            else:
                pauses = backoff(POLL_SECONDS, LONGEST_PAUSE_SECONDS)
        self._resign()

    def _step(self) -> None:
        if not self._elect():
            time.sleep(RENEW_SECONDS)
            return
        self._check_memory()
        if time.monotonic() >= self._sweep_at:
            self._enqueue_sweep()
            self._sweep_at = time.monotonic() + self._settings.sweep_seconds
        demand = self._read_demand()
        self._enqueue_prune(demand)
        self._enqueue_notify()
        self._enqueue_ingest(demand)
        until_sweep = max(0.0, self._sweep_at - time.monotonic())
        if demand.readers or demand.undelivered or demand.pending:
            time.sleep(min(POLL_SECONDS, until_sweep))
        elif until_sweep:
            self._inbox.wait_for_entry(min(RENEW_SECONDS, until_sweep))

    def _elect(self) -> bool:
        """Acquire or renew the lock; return whether this dispatcher holds it."""
        now = time.monotonic()
        if self._is_elected and now < self._renew_at:
            return True
        was_elected = self._is_elected
        try:
            self._is_elected = self._lock.reacquire() if was_elected else self._lock.acquire()
        except LockError:  # ours expired: this process, or Redis, stood still for too long
            self._is_elected = False
        if self._is_elected:
            self._renew_at = now + RENEW_SECONDS
        self._redis_problem.resolve(REDIS_IS_BACK)
        if self._is_elected and not was_elected and (warning := read_eviction_warning(self._client)):
            logger.warning(warning)
        return self._is_elected

    def _resign(self) -> None:
        if self._is_elected:
            try:
                self._lock.release()
            except (RedisError, OSError) as error:
                logger.debug("The dispatcher's lock was not released and will expire: %s", type(error).__name__)

    def _check_memory(self) -> None:
        """Find out that Redis is full also while jobs wait, so that none is enqueued: no worker can take them then.

        Raises OutOfMemoryError.
        """
        if self._is_due("memory") and read_waiting_ids(self._client):
            probe_write(self._client)

    def _read_demand(self) -> Demand:
        try:
            return self._inbox.demand(self._settings.lease_seconds)
        except ResponseError as error:
            if not is_missing(error):
                raise
            self._inbox.create_group()
            return self._inbox.demand(self._settings.lease_seconds)

    def _enqueue_sweep(self) -> None:
        # Not at the front: an ingest job makes room after its batch, and there may always be a sweep.
        if not self._count_waiting("sweep"):
            self._enqueue(jobs.sweep, SWEEP_TIMEOUT_SECONDS)

    def _enqueue_prune(self, demand: Demand) -> None:
        if self._is_due("old rows"):
            self._old_rows_left = bool(self._client.exists(OLD_ROWS))
        now = time.monotonic()
        behind = demand.undelivered >= self._settings.batch_size
        if prune_is_due(now - self._pruned_at, old_rows_left=self._old_rows_left, behind=behind):
            self._pruned_at = now
            if not self._count_waiting("prune") and not self._count_started("prune"):
                self._enqueue(jobs.prune, PRUNE_TIMEOUT_SECONDS)

    def _enqueue_notify(self) -> None:
        if not self._is_due("notify") or not are_due(self._client):
            return
        if not self._count_waiting("notify") and not self._count_started("notify"):
            self._enqueue(jobs.notify, NOTIFY_TIMEOUT_SECONDS)
            self._next["notify"] = time.monotonic() + NOTIFY_AGAIN_SECONDS

    def _enqueue_ingest(self, demand: Demand) -> None:
        needed = int(demand.readers == 0 and (demand.undelivered > 0 or demand.expired))
        batches = demand.undelivered // self._settings.batch_size
        if batches > 1 and self._is_due("scale", SCALE_SECONDS):
            needed = max(needed, min(batches, self._count_idle_workers()))
        if needed:
            needed -= self._count_waiting("ingest")
        for _ in range(needed):
            self._enqueue(jobs.ingest, int(self._settings.sweep_seconds) + INGEST_TIMEOUT_SECONDS)

    def _enqueue(self, function: Callable[[], object], timeout_seconds: int) -> None:
        kind = function.__name__
        self._queue.enqueue_call(
            f"{function.__module__}.{kind}",
            job_id=f"{kind}-{time.time_ns() // 1000}",  # of its own, so that a failed job blocks no later one
            timeout=timeout_seconds,
            result_ttl=0,
            failure_ttl=FAILED_JOB_SECONDS,
        )
        self._memory_problem.resolve("Redis has free memory again; RQ continues.")

    def _is_due(self, check: str, every_seconds: float = RENEW_SECONDS) -> bool:
        """Decide whether a periodic check is due; if so, its next time is set."""
        now = time.monotonic()
        if now < self._next.get(check, 0.0):
            return False
        self._next[check] = now + every_seconds
        return True

    def _count_waiting(self, kind: str) -> int:
        return sum(job_id.startswith(f"{kind}-") for job_id in read_waiting_ids(self._client))

    def _count_started(self, kind: str) -> int:
        """Count the running jobs of a kind whose workers have sent a heartbeat lately."""
        # Not by RQ's get_job_ids, which also moves jobs between registries.
        key = self._queue.started_job_registry.key
        ids = cast("list[bytes]", self._client.zrangebyscore(key, time.time(), "+inf"))
        return sum(job_id.startswith(f"{kind}-".encode()) for job_id in ids)

    def _count_idle_workers(self) -> int:
        return sum(
            worker.get_state() == "idle"
            and worker.last_heartbeat is not None
            and (rq_now() - worker.last_heartbeat).total_seconds() < IDLE_WORKER_SECONDS
            for worker in read_workers(self._queue)
        )

    def _work_directly(self) -> None:
        """Ingest and sweep in this process."""
        self._memory_problem.report(
            f"Redis at {place(self._settings.redis_url)} is full, so RQ can't enqueue jobs; "
            "the inbox is drained without it. Give Redis more memory."
        )
        engine = open_engine(self._settings.sql_url)
        try:
            consumer = f"direct-{socket.gethostname()}-{os.getpid()}"
            Ingest(self._client, engine, self._settings, consumer, stop=self._stop).run(self._settings.sweep_seconds)
            if time.monotonic() >= self._sweep_at:
                self._sweep_at = time.monotonic() + self._settings.sweep_seconds
                sweep(self._client, engine, self._settings)
            self._database_problem.resolve(DATABASE_IS_BACK)
        except (DatabaseUnavailable, SQLAlchemyError) as error:
            self._database_problem.report(f"The inbox can't be drained: {str(error).splitlines()[0]}")
            time.sleep(RENEW_SECONDS)
        except (RedisError, OSError) as error:
            self._redis_problem.report(describe_redis_failure(self._settings, error))
            time.sleep(POLL_SECONDS)
        finally:
            engine.dispose()


def prune_is_due(since_seconds: float, *, old_rows_left: bool, behind: bool) -> bool:
    """Decide whether to prune, so many seconds after the last time.

    Each minute; sooner while old rows are left, as they come as fast as new ones do, but then only when no full batch
    waits in the inbox: messages go first.
    """
    if since_seconds >= PRUNE_SECONDS:
        return True
    return old_rows_left and not behind and since_seconds >= PRUNE_AGAIN_SECONDS


def describe_redis_failure(settings: Settings, error: BaseException) -> str:
    """Compose the message of a pool whose Redis fails."""
    where = place(settings.redis_url)
    return f"Redis at {where} can't be used ({reason(error)}). Workers wait for it; agents may continue."


def run_dispatcher(settings: Settings, stop: Callable[[], bool]) -> None:
    """Dispatch until asked to stop."""
    Dispatcher(connect_worker(settings, "fleetbeat-dispatcher"), settings, stop).run()

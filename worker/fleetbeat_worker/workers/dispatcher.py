"""The dispatcher: looks at the inbox and at the clock, and enqueues RQ jobs.

Each pool of workers has one, as a process of its own. They elect one by a Redis lock with a short life; if that one
dies, another takes over within seconds. When Redis is too full for RQ, which needs memory to enqueue, each dispatcher
does the work itself, elected or not: reading and acknowledging need no memory.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import cast

from redis import Redis
from redis.exceptions import LockError, OutOfMemoryError, RedisError, ResponseError
from rq import Queue
from rq.utils import now as rq_now
from sqlalchemy.exc import SQLAlchemyError

from fleetbeat_shared.connection import connect, place, reason
from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.redis_keys import DISPATCHER_LOCK, OLD_ROWS, QUEUE
from fleetbeat_shared.settings import Settings
from fleetbeat_worker import jobs
from fleetbeat_worker.broker import rq_queue
from fleetbeat_worker.broker.inbox import Demand, Inbox, is_missing
from fleetbeat_worker.broker.rq_queue import read_workers
from fleetbeat_worker.broker.server import eviction_warning, probe
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.ingest.job import DATABASE_IS_BACK, Ingest
from fleetbeat_worker.notifications.due import are_due
from fleetbeat_worker.rules.backoff import backoff
from fleetbeat_worker.sweep.job import sweep
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.problems import Complaint

LOCK_SECONDS = 5.0
"""How long a dispatcher that died is still believed to be there."""
RENEW_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 5.0
"""How long to wait at most between two tries to reach Redis."""
POLL_SECONDS = 0.1
"""How often the inbox is looked at while somebody reads it; while nobody does, an arrival wakes the dispatcher."""
SCALE_SECONDS = 1.0
"""How often further ingest jobs are added to a backlog."""
FAILED_JOB_SECONDS = 3600
"""How long a failed job can be looked at. RQ's year would keep one for every sweep that failed."""
SWEEP_TIMEOUT_SECONDS = 300
PRUNE_SECONDS = 60.0
"""How often old rows are looked for."""
PRUNE_AGAIN_SECONDS = 2.0
"""How soon a job goes on where the last one left old rows: a worker that is never idle has half a second for each."""
PRUNE_TIMEOUT_SECONDS = 300
NOTIFY_AGAIN_SECONDS = 2.0
"""How soon another job sends notifications: what isn't sent by one is sent by the next."""
NOTIFY_TIMEOUT_SECONDS = 100
INGEST_TIMEOUT_SECONDS = 600
"""Beyond its slice: a job can wait long for a lock, but not for ever."""
IDLE_WORKER_SECONDS = 25.0
"""An idle worker says at least every 15 s that it lives."""

REDIS_IS_BACK = "Redis is there again; work goes on."


class Dispatcher:
    """One dispatcher, in its own process."""

    def __init__(self, client: Redis, settings: Settings, stop: Callable[[], bool]) -> None:
        """Use a client of its own; `stop` is asked again and again whether to end."""
        self._client = client
        self._settings = settings
        self._stop = stop
        self._inbox = Inbox(client)
        self._queue = Queue(QUEUE, connection=client, serializer="json")
        self._lock = client.lock(DISPATCHER_LOCK, timeout=LOCK_SECONDS, blocking=False, thread_local=False)
        self._leads = False
        self._renew_at = 0.0
        self._sweep_at = 0.0
        self._pruned_at = time.monotonic()
        self._old_rows = False
        self._look_for_old_rows_at = 0.0
        self._look_for_room_at = 0.0
        self._scale_at = 0.0
        self._notify_at = 0.0
        self._redis_trouble = Complaint("redis", "dispatcher")
        self._full = Complaint("full", "dispatcher")
        self._database_trouble = Complaint("database", "dispatcher")

    def run(self) -> None:
        """Dispatch until asked to stop, whatever happens to Redis."""
        pauses = backoff(POLL_SECONDS, LONGEST_PAUSE_SECONDS)
        while not self._stop():
            try:
                self._step()
            except OutOfMemoryError:
                self._work_directly()
            except (RedisError, OSError) as error:
                self._redis_trouble.trouble(redis_trouble(self._settings, error))
                self._leads = False
                time.sleep(next(pauses))
            else:
                pauses = backoff(POLL_SECONDS, LONGEST_PAUSE_SECONDS)
        self._resign()

    def _step(self) -> None:
        if not self._elected():
            time.sleep(RENEW_SECONDS)
            return
        self._look_for_room()
        if time.monotonic() >= self._sweep_at:
            self._enqueue_sweep()
            self._sweep_at = time.monotonic() + self._settings.sweep_seconds
        demand = self._demand()
        self._enqueue_prune(demand)
        self._enqueue_notify()
        self._enqueue_ingest(demand)
        until_sweep = max(0.0, self._sweep_at - time.monotonic())
        if demand.readers or demand.undelivered or demand.pending:
            time.sleep(min(POLL_SECONDS, until_sweep))
        elif until_sweep:
            self._inbox.wait_for_entry(min(RENEW_SECONDS, until_sweep))

    def _elected(self) -> bool:
        now = time.monotonic()
        if self._leads and now < self._renew_at:
            return True
        led = self._leads
        try:
            self._leads = self._lock.reacquire() if self._leads else self._lock.acquire()
        except LockError:  # ours ran out: this process, or Redis, stood still for too long
            self._leads = False
        if self._leads:
            self._renew_at = now + RENEW_SECONDS
        self._redis_trouble.over(REDIS_IS_BACK)
        if self._leads and not led and (warning := eviction_warning(self._client)):
            logger.warning(warning)
        return self._leads

    def _resign(self) -> None:
        if self._leads:
            try:
                self._lock.release()
            except (RedisError, OSError) as error:
                logger.debug("The lock runs out by itself: %s", type(error).__name__)

    def _look_for_room(self) -> None:
        """Find out that Redis is full also while jobs wait, so that none is enqueued: no worker can take them then.

        Raises OutOfMemoryError.
        """
        now = time.monotonic()
        if now >= self._look_for_room_at:
            self._look_for_room_at = now + RENEW_SECONDS
            if rq_queue.waiting_ids(self._client):
                probe(self._client)

    def _demand(self) -> Demand:
        try:
            return self._inbox.demand(self._settings.lease_seconds)
        except ResponseError as error:
            if not is_missing(error):
                raise
            self._inbox.create_group()
            return self._inbox.demand(self._settings.lease_seconds)

    def _enqueue_sweep(self) -> None:
        if not self._waiting("sweep"):
            # The id carries the tick, so that a failed sweep stands in the way of no later one. Not at the front: an
            # ingest job makes room after its batch, and of sweeps there may always be one.
            self._enqueue(jobs.sweep, f"sweep-{time.time_ns() // 1_000_000}", SWEEP_TIMEOUT_SECONDS)

    def _enqueue_prune(self, demand: Demand) -> None:
        now = time.monotonic()
        if now >= self._look_for_old_rows_at:
            self._look_for_old_rows_at = now + RENEW_SECONDS
            self._old_rows = bool(self._client.exists(OLD_ROWS))
        behind = demand.undelivered >= self._settings.batch_size
        if not prune_is_due(now - self._pruned_at, old_rows_left=self._old_rows, behind=behind):
            return
        self._pruned_at = now
        if not self._waiting("prune") and not self._started("prune"):
            self._enqueue(jobs.prune, f"prune-{time.time_ns() // 1_000_000}", PRUNE_TIMEOUT_SECONDS)

    def _enqueue_notify(self) -> None:
        now = time.monotonic()
        if now < self._notify_at:
            return
        self._notify_at = now + RENEW_SECONDS
        if are_due(self._client) and not self._waiting("notify") and not self._started("notify"):
            self._enqueue(jobs.notify, f"notify-{time.time_ns() // 1_000_000}", NOTIFY_TIMEOUT_SECONDS)
            self._notify_at = now + NOTIFY_AGAIN_SECONDS

    def _enqueue_ingest(self, demand: Demand) -> None:
        wanted = 0
        if demand.readers == 0 and (demand.undelivered or demand.expired):
            wanted = 1
        batches = demand.undelivered // self._settings.batch_size
        if batches > 1 and time.monotonic() >= self._scale_at:
            self._scale_at = time.monotonic() + SCALE_SECONDS
            wanted = max(wanted, min(batches, self._idle_workers()))
        if wanted:
            wanted -= self._waiting("ingest")
        timeout = int(self._settings.sweep_seconds) + INGEST_TIMEOUT_SECONDS
        for number in range(wanted):
            self._enqueue(jobs.ingest, f"ingest-{time.time_ns() // 1_000_000}-{number}", timeout)

    def _enqueue(self, function: Callable[[], object], job_id: str, timeout_seconds: int) -> None:
        self._queue.enqueue_call(
            f"{function.__module__}.{function.__name__}",
            job_id=job_id,
            timeout=timeout_seconds,
            result_ttl=0,
            failure_ttl=FAILED_JOB_SECONDS,
        )
        self._full.over("Redis has room again; RQ goes on.")

    def _waiting(self, kind: str) -> int:
        """Return how many jobs of a kind wait in the queue."""
        return sum(job_id.startswith(f"{kind}-".encode()) for job_id in rq_queue.waiting_ids(self._client))

    def _started(self, kind: str) -> int:
        """Return how many jobs of a kind run, by workers that gave a sign of life lately."""
        key = self._queue.started_job_registry.key
        ids = cast("list[bytes]", self._client.zrangebyscore(key, time.time(), "+inf"))  # raw, as above
        return sum(job_id.startswith(f"{kind}-".encode()) for job_id in ids)

    def _idle_workers(self) -> int:
        workers = read_workers(self._queue)
        return sum(
            worker.get_state() == "idle"
            and worker.last_heartbeat is not None
            and (rq_now() - worker.last_heartbeat).total_seconds() < IDLE_WORKER_SECONDS
            for worker in workers
        )

    def _work_directly(self) -> None:
        """Ingest and sweep in this process."""
        where = place(self._settings.redis_url)
        self._full.trouble(
            f"Redis at {where} is full, so RQ can't enqueue; the inbox is drained without it. Give Redis more memory."
        )
        engine = open_engine(self._settings.sql_url)
        try:
            consumer = f"direct-{socket.gethostname()}-{os.getpid()}"
            Ingest(self._client, engine, self._settings, consumer, stop=self._stop).run(self._settings.sweep_seconds)
            if time.monotonic() >= self._sweep_at:
                self._sweep_at = time.monotonic() + self._settings.sweep_seconds
                sweep(self._client, engine, self._settings)
            self._database_trouble.over(DATABASE_IS_BACK)
        except (DatabaseUnavailable, SQLAlchemyError) as error:
            self._database_trouble.trouble(f"The inbox can't be drained: {str(error).splitlines()[0]}")
            time.sleep(RENEW_SECONDS)
        except (RedisError, OSError) as error:
            self._redis_trouble.trouble(redis_trouble(self._settings, error))
            time.sleep(POLL_SECONDS)
        finally:
            engine.dispose()


def prune_is_due(since_seconds: float, *, old_rows_left: bool, behind: bool) -> bool:
    """Return whether to prune, so many seconds after it was last looked for.

    Each minute; again and again while old rows are left, as they come as fast as young ones do, but then only when no
    full batch waits in the inbox: messages go first.
    """
    if since_seconds >= PRUNE_SECONDS:
        return True
    return old_rows_left and not behind and since_seconds >= PRUNE_AGAIN_SECONDS


def redis_trouble(settings: Settings, error: BaseException) -> str:
    """Return what a pool says of a Redis that fails it."""
    where = place(settings.redis_url)
    return f"Redis at {where} can't be used ({reason(error)}). Workers wait for it; agents may go on."


def run_dispatcher(settings: Settings, stop: Callable[[], bool]) -> None:
    """Dispatch until asked to stop."""
    client = connect(settings.redis_url, timeout_seconds=rq_queue.WORKER_TIMEOUT_SECONDS, name="fleetbeat-dispatcher")
    Dispatcher(client, settings, stop).run()

"""The steward: the process that says in Redis that its pool exists, and hears how many workers it should have.

The parent of a pool forks again and again, so it may hold no Redis client; and the dispatcher can be busy for long when
it drains a full inbox by itself. So this is a process of its own, which does little: once a second it reads, tells the
parent over a pipe, hears what is there, and writes that down. Without it the pool goes on as it is. A thread of it
writes the pulse.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection

from redis import Redis
from redis.exceptions import RedisError

from fleetbeat_shared.connection import connect, reason
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker import rq_queue
from fleetbeat_worker.broker.flow import Sample, flow, read_sample
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.broker.pulse import PulseWriter
from fleetbeat_worker.broker.rq_queue import count_workers
from fleetbeat_worker.broker.server import remove_foreign
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.workers import registry as pools
from fleetbeat_worker.workers.autoscale import Bounds, Course, Load, decide

RENEW_SECONDS = 1.0
CLEAN_SECONDS = 60.0
SAMPLES = 6
"""How many looks back the oldest one is kept: rates are those of the last seconds."""
ANSWER_SECONDS = 10.0
"""How long the parent may take to answer before its steward asks again."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What the steward tells the parent: how many workers there should be."""

    bounds: Bounds
    count: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the parent answers."""

    worker_pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mandate:
    """What a steward is started with; one that is started again goes on from there."""

    pool_id: str
    started_at: datetime
    bounds: Bounds
    count: int


def new_mandate(bounds: Bounds, count: int) -> Mandate:
    """Return the mandate for a pool whose parent is this process."""
    pool_id = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(2)}"
    return Mandate(pool_id, datetime.now(UTC), bounds, count)


class Steward:
    """One steward, in its own process."""

    def __init__(self, client: Redis, settings: Settings, mandate: Mandate, parent: Connection) -> None:
        """Use a client of its own, and the pipe to the parent."""
        self._client = client
        self._inbox = Inbox(client)
        self._batch_size = settings.batch_size
        self._mandate = mandate
        self._parent = parent
        self._bounds = mandate.bounds
        self._course = Course(mandate.count, time.monotonic())
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._clean_at = 0.0

    def run(self, stop: Callable[[], bool]) -> None:
        """Renew until asked to stop, whatever happens to Redis; then say that the pool is gone."""
        while not stop():
            ends_at = time.monotonic() + RENEW_SECONDS
            try:
                self._step()
            except (RedisError, OSError) as error:  # the dispatcher tells about it
                logger.debug("The pool can't be registered now: %s", reason(error))
            time.sleep(max(0.0, ends_at - time.monotonic()))
        try:
            pools.remove_pools(self._client, [self._mandate.pool_id])
        except (RedisError, OSError) as error:
            logger.debug("The pool isn't renewed any more, and so it is forgotten: %s", reason(error))

    def _step(self) -> None:
        remove_foreign(self._client)  # here, too: sweeps come less often, and none while nobody can be elected
        self._bounds = pools.read_wanted(self._client, self._mandate.pool_id) or self._bounds
        sample = read_sample(self._client)
        if self._samples and self._samples[-1].life != sample.life:
            self._samples.clear()
        self._samples.append(sample)
        self._decide(sample)
        report = self._exchange(Orders(self._bounds, self._course.count))
        if report is not None:
            pools.write_pool(self._client, self._state(report, sample))
        if time.monotonic() >= self._clean_at:
            self._clean_at = time.monotonic() + CLEAN_SECONDS
            pools.clean(self._client)

    def _decide(self, sample: Sample) -> None:
        load = Load(0.0, 0, None)
        if not self._bounds.are_fixed:
            horizon = self._inbox.horizon()
            if horizon.watermark is None and self._course.count:
                return  # ids of the future hide the lag, until the workers have drained the inbox
            lag = (horizon.now - (horizon.watermark or horizon.now)).total_seconds()
            rate = flow(self._samples[0], sample).drain_rate
            load = Load(lag, horizon.backlog // self._batch_size, rate, self._is_abandoned())
        before = self._course.count
        self._course = decide(self._course, load, self._bounds, time.monotonic())
        if self._course.count != before:
            fields: dict[str, float] = {"workers": self._course.count, "before": before}
            if not self._bounds.are_fixed:
                fields["lag_seconds"] = round(load.lag_seconds, 1)
            logger.info("The number of workers changes", extra=fields)

    def _is_abandoned(self) -> bool:
        return self._course.count == 0 and bool(rq_queue.waiting_ids(self._client)) and not count_workers(self._client)

    def _exchange(self, orders: Orders) -> Report | None:
        """Tell the parent, and hear what is there; None if it doesn't answer."""
        answer = None
        with suppress(EOFError, BrokenPipeError):  # it ends, or is gone
            while self._parent.poll():
                self._parent.recv()  # an answer that came too late
            self._parent.send(orders)
            if self._parent.poll(ANSWER_SECONDS):
                answer = self._parent.recv()
        return answer if isinstance(answer, Report) else None

    def _state(self, report: Report, sample: Sample) -> pools.PoolState:
        mandate = self._mandate
        return pools.PoolState(
            id=mandate.pool_id,
            hostname=socket.gethostname(),
            pid=os.getppid(),
            bounds=self._bounds,
            count=self._course.count,
            worker_pids=report.worker_pids,
            started_at=mandate.started_at,
            seen_at=datetime.fromtimestamp(sample.at_seconds, UTC),
            sample=self._samples[0],
        )


def run_steward(settings: Settings, mandate: Mandate, parent: Connection, stop: Callable[[], bool]) -> None:
    """Look after a pool's entry in Redis until asked to stop."""
    client = connect(settings.redis_url, timeout_seconds=rq_queue.WORKER_TIMEOUT_SECONDS, name="fleetbeat-steward")
    pulse = connect(settings.redis_url, timeout_seconds=rq_queue.WORKER_TIMEOUT_SECONDS, name="fleetbeat-pulse")
    enough = threading.Event()
    # Beside the steward, which may wait for its parent or for Redis longer than a pulse may.
    writer = threading.Thread(target=PulseWriter(pulse).run, args=(enough,), daemon=True)
    writer.start()
    Steward(client, settings, mandate, parent).run(stop)
    enough.set()

"""Pool controller: registers the pool in Redis, applies the requested worker count, writes the pulse.

The parent of a pool forks again and again, so it may hold no Redis client; and the dispatcher can be busy for long when
it drains a full inbox itself. So the controller is a process of its own, which does little: once a second it reads the
requested count, sends the parent the count to run, receives the pids that run, and writes the pool's entry. Without it
the pool keeps its number of workers. A thread of it writes the pulse.
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

from fleetbeat_shared.connection import reason
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.accounting import Sample, flow, read_sample
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.broker.pulse import PulseWriter
from fleetbeat_worker.broker.rq_queue import count_workers, read_waiting_ids
from fleetbeat_worker.broker.server import connect_worker, repair_keys
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.workers.autoscale import Bounds, Load, Scaling, scale
from fleetbeat_worker.workers.registry import PoolState, read_wanted, remove_pools, remove_stale_entries, write_pool

RENEW_SECONDS = 1.0
"""How often the pool's entry is written."""
CLEAN_SECONDS = 60.0
"""How often the entries of pools and workers that are gone are removed."""
SAMPLES = 6
"""How many samples are kept: rates are those since the oldest one, some seconds ago."""
ANSWER_SECONDS = 10.0
"""How long the parent may take to answer before it is asked again."""


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a controller is started with; one that is restarted continues from there."""

    pool_id: str
    started_at: datetime
    bounds: Bounds
    count: int


@dataclass(frozen=True, slots=True)
class TargetCount:
    """The controller's message to the parent: how many workers to run."""

    bounds: Bounds
    count: int


@dataclass(frozen=True, slots=True)
class RunningWorkers:
    """The parent's answer."""

    pids: tuple[int, ...]


class PoolController:
    """One controller, in its own process."""

    def __init__(self, client: Redis, settings: Settings, spec: PoolSpec, parent: Connection) -> None:
        """Use a client of its own, and the pipe to the parent."""
        self._client = client
        self._inbox = Inbox(client)
        self._batch_size = settings.batch_size
        self._spec = spec
        self._parent = parent
        self._bounds = spec.bounds
        self._scaling = Scaling(spec.count, time.monotonic())
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._clean_at = 0.0

    def run(self, stop: Callable[[], bool]) -> None:
        """Keep the pool registered until asked to stop, whatever happens to Redis; then remove its entry."""
        while not stop():
            ends_at = time.monotonic() + RENEW_SECONDS
            try:
                self._step()
            except (RedisError, OSError) as error:  # the dispatcher reports it
                logger.debug("The pool's entry can't be written: %s", reason(error))
            time.sleep(max(0.0, ends_at - time.monotonic()))
        try:
            remove_pools(self._client, [self._spec.pool_id])
        except (RedisError, OSError) as error:
            logger.debug("The pool's entry was not removed and will be stale: %s", reason(error))

    def _step(self) -> None:
        repair_keys(self._client)  # also here: sweeps are rarer, and there is none while no dispatcher can be elected
        self._bounds = read_wanted(self._client, self._spec.pool_id) or self._bounds
        sample = read_sample(self._client)
        if self._samples and self._samples[-1].life != sample.life:
            self._samples.clear()
        self._samples.append(sample)
        self._scale(sample)
        running = self._exchange(TargetCount(self._bounds, self._scaling.count))
        if running is not None:
            write_pool(self._client, self._state(running, sample))
        if time.monotonic() >= self._clean_at:
            self._clean_at = time.monotonic() + CLEAN_SECONDS
            remove_stale_entries(self._client)

    def _scale(self, sample: Sample) -> None:
        load = Load(0.0, 0, None)
        if not self._bounds.are_fixed:
            horizon = self._inbox.horizon()
            if horizon.watermark is None and self._scaling.count:
                return  # ids of the future hide the lag, until the workers have drained the inbox
            lag = (horizon.now - (horizon.watermark or horizon.now)).total_seconds()
            rate = flow(self._samples[0], sample).drain_rate
            load = Load(lag, horizon.backlog // self._batch_size, rate, self._jobs_wait_without_worker())
        before = self._scaling.count
        self._scaling = scale(self._scaling, load, self._bounds, time.monotonic())
        if self._scaling.count != before:
            fields: dict[str, float] = {"workers": self._scaling.count, "before": before}
            if not self._bounds.are_fixed:
                fields["lag_seconds"] = round(load.lag_seconds, 1)
            logger.info("The number of workers changes", extra=fields)

    def _jobs_wait_without_worker(self) -> bool:
        return not self._scaling.count and bool(read_waiting_ids(self._client)) and not count_workers(self._client)

    def _exchange(self, target: TargetCount) -> RunningWorkers | None:
        """Send the parent the count, and return its answer; None if it doesn't answer."""
        answer = None
        with suppress(EOFError, BrokenPipeError):  # the parent ends, or is gone
            while self._parent.poll():
                self._parent.recv()  # an answer that came too late
            self._parent.send(target)
            if self._parent.poll(ANSWER_SECONDS):
                answer = self._parent.recv()
        return answer if isinstance(answer, RunningWorkers) else None

    def _state(self, running: RunningWorkers, sample: Sample) -> PoolState:
        return PoolState(
            id=self._spec.pool_id,
            hostname=socket.gethostname(),
            pid=os.getppid(),
            wanted=self._bounds,
            count=self._scaling.count,
            worker_pids=running.pids,
            started_at=self._spec.started_at,
            last_seen_at=datetime.fromtimestamp(sample.at_seconds, UTC),
            sample=self._samples[0],
        )


def new_pool_spec(bounds: Bounds, count: int) -> PoolSpec:
    """Make the specification of a pool whose parent is this process."""
    pool_id = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(2)}"
    return PoolSpec(pool_id, datetime.now(UTC), bounds, count)


def run_controller(settings: Settings, spec: PoolSpec, parent: Connection, stop: Callable[[], bool]) -> None:
    """Control a pool, and write its pulse, until asked to stop."""
    stop_pulse = threading.Event()
    # In a thread: the controller may wait for its parent or for Redis longer than a pulse may.
    pulse = PulseWriter(connect_worker(settings, "fleetbeat-pulse"))
    threading.Thread(target=pulse.run, args=(stop_pulse,), daemon=True).start()
    PoolController(connect_worker(settings, "fleetbeat-controller"), settings, spec, parent).run(stop)
    stop_pulse.set()

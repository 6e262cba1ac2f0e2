"""Worker status: the backlog, the jobs, the pools and the workers, as Redis and RQ have them now."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from fleetbeat_shared.redis_keys import GROUP, INBOX
from fleetbeat_worker.broker.accounting import Flow, read_sample
from fleetbeat_worker.broker.inbox import Horizon, Inbox
from fleetbeat_worker.broker.rq_queue import WorkerState, open_queue, read_worker_states
from fleetbeat_worker.broker.server import as_text
from fleetbeat_worker.workers.registry import PoolState, WorkerHealth, read_pools, recent_flow

UNRESPONSIVE_SECONDS = 16.0
"""A worker that waits for a job sends RQ a heartbeat every 15 s, half of its time to live."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """The inbox, the jobs and the workers."""

    horizon: Horizon
    lost: int
    """Messages that other programs removed from the inbox before they were in SQL, since it was made."""
    pending: dict[str, int]
    """Entries that each consumer holds, by its name; consumers without any are left out."""
    jobs_waiting: int
    jobs_started: int
    jobs_failed: int
    workers: tuple[WorkerState, ...]
    flow: Flow
    pools: int
    """How many pools run; one may have no worker."""

    @property
    def lag_seconds(self) -> float | None:
        """How far the watermark is behind; None when ids of the future hide it."""
        watermark = self.horizon.watermark
        return None if watermark is None else (self.horizon.now - watermark).total_seconds()

    @property
    def seconds_to_empty(self) -> float | None:
        """How long the inbox takes to be empty at the present rates; None if it never will be, or isn't known."""
        return self.flow.seconds_to_empty(self.horizon.backlog)

    def to_json(self) -> dict[str, Any]:
        """Convert it into what `fleetbeat queue --json` prints."""
        lag, oldest_id = _round(self.lag_seconds), self.horizon.oldest_id
        return {
            "now": self.horizon.now,
            "watermark": self.horizon.watermark,
            "backlog": self.horizon.backlog,
            "lag_seconds": lag,
            "oldest": {"id": oldest_id, "received_at": self.horizon.watermark, "age_seconds": lag}
            if oldest_id
            else None,
            "arrival_rate": _round(self.flow.arrival_rate),
            "drain_rate": _round(self.flow.drain_rate),
            "seconds_to_empty": _round(self.seconds_to_empty),
            "lost": self.lost,
            "pending": [{"consumer": name, "entries": number} for name, number in self.pending.items()],
            "jobs": {"waiting": self.jobs_waiting, "started": self.jobs_started, "failed": self.jobs_failed},
            "workers": [asdict(worker) for worker in self.workers],
        }


@dataclass(frozen=True, slots=True)
class PoolWorker:
    """An RQ worker, its pool and its rate."""

    worker: WorkerState
    pool_id: str | None
    """None when no pool lists it, as with RQ's own command."""
    rate: float | None
    """Messages that it stored a second, over the last seconds; None when that isn't known."""


@dataclass(frozen=True, slots=True)
class WorkerOverview:
    """All pools and workers at one time."""

    now: datetime
    """Redis's time."""
    pools: tuple[PoolState, ...]
    workers: tuple[PoolWorker, ...]

    def to_json(self) -> dict[str, Any]:
        """Convert it into what `fleetbeat workers --json` prints."""
        return {
            "now": self.now,
            "pools": [pool.to_json() for pool in self.pools],
            "workers": [
                asdict(found.worker)
                | {"pool": found.pool_id, "rate": None if found.rate is None else round(found.rate, 1)}
                for found in self.workers
            ],
        }


def read_queue(client: Redis) -> QueueState:
    """Read the state of the inbox, the jobs and the workers. Raises redis-py's errors."""
    inbox = Inbox(client)
    horizon = inbox.horizon()
    queue = open_queue(client)
    pools = read_pools(client)
    return QueueState(
        horizon=horizon,
        lost=max(0, inbox.account().lost),
        pending=_read_pending(client),
        jobs_waiting=queue.count,
        # Without cleanup: reading must not move jobs from one registry to another.
        jobs_started=queue.started_job_registry.get_job_count(cleanup=False),
        jobs_failed=queue.failed_job_registry.get_job_count(cleanup=False),
        workers=read_worker_states(client),
        flow=recent_flow(pools, read_sample(client)),
        pools=len(pools),
    )


def read_worker_health(client: Redis, now: datetime) -> WorkerHealth:
    """Read how many workers run, and how many don't respond. Raises redis-py's errors.

    A worker that runs a job sends heartbeats less often, so it counts as unresponsive only if it stores nothing either.
    """
    states = read_worker_states(client)
    ages = {
        worker.name: (now - worker.last_heartbeat_at).total_seconds() for worker in states if worker.last_heartbeat_at
    }
    overdue = {name: age for name, age in ages.items() if age > UNRESPONSIVE_SECONDS}
    if not overdue:
        return WorkerHealth(len(states))
    rates = recent_flow(read_pools(client), read_sample(client)).worker_rates or {}
    unresponsive = [age for name, age in overdue.items() if not rates.get(name)]
    return WorkerHealth(len(states), len(unresponsive), min(unresponsive, default=0.0))


def read_worker_overview(client: Redis) -> WorkerOverview:
    """Read the pools and workers that run. Raises redis-py's errors."""
    pools = read_pools(client)
    states = read_worker_states(client)
    sample = read_sample(client)
    pool_of = {(pool.hostname, pid): pool.id for pool in pools for pid in pool.worker_pids}
    rates = recent_flow(pools, sample).worker_rates
    workers = []
    for worker in states:
        pool_id = pool_of.get((worker.hostname or "", worker.pid or 0))
        # A pool's worker that stored nothing yet has no count: its rate is zero.
        rate = None if pool_id is None or rates is None else rates.get(worker.name, 0.0)
        workers.append(PoolWorker(worker, pool_id, rate))
    return WorkerOverview(datetime.fromtimestamp(sample.at_seconds, UTC), tuple(pools), tuple(workers))


def _read_pending(client: Redis) -> dict[str, int]:
    redis: Any = client  # redis-py's hints can't tell its sync answers from its async ones
    try:
        summary = redis.xpending(INBOX, GROUP)
    except ResponseError as error:
        if str(error).startswith("NOGROUP"):
            return {}  # no worker has ever started here
        raise
    found = {as_text(item["name"]): int(item["pending"]) for item in summary["consumers"] or ()}
    return dict(sorted(found.items()))


def _round(number: float | None) -> float | None:
    return None if number is None else round(number, 3)

"""What Redis and RQ hold at this moment: the backlog, the jobs, the workers. Read through RQ's public API."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from fleetbeat_shared.redis_keys import GROUP, INBOX
from fleetbeat_worker.broker.flow import Flow, read_sample
from fleetbeat_worker.broker.inbox import Horizon, Inbox
from fleetbeat_worker.broker.rq_queue import WorkerState, _queue, read_worker_states
from fleetbeat_worker.workers.registry import Crew, PoolState, read_pools, recent_flow


@dataclass(frozen=True, slots=True)
class QueueState:
    """The inbox, the jobs and the workers."""

    horizon: Horizon
    lost: int
    """Messages that others than the workers removed from the inbox before they were in SQL, since it was made."""
    pending: dict[str, int]
    """Entries in the hands of each consumer, by its name; consumers without any are left out."""
    jobs_waiting: int
    jobs_started: int
    jobs_failed: int
    workers: tuple[WorkerState, ...]
    oldest_id: str | None
    """The id of the oldest entry that isn't in SQL; the watermark is when it was received."""
    flow: Flow
    pools: int
    """How many pools of workers run; one may have no worker."""

    @property
    def lag_seconds(self) -> float | None:
        """How far the watermark is behind; None when ids of the future hide it."""
        watermark = self.horizon.watermark
        return None if watermark is None else (self.horizon.now - watermark).total_seconds()

    @property
    def seconds_to_empty(self) -> float | None:
        """How long the inbox takes to be empty if all goes on as it does; None if it never will be, or nobody knows."""
        return self.flow.seconds_to_empty(self.horizon.backlog)

    def to_json(self) -> dict[str, Any]:
        """Return what `fleetbeat queue --json` prints."""
        lag = self.lag_seconds
        return {
            "now": self.horizon.now,
            "watermark": self.horizon.watermark,
            "backlog": self.horizon.backlog,
            "lag_seconds": _rounded(lag),
            "oldest": {"id": self.oldest_id, "received_at": self.horizon.watermark, "age_seconds": _rounded(lag)}
            if self.oldest_id
            else None,
            "arrival_rate": _rounded(self.flow.arrival_rate),
            "drain_rate": _rounded(self.flow.drain_rate),
            "seconds_to_empty": _rounded(self.seconds_to_empty),
            "lost": self.lost,
            "pending": [{"consumer": name, "entries": number} for name, number in self.pending.items()],
            "jobs": {"waiting": self.jobs_waiting, "started": self.jobs_started, "failed": self.jobs_failed},
            "workers": [worker.to_json() for worker in self.workers],
        }


def read_queue(client: Redis) -> QueueState:
    """Return what stands in Redis now. Raises redis-py's errors."""
    inbox = Inbox(client)
    horizon = inbox.horizon()
    queue = _queue(client)
    pools = read_pools(client)
    return QueueState(
        horizon=horizon,
        lost=max(0, inbox.account().lost),
        pending=_pending(client),
        jobs_waiting=queue.count,
        # Without cleanup: looking must not move jobs from one registry to another.
        jobs_started=queue.started_job_registry.get_job_count(cleanup=False),
        jobs_failed=queue.failed_job_registry.get_job_count(cleanup=False),
        workers=read_worker_states(client),
        oldest_id=inbox.first_id(),
        flow=recent_flow(pools, read_sample(client)),
        pools=len(pools),
    )


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)


def _pending(client: Redis) -> dict[str, int]:
    redis: Any = client  # redis-py's hints can't tell its sync answers from its async ones
    try:
        summary = redis.xpending(INBOX, GROUP)
    except ResponseError as error:
        if str(error).startswith("NOGROUP"):
            return {}  # no worker has ever started here
        raise
    found = {_text(item["name"]): int(item["pending"]) for item in summary["consumers"] or ()}
    return dict(sorted(found.items()))


def _text(value: bytes | str) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


SILENT_SECONDS = 16.0
"""A worker that waits for a job gives a sign every 15 s: it asks RQ for one, with half of its time to live."""


@dataclass(frozen=True, slots=True)
class Member:
    """An RQ worker, and what it does."""

    worker: WorkerState
    pool_id: str | None
    """None when no pool says that it is its own, as with RQ's own command."""
    rate: float | None
    """Messages that it stored a second, over the last seconds; None when that isn't known."""


@dataclass(frozen=True, slots=True)
class Workforce:
    """All that work, at one moment."""

    now: datetime
    """Redis's time."""
    pools: tuple[PoolState, ...]
    members: tuple[Member, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what `fleetbeat workers --json` prints."""
        return {
            "now": self.now,
            "pools": [pool.to_json() for pool in self.pools],
            "workers": [
                member.worker.to_json()
                | {"pool": member.pool_id, "rate": None if member.rate is None else round(member.rate, 1)}
                for member in self.members
            ],
        }


def read_crew(client: Redis, now: datetime) -> Crew:
    """Return how many workers run, and how many of them gave no sign and store nothing. Raises redis-py's errors.

    One that is at a job gives its sign less often, so it counts as silent only if it stores nothing either.
    """
    states = read_worker_states(client)
    ages = {
        worker.name: (now - worker.last_heartbeat_at).total_seconds() for worker in states if worker.last_heartbeat_at
    }
    if not any(age > SILENT_SECONDS for age in ages.values()):
        return Crew(len(states))
    rates = recent_flow(read_pools(client), read_sample(client)).worker_rates or {}
    silent = [age for name, age in ages.items() if age > SILENT_SECONDS and not rates.get(name)]
    return Crew(len(states), len(silent), min(silent, default=0.0))


def read_workforce(client: Redis) -> Workforce:
    """Return who works now. Raises redis-py's errors."""
    pools = read_pools(client)
    states = read_worker_states(client)
    sample = read_sample(client)
    pool_of = {(pool.hostname, pid): pool for pool in pools for pid in pool.worker_pids}
    recent = recent_flow(pools, sample)
    members = []
    for worker in states:
        pool = pool_of.get((worker.hostname or "", worker.pid or 0))
        # One that stored nothing yet has no count: with a pool that counts, that is a rate of zero.
        rate = (recent.worker_rates or {}).get(worker.name, 0.0) if pool and recent.worker_rates is not None else None
        members.append(Member(worker, pool.id if pool else None, rate))
    return Workforce(datetime.fromtimestamp(sample.at_seconds, UTC), tuple(pools), tuple(members))

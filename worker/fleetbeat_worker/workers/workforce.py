"""All that work: the pools over all machines, RQ's workers in them, and how fast each stores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis import Redis

from fleetbeat_worker.broker.flow import read_sample
from fleetbeat_worker.fleet.pipeline import Crew
from fleetbeat_worker.workers.registry import PoolState, read_pools, recent_flow
from fleetbeat_worker.workers.status import WorkerState, read_worker_states

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

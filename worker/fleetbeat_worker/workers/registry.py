"""Pool registry: the pools that run, on all machines, and how many workers each should have, in two hashes of Redis.

Each pool writes its entry once a second: one that stopped doing so is gone. The requested number of workers stays in
another hash until the pool ends: a user who may write there can scale it. No message's storage depends on either. A
Redis that lost its data has the entries again within a second; the pools keep the number of workers that they have.

This module doesn't import RQ, so that commands which only look at the fleet start quickly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, cast

from pydantic import PlainSerializer, PlainValidator, TypeAdapter
from redis import Redis

from fleetbeat_shared.redis_keys import POOLS, STORED, WANTED
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.broker.accounting import Flow, Sample, flow
from fleetbeat_worker.broker.server import as_text, milliseconds_of
from fleetbeat_worker.rules.spans import from_milliseconds
from fleetbeat_worker.workers.autoscale import Bounds

GONE_SECONDS = 15.0
"""A pool whose entry is older is gone."""
FORGET_SECONDS = 24 * 3600
"""How long the hashes live without any pool."""


def _parse_bounds(value: Any) -> Bounds:  # noqa: ANN401 - pydantic's
    return value if isinstance(value, Bounds) else Bounds.parse(value)


BoundsText = Annotated[Bounds, PlainValidator(_parse_bounds), PlainSerializer(str)]
"""Bounds that are `4` or `1:8` in JSON."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool's entry."""

    id: str
    hostname: str
    pid: int
    """Of the parent of all its processes."""
    wanted: BoundsText
    """How many workers it should have."""
    count: int
    """How many it should have now, within the bounds."""
    worker_pids: tuple[int, ...]
    """Those that run; they may be more while surplus ones finish their batches."""
    started_at: datetime
    """By the pool's own clock."""
    last_seen_at: datetime
    """By Redis's clock."""
    sample: Sample | None
    """The counters some seconds ago."""

    def to_json(self) -> dict[str, Any]:
        """Convert it into what `fleetbeat workers --json` prints."""
        shown: dict[str, Any] = _STATE.dump_python(self, exclude={"sample"})
        return shown


_STATE = TypeAdapter(PoolState)


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """How many workers run, and how many of them don't respond."""

    workers: int
    unresponsive: int = 0
    unresponsive_seconds: float = 0.0
    """The shortest time since the last heartbeat of one that doesn't respond."""

    def advice(self) -> str | None:
        """Compose what to do about those that don't respond, or None if all do."""
        if not self.unresponsive:
            return None
        subject = "The only worker has" if self.workers == 1 else f"{self.unresponsive} of {self.workers} workers have"
        return (
            f"{subject} not responded for {format_duration(round(self.unresponsive_seconds))}. See: fleetbeat workers"
        )


def write_pool(client: Redis, state: PoolState) -> None:
    """Write a pool's entry. Raises redis-py's errors."""
    with client.pipeline(transaction=True) as pipe:
        pipe.hset(POOLS, state.id, _STATE.dump_json(state))
        pipe.expire(POOLS, FORGET_SECONDS)
        pipe.execute()


def remove_pools(client: Redis, ids: Sequence[str]) -> None:
    """Remove the entries of pools that have ended, and their requested numbers. Raises redis-py's errors."""
    if ids:
        with client.pipeline(transaction=True) as pipe:
            pipe.hdel(POOLS, *ids)
            pipe.hdel(WANTED, *ids)
            pipe.execute()


def read_pools(client: Redis) -> list[PoolState]:
    """Read the pools that run, by host and pid. Raises redis-py's errors."""
    present = (state for state in _read(client).values() if state is not None)
    return sorted(present, key=lambda state: (state.hostname, state.pid, state.id))


def remove_stale_entries(client: Redis) -> None:
    """Remove pools that are gone, and the counters of workers that RQ no longer has. Raises redis-py's errors."""
    remove_pools(client, [key for key, state in _read(client).items() if state is None])
    from rq import worker_registration

    from fleetbeat_worker.broker.rq_queue import open_queue

    known = worker_registration.get_keys(queue=open_queue(client))
    names = {as_text(key).removeprefix("rq:worker:") for key in known}
    counted = cast("list[bytes]", client.hkeys(STORED))
    gone = [name for name in counted if as_text(name) not in names]
    if gone:
        client.hdel(STORED, *gone)


def write_wanted(client: Redis, wanted: Mapping[str, Bounds]) -> None:
    """Write how many workers pools should have, by their ids. Raises redis-py's errors."""
    with client.pipeline(transaction=True) as pipe:
        pipe.hset(WANTED, mapping={key: str(bounds) for key, bounds in wanted.items()})
        pipe.expire(WANTED, FORGET_SECONDS)
        pipe.execute()


def read_wanted(client: Redis, pool_id: str) -> Bounds | None:
    """Read how many workers a pool should have, or None if none was requested. Raises redis-py's errors."""
    found = client.hget(WANTED, pool_id)
    try:
        return None if found is None else Bounds.parse(as_text(found))
    except ValueError:
        return None  # another program wrote there


def spread(total: int, pools: Iterable[PoolState]) -> dict[str, int]:
    """Spread workers evenly over pools, by their ids; the first pools get the remainder."""
    ids = [state.id for state in pools]
    each, more = divmod(total, len(ids))
    return {key: each + (place < more) for place, key in enumerate(ids)}


def recent_flow(pools: Sequence[PoolState], now: Sample) -> Flow:
    """Derive the rates since the oldest sample that a pool kept: a few seconds ago."""
    samples = [pool.sample for pool in pools if pool.sample is not None and pool.sample.life == now.life]
    return flow(min(samples, key=lambda sample: sample.at_seconds), now) if samples else Flow()


def _read(client: Redis) -> dict[str, PoolState | None]:
    """Read all entries; None in place of one that is stale, or that another version or program wrote."""
    with client.pipeline(transaction=True) as pipe:
        pipe.time()
        pipe.hgetall(POOLS)
        time, found = pipe.execute()
    now = from_milliseconds(milliseconds_of(time))
    return {as_text(key): _parse(value, now) for key, value in found.items()}


def _parse(value: bytes, now: datetime) -> PoolState | None:
    try:
        state = _STATE.validate_json(value)
        return state if abs((now - state.last_seen_at).total_seconds()) < GONE_SECONDS else None
    except (ValueError, TypeError, OverflowError):
        return None

"""The pools that run, over all machines, and how many workers each should have. Both are in Redis, in the plain.

A pool writes down what it is in one hash, again and again: one that stopped doing so is gone. What it should be stands
in another hash, until the pool ends: whoever may write there can scale it. Nobody depends on either to store a message.
A Redis that lost its data learns of the pools within a second; they keep the number of workers that they have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from redis import Redis

from fleetbeat_shared.redis_keys import POOLS, STORED, WANTED
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.broker.flow import Flow, Sample, flow
from fleetbeat_worker.workers.autoscale import Bounds

GONE_SECONDS = 15.0
"""A pool that gave no sign for this long is gone."""
FORGET_SECONDS = 24 * 3600
"""After this time without any pool Redis forgets them all."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool, as it says itself."""

    id: str
    hostname: str
    pid: int
    """Of the parent of all its processes."""
    bounds: Bounds
    """How many workers it should have."""
    count: int
    """How many it is to have now, within the bounds."""
    worker_pids: tuple[int, ...]
    """Those that run; they may be more while surplus ones finish their batches."""
    started_at: datetime
    """By the pool's own clock."""
    seen_at: datetime
    """By Redis's clock."""
    sample: Sample | None
    """What the counters were some seconds ago."""

    def to_json(self) -> dict[str, Any]:
        """Return what `fleetbeat workers --json` prints of it."""
        return {
            "id": self.id,
            "hostname": self.hostname,
            "pid": self.pid,
            "wanted": str(self.bounds),
            "count": self.count,
            "worker_pids": list(self.worker_pids),
            "started_at": self.started_at,
            "last_seen_at": self.seen_at,
        }


def write_pool(client: Redis, state: PoolState) -> None:
    """Say that a pool is there. Raises redis-py's errors."""
    value = {
        "hostname": state.hostname,
        "pid": state.pid,
        "bounds": str(state.bounds),
        "count": state.count,
        "worker_pids": state.worker_pids,
        "started_at": state.started_at.timestamp(),
        "seen_at": state.seen_at.timestamp(),
        "sample": state.sample and state.sample.to_json(),
    }
    with client.pipeline(transaction=True) as pipe:
        pipe.hset(POOLS, state.id, json.dumps(value))
        pipe.expire(POOLS, FORGET_SECONDS)
        pipe.execute()


def remove_pools(client: Redis, ids: Sequence[str]) -> None:
    """Forget pools that have ended, and what was wanted of them. Raises redis-py's errors."""
    if ids:
        with client.pipeline(transaction=True) as pipe:
            pipe.hdel(POOLS, *ids)
            pipe.hdel(WANTED, *ids)
            pipe.execute()


def read_pools(client: Redis) -> list[PoolState]:
    """Return the pools that run, by host and pid. Raises redis-py's errors."""
    found, now = _read(client)
    present = (state for state in found.values() if state is not None and _is_present(state, now))
    return sorted(present, key=lambda state: (state.hostname, state.pid, state.id))


def clean(client: Redis) -> None:
    """Forget the pools that are gone, and what the workers counted that RQ knows no more. Raises redis-py's errors."""
    found, now = _read(client)
    remove_pools(client, [key for key, state in found.items() if state is None or not _is_present(state, now)])
    from rq import Queue, worker_registration

    from fleetbeat_shared.redis_keys import QUEUE

    known = worker_registration.get_keys(queue=Queue(QUEUE, connection=client))
    names = {_text(key).removeprefix("rq:worker:") for key in known}
    counted = cast("list[bytes]", client.hkeys(STORED))
    gone = [name for name in counted if _text(name) not in names]
    if gone:
        client.hdel(STORED, *gone)


def want(client: Redis, wanted: Mapping[str, Bounds]) -> None:
    """Say how many workers pools should have, by their ids. Raises redis-py's errors."""
    with client.pipeline(transaction=True) as pipe:
        pipe.hset(WANTED, mapping={key: str(bounds) for key, bounds in wanted.items()})
        pipe.expire(WANTED, FORGET_SECONDS)
        pipe.execute()


def read_wanted(client: Redis, pool_id: str) -> Bounds | None:
    """Return how many workers a pool should have, or None if nobody said so. Raises redis-py's errors."""
    found = client.hget(WANTED, pool_id)
    try:
        return None if found is None else Bounds.parse(_text(found))
    except ValueError:
        return None  # somebody else wrote there


def spread(total: int, pools: Iterable[PoolState]) -> dict[str, int]:
    """Return how many workers each pool has if they are spread evenly; the first ones get what is left over."""
    ids = [state.id for state in pools]
    each, more = divmod(total, len(ids))
    return {key: each + (place < more) for place, key in enumerate(ids)}


def recent_flow(pools: Sequence[PoolState], now: Sample) -> Flow:
    """Return the rates since the oldest look that a pool kept: a few seconds ago."""
    samples = [pool.sample for pool in pools if pool.sample is not None and pool.sample.life == now.life]
    return flow(min(samples, key=lambda sample: sample.at_seconds), now) if samples else Flow()


def _read(client: Redis) -> tuple[dict[str, PoolState | None], datetime]:
    with client.pipeline(transaction=True) as pipe:
        pipe.time()
        pipe.hgetall(POOLS)
        (whole, micro), found = pipe.execute()
    now = datetime.fromtimestamp(whole + micro / 1_000_000, UTC)
    return {_text(key): _parse(_text(key), value) for key, value in found.items()}, now


def _parse(key: str, text: bytes | str) -> PoolState | None:
    try:
        value = json.loads(text)
        return PoolState(
            id=key,
            hostname=str(value["hostname"]),
            pid=int(value["pid"]),
            bounds=Bounds.parse(value["bounds"]),
            count=int(value["count"]),
            worker_pids=tuple(int(pid) for pid in value["worker_pids"]),
            started_at=datetime.fromtimestamp(value["started_at"], UTC),
            seen_at=datetime.fromtimestamp(value["seen_at"], UTC),
            sample=Sample.from_json(value["sample"]) if value["sample"] else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None  # of another version, or somebody else's


def _is_present(state: PoolState, now: datetime) -> bool:
    return abs((now - state.seen_at).total_seconds()) < GONE_SECONDS


def _text(value: bytes | str) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers that run, and how many of them do nothing that can be seen."""

    workers: int
    silent: int = 0
    silent_seconds: float = 0.0
    """How long none of the silent ones gave a sign, at least."""

    def advice(self) -> str | None:
        """Return what to do about those that give no sign, or None if there is none."""
        if not self.silent:
            return None
        who = "The only worker" if self.workers == 1 else f"{self.silent} of {self.workers} workers"
        return f"{who} gave no sign for {format_duration(round(self.silent_seconds))}. Look: fleetbeat workers"

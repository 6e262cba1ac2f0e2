"""What Redis and RQ hold at this moment: the backlog, the jobs, the workers. Read through RQ's public API."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue, Worker
from rq.serializers import JSONSerializer

from fleetbeat_shared.redis_keys import GROUP, INBOX, QUEUE
from fleetbeat_worker.broker.flow import Flow, read_sample
from fleetbeat_worker.broker.inbox import Horizon, Inbox
from fleetbeat_worker.workers.registry import read_pools, recent_flow


@dataclass(frozen=True, slots=True)
class WorkerState:
    """An RQ worker that takes part."""

    name: str
    state: str
    """RQ's word: starting, started, idle, busy, suspended."""
    hostname: str | None
    pid: int | None
    job_id: str | None
    """The job that it is at."""
    last_heartbeat_at: datetime | None
    """By the worker's own clock."""

    def to_json(self) -> dict[str, Any]:
        """Return what JSON shows of it."""
        return {
            "name": self.name,
            "state": self.state,
            "hostname": self.hostname,
            "pid": self.pid,
            "job_id": self.job_id,
            "last_heartbeat_at": self.last_heartbeat_at,
        }


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


def read_worker_states(client: Redis) -> tuple[WorkerState, ...]:
    """Return the RQ workers of our queue, by name. Raises redis-py's errors."""
    return tuple(
        WorkerState(
            name=worker.name,
            state=str(worker.get_state()),
            hostname=worker.hostname,
            pid=worker.pid,
            job_id=worker.get_current_job_id(),
            last_heartbeat_at=worker.last_heartbeat,
        )
        for worker in sorted(read_workers(_queue(client)), key=lambda worker: worker.name)
    )


def count_workers(client: Redis) -> int:
    """Return how many RQ workers listen to our queue. Raises redis-py's errors."""
    return len(read_workers(_queue(client)))


def _queue(client: Redis) -> Queue:
    return Queue(QUEUE, connection=client, serializer=JSONSerializer)


def read_workers(queue: Queue) -> list[Any]:
    """Return RQ's workers of a queue. Raises redis-py's errors."""
    options = queue.connection.connection_pool.connection_kwargs
    patience = options.get("socket_timeout")
    try:
        return list(Worker.all(queue=queue, serializer=JSONSerializer))
    finally:
        # To look at a worker RQ makes one, and that gives our client the seven minutes of a worker's patience.
        options["socket_timeout"] = patience


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

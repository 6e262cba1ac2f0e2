"""RQ queue: the jobs that wait in it, and the RQ workers that listen to it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from redis import Redis
from rq import Queue, Worker
from rq.job import Job
from rq.serializers import JSONSerializer

from fleetbeat_shared.redis_keys import QUEUE

WORKER_TIMEOUT_SECONDS = 5.0
"""How long a worker's command waits for Redis."""


def waiting_ids(client: Redis) -> list[bytes]:
    """Return the ids of the first jobs that wait in the queue. Raises redis-py's errors."""
    # Read raw: RQ fails at an id that is no text, which the workers remove.
    return cast("list[bytes]", client.lrange(Queue.redis_queue_namespace_prefix + QUEUE, 0, 99))


def withdraw(client: Redis) -> None:
    """Take our waiting jobs out of the queue: whoever starts workers next enqueues others. Raises redis-py's errors."""
    queue = Queue(QUEUE, connection=client, serializer="json")
    for job_id in waiting_ids(client):
        if job_id.startswith((b"ingest-", b"sweep-", b"notify-", b"prune-")):
            queue.remove(job_id.decode())
            client.delete(Job.key_for(job_id.decode()))


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

"""RQ queue: the jobs that wait in it, and the RQ workers that listen to it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis
from rq import Queue, Worker
from rq.serializers import JSONSerializer

from fleetbeat_shared.redis_keys import QUEUE

JOB_KINDS = ("ingest", "sweep", "notify", "prune")
"""A job's id begins with its kind and a dash."""
WAITING_READ = 100
"""How many waiting jobs are read at most."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """An RQ worker of our queue."""

    name: str
    state: str
    """RQ's word: starting, started, idle, busy, suspended."""
    hostname: str | None
    pid: int | None
    job_id: str | None
    """The job that it runs."""
    last_heartbeat_at: datetime | None
    """By the worker's own clock."""


def open_queue(client: Redis) -> Queue:
    """Make the object for our queue; it sends no command."""
    return Queue(QUEUE, connection=client, serializer=JSONSerializer)


def read_waiting_ids(client: Redis) -> list[str]:
    """Read the ids of the first jobs that wait in the queue. Raises redis-py's errors."""
    return open_queue(client).get_job_ids(0, WAITING_READ)


def remove_waiting_jobs(client: Redis) -> None:
    """Remove our waiting jobs from the queue: the next dispatcher enqueues others. Raises redis-py's errors."""
    queue = open_queue(client)
    for job_id in read_waiting_ids(client):
        if job_id.partition("-")[0] in JOB_KINDS:
            queue.remove(job_id)
            client.delete(queue.job_class.key_for(job_id))


def read_workers(queue: Queue) -> list[Any]:
    """Read RQ's workers of a queue. Raises redis-py's errors."""
    options = queue.connection.connection_pool.connection_kwargs
    timeout_seconds = options.get("socket_timeout")
    try:
        return list(Worker.all(queue=queue, serializer=JSONSerializer))
    finally:
        # For each worker that it reads, RQ makes one that sets our client's time-out to seven minutes.
        options["socket_timeout"] = timeout_seconds


def read_worker_states(client: Redis) -> tuple[WorkerState, ...]:
    """Read the states of the RQ workers of our queue, by name. Raises redis-py's errors."""
    return tuple(
        WorkerState(
            name=worker.name,
            state=str(worker.get_state()),
            hostname=worker.hostname,
            pid=worker.pid,
            job_id=worker.get_current_job_id(),
            last_heartbeat_at=worker.last_heartbeat,
        )
        for worker in sorted(read_workers(open_queue(client)), key=lambda worker: worker.name)
    )


def count_workers(client: Redis) -> int:
    """Count the RQ workers of our queue. Raises redis-py's errors."""
    return len(read_workers(open_queue(client)))

"""RQ worker: RQ's own, restricted to our jobs.

A user who may write to RQ's keys can name any function, callback or webhook in a job, whatever the serializer. So a job
is checked when it is read from Redis, before anything that it names is imported; one that isn't ours is replaced by
`jobs.refuse`, and fails with the reason. Agents can't get that far: they may only add to the inbox.
"""

from __future__ import annotations

import json
import signal
import zlib
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Worker, worker_registration
from rq.exceptions import NoSuchJobError, StopRequested
from rq.job import Job, JobStatus
from rq.timeouts import BaseTimeoutException
from rq.utils import now as rq_now, utcformat
from rq.worker import WorkerStatus

from fleetbeat_shared.redis_keys import QUEUE
from fleetbeat_worker import jobs
from fleetbeat_worker.telemetry.log import logger

MAX_JOB_BYTES = 64 * 1024
"""Ours have a hundred; a small text can be a bomb when it is decompressed."""

WORKER_TTL_SECONDS = 30
"""How long after its last heartbeat a worker counts as running: RQ's 420 s would hide a hung Redis as long."""

_REFUSE = f"{jobs.refuse.__module__}.{jobs.refuse.__name__}"
_CALLBACKS = (b"success_callback_name", b"failure_callback_name", b"stopped_callback_name", b"webhooks")


class FleetbeatJob(Job):
    """A job that is ours, or a refusal in its place."""

    def restore(self, raw_data: Any) -> Any:  # noqa: ANN401 - RQ's signature
        """Read the job from its hash in Redis."""
        if b"data" not in raw_data:
            raise NoSuchJobError(f"job {self.id} has no data")  # noqa: EM102, TRY003 - RQ's own, which it expects
        why = why_refused(raw_data)
        if why is None:
            try:
                return super().restore(raw_data)
            except (StopRequested, BaseTimeoutException, RedisError):
                raise  # a signal or a lost connection came at this moment: that is no fault of the job
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the worker continues
                why = f"the job can't be read ({type(error).__name__})"
        logger.warning("A job is refused", extra={"job": self.id, "why": why})
        return super().restore(_refusal(why))


def why_refused(raw: dict[bytes, bytes]) -> str | None:
    """Find the reason why a job isn't ours to run, or None if it is."""
    try:
        data = zlib.decompressobj().decompress(raw[b"data"], MAX_JOB_BYTES + 1)
    except zlib.error:
        data = raw[b"data"]
    if len(data) > MAX_JOB_BYTES:
        return "the job is larger than any of Fleetbeat's"
    try:
        function, instance, args, kwargs = json.loads(data)
    except (ValueError, TypeError, RecursionError):
        return "the job is not in JSON, or has not the shape of a job"
    if not isinstance(function, str) or function not in jobs.OURS:
        return "the job names a function that is not Fleetbeat's"
    if instance or args or kwargs:
        return "the job has arguments; Fleetbeat's have none"
    if any(raw.get(name) for name in _CALLBACKS):
        return "the job names a callback or a webhook; Fleetbeat's have none"
    return None


def _refusal(why: str) -> dict[bytes, bytes]:
    """Compose the hash of a job that refuses: it keeps nothing of the other job."""
    now = utcformat(rq_now()).encode()
    return {
        b"data": json.dumps([_REFUSE, None, [why], {}]).encode(),
        b"created_at": now,
        b"enqueued_at": now,
        b"origin": QUEUE.encode(),
        b"description": b"refused",
        b"status": JobStatus.QUEUED.value.encode(),
        b"failure_ttl": b"86400",
    }


class FleetbeatWorker(Worker):
    """A worker that lets its job finish its batch when it is asked to stop."""

    job_class = FleetbeatJob
    max_connection_wait_time = 5.0
    """Between two tries to reach Redis; RQ's is a minute."""
    _is_waiting = False
    """For a job: then only an exception ends the blocking call."""

    def _shutdown(self) -> None:
        """Stop when the job is done, or at once while waiting for one.

        RQ's raises wherever a signal finds the worker without a job. Python drops what is raised in a destructor or in
        a callback of the garbage collector, so that a worker which has just started might never stop.
        """
        self._stop_requested = True
        if self._is_waiting:
            raise StopRequested
        if self.get_state() == WorkerStatus.BUSY:
            super()._shutdown()  # type: ignore[no-untyped-call] # RQ has no hint there

    def handle_warm_shutdown_request(self) -> None:
        """Forward the request: an ingest job ends after its batch instead of at the end of its time."""
        if self.horse_pid:
            self.kill_horse(signal.SIGTERM)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:  # noqa: ANN401 - RQ's signature
        """Send RQ's heartbeat, and register again in a Redis that came back without its data.

        RQ calls this each time before it waits, so a request to stop that was lost until then takes effect here.
        """
        if self._is_waiting and self._stop_requested:
            raise StopRequested
        super().heartbeat(timeout, pipeline)
        if pipeline is None and not self.connection.sismember(self.redis_workers_keys, self.key):
            worker_registration.register(self)
            if self.birth_date is not None:
                self.connection.hset(self.key, mapping=self.serialize())

    def setup_work_horse_signals(self) -> None:
        """Ignore the request to stop until the job has its own handler."""
        super().setup_work_horse_signals()  # type: ignore[no-untyped-call] # RQ has no hint there
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> Any:  # noqa: ANN401
        """Wait for a job, and note that the worker waits."""
        self._is_waiting = True
        try:
            return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
        finally:
            self._is_waiting = False


def run_worker(client: Redis, name: str) -> None:
    """Work until a signal asks to stop, or Redis fails."""
    queue = Queue(QUEUE, connection=client, serializer="json", job_class=FleetbeatJob)
    worker = FleetbeatWorker(
        [queue],
        name=name,
        connection=client,
        serializer="json",
        worker_ttl=WORKER_TTL_SECONDS,
        log_job_description=False,
    )
    worker.log_result_lifespan = False
    worker.work(logging_level=None)

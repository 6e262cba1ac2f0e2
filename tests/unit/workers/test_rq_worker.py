from __future__ import annotations

import json
import os
import pickle
import signal
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue
from rq.exceptions import DequeueTimeout, NoSuchJobError, StopRequested
from rq.job import Job

from fleetbeat_shared.redis_keys import QUEUE
from fleetbeat_worker import jobs
from fleetbeat_worker.workers.rq_worker import MAX_JOB_BYTES, FleetbeatJob, FleetbeatWorker, why_refused

OURS = json.dumps(["fleetbeat_worker.jobs.sweep", None, [], {}]).encode()


def packed(*data: Any) -> bytes:
    return zlib.compress(json.dumps(data).encode())


def job_named(redis: FakeRedis) -> FleetbeatJob:
    return FleetbeatJob("some-job", connection=redis, serializer="json")


@pytest.mark.parametrize("function", [jobs.ingest, jobs.sweep, jobs.prune])
def test_our_own_jobs_are_run(redis: FakeRedis, function: Any) -> None:
    """A job that the dispatcher enqueues is restored unchanged."""
    queue = Queue(QUEUE, connection=redis, serializer="json")
    queued = queue.enqueue_call(f"{function.__module__}.{function.__name__}", job_id="some-job", result_ttl=0)
    job = job_named(redis)
    job.refresh()
    assert (job.func_name, list(job.args), job.kwargs) == (queued.func_name, [], {})
    assert job.func is function


@pytest.mark.parametrize("data", [OURS, zlib.compress(OURS)])
def test_ours_may_be_compressed_or_not(data: bytes) -> None:
    """Both of RQ's forms of a job's data are read."""
    assert why_refused({b"data": data}) is None


BAD = {
    "a function of the system": {b"data": packed("os.system", None, ["true"], {})},
    "a function of ours that is no job": {b"data": packed("fleetbeat_worker.jobs.refuse", None, ["x"], {})},
    "a method": {b"data": packed("fleetbeat_worker.jobs.sweep", "os.environ", [], {})},
    "a method of an object": {b"data": packed("sweep", {"py/object": "x"}, [], {})},
    "arguments": {b"data": packed("fleetbeat_worker.jobs.sweep", None, ["x"], {})},
    "named arguments": {b"data": packed("fleetbeat_worker.jobs.sweep", None, [], {"x": 1})},
    "a function that is not text": {b"data": packed(["os.system"], None, [], {})},
    "a function that is an object": {b"data": packed({"a": 1}, None, [], {})},
    "too few parts": {b"data": packed("fleetbeat_worker.jobs.sweep", None, [])},
    "too many parts": {b"data": packed("fleetbeat_worker.jobs.sweep", None, [], {}, 1)},
    "no list": {b"data": zlib.compress(b"4")},
    "nothing": {b"data": b""},
    "no JSON": {b"data": b"{"},
    "no text": {b"data": b"\xff\xfe\xfd"},
    "deep JSON": {b"data": b"[" * 60_000},
    "pickled data": {b"data": zlib.compress(pickle.dumps(("fleetbeat_worker.jobs.sweep", None, (), {})))},
    "pickled data, not compressed": {b"data": pickle.dumps(("os.system", None, ("true",), {}))},
    "cut short": {b"data": zlib.compress(OURS)[:-9]},
    "a bomb": {b"data": zlib.compress(OURS + b" " * 10_000_000)},
    "a large text": {b"data": OURS + b" " * MAX_JOB_BYTES},
    "a callback on success": {b"data": OURS, b"success_callback_name": b"os.abort"},
    "a callback on failure": {b"data": OURS, b"failure_callback_name": b"os.abort"},
    "a callback when stopped": {b"data": OURS, b"stopped_callback_name": b"os.abort"},
    "a webhook": {b"data": OURS, b"webhooks": b'[{"url": "http://127.0.0.1:9/"}]'},
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_a_job_that_is_not_ours_is_replaced(redis: FakeRedis, raw: dict[bytes, bytes]) -> None:
    """A job that could run anything else is refused with a reason, and nothing that it named is left in it."""
    assert why_refused(raw)
    job = job_named(redis)
    job.restore({b"created_at": b"2026-01-31T12:00:00.000000Z", b"origin": b"elsewhere", b"status": b"queued"} | raw)
    assert (job.func_name, job.instance, job.origin) == ("fleetbeat_worker.jobs.refuse", None, QUEUE)
    assert (job.success_callback, job.failure_callback, job.stopped_callback) == (None, None, None)
    assert not job.webhooks
    with pytest.raises(jobs.RefusedJob, match="job"):
        job.func(*job.args)


@pytest.mark.parametrize(
    "field",
    [
        {b"created_at": b"yesterday"},
        {b"timeout": b"\xff"},
        {b"status": b"no status"},
        {b"result_ttl": b"x"},
        {b"origin": b"\xff"},
        {b"dependency_ids": b"{"},
        {b"retry_intervals": b"\xff"},
        {b"worker_name": b"\xff"},
        {b"success_callback_timeout": b"soon"},
    ],
    ids=lambda field: next(iter(field)).decode(),
)
def test_a_malformed_field_is_no_crash(redis: FakeRedis, field: dict[bytes, bytes]) -> None:
    """A job of ours with a field that RQ can't read is refused; no exception reaches the worker."""
    job = job_named(redis)
    job.restore({b"data": OURS} | field)
    assert job.func_name == "fleetbeat_worker.jobs.refuse"
    assert "can't be read" in job.args[0]


def test_a_hash_without_data_is_no_job(redis: FakeRedis) -> None:
    """RQ skips a hash without data."""
    with pytest.raises(NoSuchJobError):
        job_named(redis).restore({b"status": b"queued"})


@pytest.mark.parametrize("error", [StopRequested(), RedisConnectionError()])
def test_a_signal_while_a_job_is_read_is_no_fault_of_the_job(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """RQ's request to stop, and a lost connection, are raised to the worker: the job is good."""

    def restore(_self: Job, _raw: object) -> None:
        raise error

    monkeypatch.setattr(Job, "restore", restore)
    with pytest.raises(type(error)):
        job_named(redis).restore({b"data": OURS})


@pytest.fixture
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class AsksToStop:
    """Sends the worker its signal from a destructor, which no exception leaves."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("moment", ["at housekeeping", "while it waits"])
def test_a_request_to_stop_takes_effect_whatever_it_interrupts(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A signal that comes while Python destroys an object stops the worker, too."""
    looked: list[str] = []

    def look(*_: object, **__: object) -> None:
        looked.append(moment)
        if len(looked) > 1:
            pytest.fail("the worker looked for a job after it was asked to stop")
        AsksToStop()
        raise DequeueTimeout(1, QUEUE)

    monkeypatch.setattr(Queue, "dequeue_any", look)
    worker = FleetbeatWorker([Queue(QUEUE, connection=redis, serializer="json")], connection=redis, serializer="json")
    if moment == "at housekeeping":
        monkeypatch.setattr(worker, "clean_registries", AsksToStop)
    assert worker.work(logging_level=None, max_idle_time=5) is False
    assert looked == ([] if moment == "at housekeeping" else [moment])
    assert redis.hexists(worker.key, "death")

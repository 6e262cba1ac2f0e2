"""What ingest.py compares with: a job of another queue that stores one heartbeat.

The job does to one message what the pipeline does to a batch: the same validation, the same transaction. Each queue's
worker is started as its documentation has it, with the options that make it fastest here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import Engine

from fleetbeat_shared.redis_keys import INBOX
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.entries import RawEntry, decode
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.ingest.transaction import store_heartbeats
from fleetbeat_worker.rules.spans import to_milliseconds


@cache
def _tools() -> tuple[Settings, Engine]:
    """Return the settings and the engine that all jobs of a process share; a forked child makes its own."""
    settings = Settings.from_environment(os.environ)
    return settings, open_engine(settings.sql_url)


def store_heartbeat(wire: str) -> None:
    """Store one heartbeat. Raises ValueError when it was set aside, so that the job fails."""
    settings, engine = _tools()
    now = to_milliseconds(datetime.now(UTC))
    (changes,) = store_heartbeats(engine, decode([RawEntry(f"{now}-0", wire.encode())], now, INBOX), now, settings)
    if not changes.heartbeats:
        message = f"the heartbeat was set aside: {changes.rejected}"
        raise ValueError(message)


@cache
def celery_app() -> Any:  # noqa: ANN401 - Celery has no hints
    """Return the app that Celery's worker and its callers use."""
    from celery import Celery

    app = Celery("single_jobs", broker=os.environ["FLEETBEAT_REDIS_URL"])
    app.task(store_heartbeat, name="store", ignore_result=True)
    return app


@cache
def dramatiq_actor() -> Any:  # noqa: ANN401 - as above
    """Return the actor that Dramatiq's worker and its callers use."""
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url=os.environ["FLEETBEAT_REDIS_URL"])  # type: ignore[no-untyped-call]
    dramatiq.set_broker(broker)
    return dramatiq.actor(actor_name="store")(store_heartbeat)


@cache
def huey_task() -> Any:  # noqa: ANN401 - as above
    """Return the task that Huey's consumer and its callers use."""
    return _huey().task()(store_heartbeat)


@cache
def _huey() -> Any:  # noqa: ANN401 - as above
    from huey import RedisHuey  # type: ignore[import-untyped]

    return RedisHuey("benchmark", url=os.environ["FLEETBEAT_REDIS_URL"], results=False)


def rq_enqueue() -> Callable[[str], object]:
    """Return what enqueues a heartbeat with RQ."""
    from redis import Redis
    from rq import Queue

    queue = Queue("benchmark", connection=Redis.from_url(os.environ["FLEETBEAT_REDIS_URL"]), serializer="json")
    return lambda wire: queue.enqueue("single_jobs.store_heartbeat", wire, result_ttl=0)


ENQUEUE: dict[str, Callable[[], Callable[[str], object]]] = {
    "RQ Worker (forks)": rq_enqueue,
    "RQ SimpleWorker": rq_enqueue,
    "Celery, 2 processes": lambda: celery_app().tasks["store"].delay,
    "Dramatiq, 8 threads": lambda: dramatiq_actor().send,
    "Huey, 8 threads": huey_task,
}
"""What enqueues a heartbeat, by queue."""


def work(name: str) -> None:
    """Be a queue's worker, until somebody ends it."""
    if name.startswith("RQ"):
        from redis import Redis
        from rq import Queue, SimpleWorker, Worker

        connection = Redis.from_url(os.environ["FLEETBEAT_REDIS_URL"])
        queue = Queue("benchmark", connection=connection, serializer="json")
        kind = SimpleWorker if "Simple" in name else Worker
        kind([queue], connection=connection, serializer="json").work(logging_level="WARNING")
    elif name.startswith("Celery"):
        options = ["--concurrency=2", "--loglevel=ERROR", "--without-gossip", "--without-mingle"]
        celery_app().worker_main(["worker", *options])
    elif name.startswith("Dramatiq"):
        from dramatiq import Worker as DramatiqWorker, get_broker

        dramatiq_actor()
        DramatiqWorker(get_broker(), worker_threads=8).start()
        _wait()
    else:
        huey_task()
        _huey().create_consumer(workers=8, periodic=False).run()


def _wait() -> None:
    import signal

    signal.pause()


if __name__ == "__main__":
    import single_jobs  # under this name the jobs find it, and no job pays for its imports

    single_jobs.work(sys.argv[1])

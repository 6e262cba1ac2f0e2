"""The gauges' values, read from Redis and SQL when somebody asks for them.

Each of the two is read in a thread of its own, one reading at a time however many ask; whoever asks waits for a short
time only. So neither one that hangs nor a crowd of scrapers can do more than that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from threading import Lock

from fleetbeat_shared.connection import connect
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database.engine import open_engine, reading
from fleetbeat_worker.notifications.outbox import read_outbox
from fleetbeat_worker.store.pipeline import read_pipeline_state
from fleetbeat_worker.store.sessions import count_states
from fleetbeat_worker.telemetry import metrics
from fleetbeat_worker.telemetry.exposition import Readings
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.workers.status import read_queue

PATIENCE_SECONDS = 3.0
"""How long a scrape waits for Redis or SQL; Prometheus itself gives up after ten seconds."""
REDIS_KEPT_SECONDS = 1.0
SQL_KEPT_SECONDS = 5.0
"""For how long a reading answers further scrapes: to count a million agents costs the database a tenth of a second."""


class Source:
    """One of the places that gauges are read from."""

    def __init__(self, read: Callable[[], Readings], kept_seconds: float) -> None:
        self._read = read
        self._kept_seconds = kept_seconds
        self._thread = ThreadPoolExecutor(1)
        self._lock = Lock()
        self._asked_at = 0.0
        self._answer: Future[Readings] | None = None

    def ask(self) -> Future[Readings]:
        """Return the reading that is under way, or the last one if it is young, or a new one."""
        with self._lock:
            now = time.monotonic()
            answer = self._answer
            if answer is None or (answer.done() and now - self._asked_at >= self._kept_seconds):
                answer = self._answer = self._thread.submit(self._read)
                self._asked_at = now
            return answer


class Sources:
    """Redis and SQL."""

    def __init__(self, settings: Settings) -> None:
        """Connect at the first reading."""
        self._sources = {
            "redis": Source(lambda: read_redis(settings), REDIS_KEPT_SECONDS),
            "sql": Source(lambda: read_sql(settings), SQL_KEPT_SECONDS),
        }

    def read(self) -> Readings:
        """Return what can be known now, and which of the two answered."""
        ends_at = time.monotonic() + PATIENCE_SECONDS
        answers = {target: source.ask() for target, source in self._sources.items()}
        readings: Readings = {metrics.UP.name: dict.fromkeys(answers, 0.0)}
        for target, answer in answers.items():
            try:
                readings |= answer.result(max(0.0, ends_at - time.monotonic()))
            except Exception as error:  # noqa: BLE001 - whatever it is, the counters and the other one are told
                logger.debug("A scrape goes without %s: %s", target, type(error).__name__)
            else:
                readings[metrics.UP.name][target] = 1.0
        return readings


def read_redis(settings: Settings) -> Readings:
    """Return the gauges that Redis knows. Raises redis-py's errors."""
    with closing(connect(settings.redis_url, timeout_seconds=PATIENCE_SECONDS, name="fleetbeat-metrics")) as client:
        state = read_queue(client)
    workers: dict[str, float] = {}
    for worker in state.workers:
        workers[worker.state] = workers.get(worker.state, 0) + 1
    jobs = {"waiting": state.jobs_waiting, "started": state.jobs_started, "failed": state.jobs_failed}
    readings: Readings = {
        metrics.BACKLOG.name: {"": state.horizon.backlog},
        metrics.PENDING.name: {"": sum(state.pending.values())},
        metrics.LOST.name: {"": state.lost},
        metrics.JOBS.name: {name: float(number) for name, number in jobs.items()},
        metrics.WORKERS.name: workers,
    }
    if state.lag_seconds is not None:
        readings[metrics.LAG_SECONDS.name] = {"": max(0.0, state.lag_seconds)}
    return readings


def read_sql(settings: Settings) -> Readings:
    """Return the gauges that SQL knows. Raises DatabaseUnavailable, or SQLAlchemy's errors without a schema."""
    engine = open_engine(settings.sql_url)
    try:
        with reading(engine) as connection:
            pipeline = read_pipeline_state(connection)
            agents = count_states(connection)
            outbox = read_outbox(connection)
    finally:
        engine.dispose()
    readings: Readings = {
        metrics.AGENTS.name: {state: float(number) for state, number in agents.items()},
        metrics.OUTBOX.name: {"waiting": float(outbox.waiting), "dead": float(outbox.dead)},
    }
    moments: dict[str, datetime | None] = {
        metrics.LAST_SWEEP.name: pipeline.last_sweep_at,
        metrics.WATERMARK.name: pipeline.watermark,
        metrics.OLDEST_NOTICE.name: outbox.oldest_at,
    }
    for name, moment in moments.items():
        if moment is not None:
            readings[name] = {"": moment.timestamp()}
    return readings

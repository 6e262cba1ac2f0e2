"""The prune job: removes rows older than their retention age, in slices that hold no lock for long.

Ages count back from the watermark: a message that isn't in SQL yet may be the replay of a stored one, and is recognised
by that. So ingest that is behind delays pruning, too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from sqlalchemy import Engine

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.retention import old_partitions, queries
from fleetbeat_worker.retention.queries import Kind, Slice
from fleetbeat_worker.store.pipeline import read_pipeline_state
from fleetbeat_worker.telemetry.log import logger

FIRST_ROWS = 100
MOST_ROWS = 20_000
LEAST_ROWS = 5
"""How many rows a slice has: few at first, until the speed of the database is known."""
SLICE_SECONDS = 0.025
"""How long a slice should hold its locks; even four times as long hardly delays others."""
PAUSE_SECONDS = 0.01
"""The least pause between two slices, in which others get the locks; otherwise as long as the last slice took."""
DETACH_TRIES = 5
"""How often one run tries to detach a partition that is in use."""


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """The times before which rows are removed."""

    as_of: datetime
    """The time that ages count back from."""
    history: datetime
    """Of heartbeats, events and outages."""
    rejected: datetime
    notifications: datetime
    """Of all but waiting notifications."""
    ended_sessions: datetime
    """Never later than `history`: a session is kept as long as its heartbeats, which are older than its end."""

    @classmethod
    def of(
        cls, engine: Engine, settings: Settings, now: datetime, older_than: timedelta | None = None
    ) -> Cutoffs | None:
        """Derive the cutoffs from the ages in the settings, or from one age for all; None before the first sweep.

        `now` is this machine's time: a Redis clock that jumped ahead must not remove everything.

        Raises DatabaseUnavailable.
        """
        with reading(engine) as connection:
            watermark = read_pipeline_state(connection).watermark
        if watermark is None:
            return None
        as_of = min(watermark, now)
        days = (
            settings.retention_days,
            settings.rejected_days,
            settings.notification_days,
            settings.ended_session_days,
        )
        history, rejected, notifications, sessions = (as_of - (older_than or timedelta(days=number)) for number in days)
        return cls(as_of, history, rejected, notifications, min(history, sessions))

    def steps(self) -> Iterator[tuple[Kind, datetime]]:
        """Yield the kinds of rows in the order in which they are removed, each with its cutoff."""
        yield queries.STRAYS, self.history
        yield queries.HEARTBEATS, self.history
        yield queries.EVENTS, self.history
        yield queries.OUTAGES, self.history
        yield queries.REJECTED, self.rejected
        yield queries.NOTIFICATIONS, self.notifications
        yield queries.SESSIONS, self.ended_sessions


@dataclass(slots=True)
class PruneReport:
    """What was removed, or would be."""

    removed: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("heartbeats", "events", "rejected_messages", "notifications", "agents", "outages"), 0
        )
    )
    """Rows by table, without those in dropped partitions."""
    partitions: list[str] = field(default_factory=list)
    """The days (`2026-01-31`) whose partitions were dropped, on PostgreSQL."""
    in_use: list[str] = field(default_factory=list)
    """The days whose partitions could not be dropped, as `heartbeats` was read all the time."""
    finished: bool = True
    """False if the run was stopped before its end."""

    @property
    def rows(self) -> int:
        """The number of rows of all tables."""
        return sum(self.removed.values())


def count_old(engine: Engine, cutoffs: Cutoffs) -> PruneReport:
    """Count the old rows. Raises DatabaseUnavailable."""
    report = PruneReport()
    with reading(engine) as connection:
        days = [*old_partitions.find_detached(connection), *old_partitions.find_old(connection, cutoffs.history)]
        report.partitions = [day.isoformat() for day in days]
        for kind, before in cutoffs.steps():
            report.removed[kind.table] += queries.count_old(connection, kind, before)
    return report


def prune(
    engine: Engine,
    cutoffs: Cutoffs,
    *,
    stop: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda _: None,
) -> PruneReport:
    """Remove old rows; `advance` is called with the number of rows that each slice removed.

    `stop` is polled between slices. A run that is killed leaves the rest to the next one.

    Raises DatabaseUnavailable; what was removed before stays removed.
    """
    run = _Run(engine, cutoffs, stop, advance)
    run.drop_partitions()
    for kind, before in cutoffs.steps():
        run.remove_all(kind, before)
    if run.report.rows or run.report.partitions:
        details = {"rows": run.report.removed, "partitions": run.report.partitions, "finished": run.report.finished}
        logger.info("Old rows were removed", extra=details)
    return run.report


class _Run:
    def __init__(
        self, engine: Engine, cutoffs: Cutoffs, stop: Callable[[], bool], advance: Callable[[int], None]
    ) -> None:
        self._engine = engine
        self._cutoffs = cutoffs
        self._stop = stop
        self._advance = advance
        self.report = PruneReport()

    def stopped(self) -> bool:
        if self._stop():
            self.report.finished = False
        return not self.report.finished

    def drop_partitions(self) -> None:
        before = self._cutoffs.history
        with reading(self._engine) as connection:
            attached = old_partitions.find_old(connection, before)
        for day in attached:
            if self.stopped() or not self._detach(day):
                break
        with reading(self._engine) as connection:
            detached = old_partitions.find_detached(connection)
        for day in detached:
            if self.stopped():
                break
            with writing(self._engine) as connection:
                dropped = old_partitions.drop(connection, day, before)
            if dropped:
                self.report.partitions.append(day.isoformat())

    def _detach(self, day: date) -> bool:
        for _ in range(DETACH_TRIES):
            try:
                with writing(self._engine) as connection:
                    old_partitions.detach(connection, day, self._cutoffs.history)
            except DatabaseUnavailable as error:
                failure = error
                if self.stopped():
                    return False
                time.sleep(random.uniform(1, 3) * old_partitions.LOCK_MILLISECONDS / 1000)  # noqa: S311 - ingest's turn
            else:
                return True
        # A long reader, such as a backup, holds the table. The next run tries again.
        self.report.in_use.append(day.isoformat())
        logger.info("A day's partition can't be dropped now: %s", failure, extra={"day": day.isoformat()})
        return False

    def remove_all(self, kind: Kind, before: datetime) -> None:
        """Remove the old rows of a kind, slice by slice."""
        size, position = FIRST_ROWS, None
        while not self.stopped():
            with reading(self._engine) as connection:
                found = kind.find(connection, before, position, size)
            if found is None:
                break
            last_position, position = position, found.position
            number, seconds = self._remove(found, kind, before)
            size = next_size(size, seconds)
            time.sleep(max(PAUSE_SECONDS, seconds))
            if not number and position == last_position:
                break  # other transactions have locked these rows

    def _remove(self, found: Slice, kind: Kind, before: datetime) -> tuple[int, float]:
        """Remove one slice; return its number of rows, and for how long it held its locks."""
        with writing(self._engine) as connection:
            started = time.monotonic()
            number = queries.remove(connection, kind, before, found)
        seconds = time.monotonic() - started
        self.report.removed[kind.table] += number
        self._advance(number)
        return number, seconds


def next_size(size: int, seconds: float) -> int:
    """Derive the size of the next slice from the size and the duration of the last one."""
    if seconds > 2 * SLICE_SECONDS:
        return max(LEAST_ROWS, size // 4)
    if seconds > SLICE_SECONDS:
        return max(LEAST_ROWS, size * 3 // 4)
    return min(MOST_ROWS, size * 2)

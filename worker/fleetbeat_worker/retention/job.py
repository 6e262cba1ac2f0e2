"""Removing what is older than its age, in slices that nobody waits for.

Ages count back from the watermark: what isn't in SQL yet may be a replay of what is, and must find it there. So a
pipeline that is behind delays pruning too.
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
from fleetbeat_worker.retention import old_partitions as old_days, queries as retention
from fleetbeat_worker.retention.queries import Kind, Slice, count_due, find_due, remove
from fleetbeat_worker.store.pipeline import read_pipeline_state
from fleetbeat_worker.telemetry.log import logger

FIRST_ROWS = 100
MOST_ROWS = 20_000
LEAST_ROWS = 5
"""How many rows a slice has: few at first, as nobody knows how fast the database is."""
SLICE_SECONDS = 0.025
"""How long a slice should hold its locks. It may take four times as long on a bad day, and others hardly notice."""
PAUSE_SECONDS = 0.01
"""How long others have at least, between two slices; as long as the last one took, if that is more."""
DETACH_TRIES = 5
"""How often a partition that somebody uses is tried in one run."""


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """The moments before which rows are old."""

    as_of: datetime
    """What ages count back from."""
    history: datetime
    """Of heartbeats, events and outages."""
    rejected: datetime
    notifications: datetime
    """Of those that are done with; one that waits stays."""
    ended_sessions: datetime
    """Never later than `history`: a session stays as long as its heartbeats, which came before its end."""

    @classmethod
    def of(
        cls, engine: Engine, settings: Settings, now: datetime, older_than: timedelta | None = None
    ) -> Cutoffs | None:
        """Return the cutoffs by the settings' ages, or by one age for all; None before the first sweep.

        `now` is this machine's time: a Redis whose clock jumped ahead must not remove everything.

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
        history, rejected, told, sessions = (as_of - (older_than or timedelta(days=number)) for number in days)
        return cls(as_of, history, rejected, told, min(history, sessions))

    def steps(self) -> Iterator[tuple[Kind, datetime]]:
        """Yield what is removed row by row, in this order, each with its cutoff."""
        yield retention.STRAYS, self.history
        yield retention.HEARTBEATS, self.history
        yield retention.EVENTS, self.history
        yield retention.OUTAGES, self.history
        yield retention.REJECTED, self.rejected
        yield retention.NOTIFICATIONS, self.notifications
        yield retention.SESSIONS, self.ended_sessions


@dataclass(slots=True)
class PruneReport:
    """What was removed, or what would be."""

    removed: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("heartbeats", "events", "rejected_messages", "notifications", "agents", "outages"), 0
        )
    )
    """Rows by table, without those in dropped partitions."""
    partitions: list[str] = field(default_factory=list)
    """The days (`2026-01-31`) whose partitions were dropped, on PostgreSQL."""
    in_use: list[str] = field(default_factory=list)
    """The days whose partitions couldn't be dropped, as somebody was reading `heartbeats` all the time."""
    finished: bool = True
    """Whether the run came to its end, and wasn't stopped."""

    @property
    def rows(self) -> int:
        """How many rows there are in all."""
        return sum(self.removed.values())


def find_old(engine: Engine, cutoffs: Cutoffs) -> PruneReport:
    """Return what is old. Raises DatabaseUnavailable."""
    report = PruneReport()
    with reading(engine) as connection:
        days = [*old_days.taken_off(connection), *old_days.old_days(connection, cutoffs.history)]
        report.partitions = [day.isoformat() for day in days]
        for kind, before in cutoffs.steps():
            report.removed[kind.table] += count_due(connection, kind, before)
    return report


def prune(
    engine: Engine,
    cutoffs: Cutoffs,
    *,
    stop: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda _: None,
) -> PruneReport:
    """Remove what is old; `advance` is told how many rows each slice removed.

    Between slices, `stop` is asked whether to end early. A run that is killed leaves the rest to the next one.

    Raises DatabaseUnavailable; what was removed before stays so.
    """
    run = _Run(engine, cutoffs, stop, advance)
    run.drop_days()
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

    def drop_days(self) -> None:
        before = self._cutoffs.history
        with reading(self._engine) as connection:
            attached = old_days.old_days(connection, before)
        for day in attached:
            if self.stopped() or not self._take_off(day):
                break
        with reading(self._engine) as connection:
            off = old_days.taken_off(connection)
        for day in off:
            if self.stopped():
                break
            with writing(self._engine) as connection:
                dropped = old_days.drop(connection, day, before)
            if dropped:
                self.report.partitions.append(day.isoformat())

    def _take_off(self, day: date) -> bool:
        for _ in range(DETACH_TRIES):
            try:
                with writing(self._engine) as connection:
                    old_days.take_off(connection, day, self._cutoffs.history)
            except DatabaseUnavailable as error:
                failure = error
                if self.stopped():
                    return False
                time.sleep(random.uniform(1, 3) * old_days.LOCK_MILLISECONDS / 1000)  # noqa: S311 - ingest's turn
            else:
                return True
        # A long reader, say a backup, is in the way. It is no reason to fail: the next run tries again.
        self.report.in_use.append(day.isoformat())
        logger.info("A day's partition can't be dropped now: %s", failure, extra={"day": day.isoformat()})
        return False

    def remove_all(self, kind: Kind, before: datetime) -> None:
        """Remove what is old of a kind, slice by slice."""
        size, place = FIRST_ROWS, None
        while not self.stopped():
            with reading(self._engine) as connection:
                found = find_due(connection, kind, before, place, size)
            if found is None:
                break
            last_place, place = place, found.place
            number, seconds = self._remove(found, kind, before)
            size = next_size(size, seconds)
            time.sleep(max(PAUSE_SECONDS, seconds))
            if not number and place == last_place:
                break  # others hold these rows, and there is no way around them

    def _remove(self, found: Slice, kind: Kind, before: datetime) -> tuple[int, float]:
        """Remove one slice; return how many rows it had, and for how long it held its locks."""
        with writing(self._engine) as connection:
            started = time.monotonic()
            number = remove(connection, kind, before, found)
        seconds = time.monotonic() - started
        self.report.removed[kind.table] += number
        self._advance(number)
        return number, seconds


def next_size(size: int, seconds: float) -> int:
    """Return how many rows the next slice should have, after one of `size` rows that took so long."""
    if seconds > 2 * SLICE_SECONDS:
        return max(LEAST_ROWS, size // 4)
    if seconds > SLICE_SECONDS:
        return max(LEAST_ROWS, size * 3 // 4)
    return min(MOST_ROWS, size * 2)

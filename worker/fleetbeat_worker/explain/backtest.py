"""Who would have been flagged under other settings, beside who was: the stored heartbeats, judged again.

The rules are the real ones (`fleetbeat_worker.rules.liveness`), with the outages, pauses and maintenance of that time.
Heartbeats are read once, session by session, and none is kept: memory is needed for the agents that were flagged.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from itertools import groupby
from operator import itemgetter
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, Row

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.downtime.outages import read_outages
from fleetbeat_worker.rules.deadlines import DeadlineRule, Unwatched
from fleetbeat_worker.rules.enums import LIFECYCLE, EventType
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, Promise
from fleetbeat_worker.rules.replay import Replay, Silence
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from fleetbeat_worker.rules.timeline import (
    PAUSES,
    WINDOWS,
    Change,
    changes_of,
    is_open,
    promise_of,
    promise_told,
    spans_of,
    told_silences,
)
from fleetbeat_worker.store import history as store
from fleetbeat_worker.store.pipeline import read_pipeline_state

SESSIONS_AT_ONCE = 500
"""Of how many sessions the events are in memory at once."""

NAMED_AT_MOST = 200
"""Of so few sessions only their own heartbeats are read; of more, all, which costs no more than to look for them."""


def backtest(  # noqa: PLR0913 - what is asked for, and where
    engine: Engine,
    settings: Settings,
    trial: Trial,
    *,
    since: timedelta,
    agent_glob: str | None = None,
    limit: int = 50,
    advance: Callable[[int, int], None] = lambda _done, _of: None,
) -> BacktestReport:
    """Judge the heartbeats of the last time again.

    `limit`: how many silences are kept one by one. `advance` is told how many sessions of how many are done.

    Raises DatabaseUnavailable; FleetbeatError when no sweep ever ran or nothing is stored.
    """
    with reading(engine) as connection:
        until = read_pipeline_state(connection).watermark
        oldest = None if until is None else store.read_oldest_time(connection, until - since)
        if until is None or oldest is None:
            message = "There is nothing to judge yet: no sweep has run, or no heartbeat of that time is stored."
            raise FleetbeatError(message)
        # What is older may be half removed.
        known_since = min(until, max(until - since, until - timedelta(days=settings.retention_days), oldest))
        report = BacktestReport(known_since, until, is_cut=known_since > until - since)
        run = _Run(connection, settings, trial, report, limit)
        run.judge_all(agent_glob, advance)
    report.findings = [finding for _, _, finding in sorted(run.kept, key=itemgetter(0, 1))]
    return report


class _Run:
    def __init__(
        self, connection: Connection, settings: Settings, trial: Trial, report: BacktestReport, limit: int
    ) -> None:
        self._connection = connection
        self._fleet_limit = settings.missed_intervals
        self._trial = trial
        self._report = report
        self._limit = limit
        self._start, self._end = to_milliseconds(report.since), to_milliseconds(report.until)
        windows = spans_of(changes_of(store.read_fleet_changes(connection, WINDOWS)), self._end, *WINDOWS)
        self._unwatched = Unwatched(read_outages(connection), windows)
        self._rules: dict[tuple[Promise, int], DeadlineRule] = {}
        self.kept: list[tuple[int, int, Finding]] = []
        self._found = 0

    def judge_all(self, agent_glob: str | None, advance: Callable[[int, int], None]) -> None:
        sessions = store.count_sessions(self._connection)
        chosen = self._chosen(agent_glob)
        if chosen is not None and not chosen:
            return
        only = [row.session_id for row in chosen or ()]
        signs = groupby(
            store.read_heartbeat_times(self._connection, self._report.since, self._report.until, only), itemgetter(0)
        )
        group = next(signs, None)
        done = 0
        for chunk in self._chunks() if chosen is None else [chosen]:
            rows = chunk if agent_glob is None else [row for row in chunk if fnmatchcase(row.agent_name, agent_glob)]
            changes = self._changes([row.session_id for row in rows])
            for row in rows:
                key = row.session_id.bytes
                while group is not None and group[0] < key:
                    group = next(signs, None)  # of an agent that wasn't asked for
                beats: Iterable[store.HeartbeatTimes] = ()
                if group is not None and group[0] == key:
                    beats = group[1]
                try:
                    self._judge(row, changes.get(row.session_id, []), beats)
                except UNJUDGEABLE:
                    self._report.unjudged += 1
            done += len(chunk)
            advance(done, sessions if chosen is None else len(chosen))

    def _chosen(self, agent_glob: str | None) -> Sequence[Row[Any]] | None:
        """Return the sessions whose names match, if they are few."""
        if agent_glob is None:
            return None
        found: list[Row[Any]] = []
        for chunk in self._chunks():
            found += [row for row in chunk if fnmatchcase(row.agent_name, agent_glob)]
            if len(found) > NAMED_AT_MOST:
                return None
        return found

    def _chunks(self) -> Iterator[Sequence[Row[Any]]]:
        after: UUID | None = None
        while rows := store.read_sessions_after(self._connection, after, SESSIONS_AT_ONCE):
            after = rows[-1].session_id
            yield rows

    def _changes(self, session_ids: Sequence[UUID]) -> dict[UUID, list[Change]]:
        by_session: dict[UUID, list[Row[Any]]] = {}
        for event in store.read_changes(self._connection, session_ids):
            by_session.setdefault(event.session_id, []).append(event)
        return {session_id: changes_of(events) for session_id, events in by_session.items()}

    def _rule(self, promise: Promise, missed_limit: int) -> DeadlineRule:
        key = promise, missed_limit
        if key not in self._rules:
            self._rules[key] = DeadlineRule(promise, missed_limit, self._unwatched)
        return self._rules[key]

    def _judge(self, row: Row[Any], changes: Sequence[Change], beats: Iterable[store.HeartbeatTimes]) -> None:
        told = [silence for silence in told_silences(row, changes) if silence.flagged_at < self._end]
        marks = sorted(changes, key=lambda change: change.at)
        replay = self._begin(row, marks, told)
        if replay is None:
            return
        self._report.sessions += 1
        self._play(replay, [mark for mark in marks if self._start < mark.at <= self._end], row, beats)
        replay.finish(self._end)
        would = [silence for silence in replay.silences if silence.flagged_at >= self._start]
        self._count(row, would, [silence for silence in told if silence.flagged_at >= self._start])

    def _begin(self, row: Row[Any], marks: Sequence[Change], told: Sequence[Silence]) -> Replay | None:
        """Return a session as it was at the start; None if it ended before, or was registered after the end."""
        past = [mark for mark in marks if mark.at <= self._start]
        kinds = [mark.kind for mark in past]
        lifecycle = [mark for mark in past if mark.kind in LIFECYCLE]
        registered = [mark.detail for mark in lifecycle if mark.kind is EventType.REGISTERED]
        coming = any(mark.kind is EventType.REGISTERED and mark.at > self._start for mark in marks)
        live = bool(lifecycle) and lifecycle[-1].kind is EventType.REGISTERED
        if not lifecycle:  # the event of its registration is gone, if it was registered before
            live = self._is_past(row.registered_at) and not self._is_past(row.ended_at)
        if not live and not coming:
            return None
        rule = self._rule_told(registered[-1] if registered else None, row)
        replay = Replay(rule)
        # Heartbeats of before aren't read: who has some of later was alive then, as far as it isn't told otherwise.
        restarts = [mark.at for mark in past if mark.kind is EventType.RESUMED]
        seen_at = to_milliseconds(row.last_seen_at or row.registered_at)
        since = min(self._start, max(seen_at, to_milliseconds(row.registered_at), *restarts))
        told_of_pauses = any(kind is EventType.PAUSED for kind in kinds)
        paused = is_open(past, *PAUSES) if told_of_pauses else self._is_past(row.paused_at)
        replay.start(since, live=live, paused=paused)
        open_then = [s for s in told if s.flagged_at < self._start and (s.ended_at or self._end) > self._start]
        if open_then:
            replay.begin_degraded(open_then[-1].since, open_then[-1].flagged_at)
        return replay

    def _is_past(self, moment: datetime | None) -> bool:
        return moment is not None and to_milliseconds(moment) <= self._start

    def _rule_told(self, detail: dict[str, Any] | None, row: Row[Any]) -> DeadlineRule:
        promise = promise_of(row)
        told = promise if detail is None else promise_told(detail, promise)
        own = row.missed_limit if detail is None else detail.get("missed_intervals")
        return self._rule(self._trial.promise(told), self._trial.missed or own or self._fleet_limit)

    def _play(
        self, replay: Replay, marks: Sequence[Change], row: Row[Any], beats: Iterable[store.HeartbeatTimes]
    ) -> None:
        beat = replay.beat
        number = 0
        signs = iter(beats)
        sign = next(signs, None)
        for mark in marks:
            while sign is not None and sign[1] < mark.at:
                beat(sign[1], sign[2])
                number += 1
                sign = next(signs, None)
            self._apply(replay, mark, row)
        while sign is not None:
            beat(sign[1], sign[2])
            number += 1
            sign = next(signs, None)
        self._report.heartbeats += number

    def _apply(self, replay: Replay, mark: Change, row: Row[Any]) -> None:
        match mark.kind:
            case EventType.REGISTERED:
                replay.register(mark.at, self._rule_told(mark.detail, row))
            case EventType.DEREGISTERED:
                replay.end(mark.at)
            case EventType.PAUSED:
                replay.pause(mark.at)
            case EventType.RESUMED:
                replay.resume(mark.at)

    def _count(self, row: Row[Any], would: Sequence[Silence], was: Sequence[Silence]) -> None:
        if not would and not was:
            return
        totals = self._report.by_agent.setdefault(row.agent_name, (Total(), Total()))
        whole = (self._report.would, self._report.was)
        for silences, total, sum_of_all in zip((would, was), totals, whole, strict=True):
            for silence in silences:
                one = Total(1, (min(silence.ended_at or self._end, self._end) - silence.flagged_at) / 1000)
                total.add(one)
                sum_of_all.add(one)
        for wanted, real in pair(would, was):
            self._keep(row, wanted, real)

    def _keep(self, row: Row[Any], would: Silence | None, was: Silence | None) -> None:
        known = [silence for silence in (would, was) if silence is not None]
        ends = [silence.ended_at for silence in known if silence.ended_at is not None]
        finding = Finding(
            agent_name=row.agent_name,
            session_id=row.session_id,
            silent_since=from_milliseconds(known[0].since),
            would_at=from_milliseconds(would.flagged_at) if would else None,
            was_at=from_milliseconds(was.flagged_at) if was else None,
            ended_at=from_milliseconds(ends[0]) if ends else None,
        )
        self._found += 1  # no two items are equal
        item = (min(silence.flagged_at for silence in known), self._found, finding)
        if len(self.kept) < self._limit:
            heapq.heappush(self.kept, item)
        elif self._limit:
            heapq.heappushpop(self.kept, item)


def pair(would: Sequence[Silence], was: Sequence[Silence]) -> Iterator[tuple[Silence | None, Silence | None]]:
    """Yield what would be flagged beside what was for the same silence: those whose times overlap."""
    left = list(was)
    for silence in would:
        other = next((real for real in left if _overlap(silence, real)), None)
        if other is not None:
            left.remove(other)
        yield silence, other
    for real in left:
        yield None, real


def _overlap(one: Silence, other: Silence) -> bool:
    """Return whether two silences are the same one, maybe noticed at another time."""
    first, second = sorted((one, other), key=lambda silence: silence.since)
    return first.since == second.since or first.ended_at is None or second.since < first.ended_at


@dataclass(frozen=True, slots=True)
class Trial:
    """The settings to try; None stays as each agent has it."""

    missed: int | None = None
    """How many intervals an agent may miss."""
    grace_seconds: float | None = None
    interval_seconds: float | None = None
    """In place of the intervals that agents promised; those on a schedule keep it."""

    def promise(self, promise: Promise) -> Promise:
        """Return what a promise is with these settings."""
        if self.grace_seconds is not None:
            promise = replace(promise, grace_seconds=self.grace_seconds)
        if self.interval_seconds is not None and promise.interval_seconds is not None:
            promise = replace(promise, interval_seconds=self.interval_seconds)
        return promise


@dataclass(slots=True)
class Total:
    """How often and for how long."""

    flags: int = 0
    seconds: float = 0.0

    def add(self, other: Total) -> None:
        """Count another total in."""
        self.flags += other.flags
        self.seconds += other.seconds

    def to_json(self) -> dict[str, Any]:
        """Return the total as `--json` prints it."""
        return {"flags": self.flags, "degraded_seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class Finding:
    """A silence for which an agent would be flagged, or was, or both."""

    agent_name: str
    session_id: UUID
    silent_since: datetime
    would_at: datetime | None
    """When it would have been flagged: at its deadline; None if it wouldn't."""
    was_at: datetime | None
    """The deadline for which it was flagged; None if it wasn't."""
    ended_at: datetime | None
    """When it was heard again, ended or paused; None if it still is silent."""

    def to_json(self) -> dict[str, Any]:
        """Return the silence as `--json` prints it."""
        return {
            "agent_name": self.agent_name,
            "session_id": self.session_id,
            "silent_since": self.silent_since,
            "would_be_degraded_at": self.would_at,
            "degraded_at": self.was_at,
            "ended_at": self.ended_at,
        }


@dataclass(slots=True)
class BacktestReport:
    """What a backtest found."""

    since: datetime
    """From when on flags count."""
    until: datetime
    """The watermark: as far as anything is known."""
    is_cut: bool
    """Whether less is stored than was asked for."""
    sessions: int = 0
    heartbeats: int = 0
    unjudged: int = 0
    """Sessions whose promise can't be worked out: they are left out."""
    would: Total = field(default_factory=Total)
    was: Total = field(default_factory=Total)
    by_agent: dict[str, tuple[Total, Total]] = field(default_factory=dict)
    """Agents that would be flagged or were, by name: both totals."""
    findings: list[Finding] = field(default_factory=list)
    """The latest silences, the newest last."""

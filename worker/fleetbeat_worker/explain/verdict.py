"""Why an agent is judged as it is: the verdict of now or of a moment before, and every fact behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from redis import Redis
from sqlalchemy import Engine

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import exact
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.explain.anomalies import Flapping, Standing, Stuck
from fleetbeat_worker.explain.deadline_sum import Arithmetic, Start, work_out
from fleetbeat_worker.explain.evidence import HEARTBEATS_SHOWN, Case, read_case
from fleetbeat_worker.explain.explanation import Explanation, Flag
from fleetbeat_worker.explain.suppressions import Spell, ended, ended_since, paused_until, pauses_of, windows_of
from fleetbeat_worker.fleet.agents import read_pipeline, read_redis
from fleetbeat_worker.fleet.current_state import WATCHED
from fleetbeat_worker.fleet.pipeline import PipelineView
from fleetbeat_worker.rules.anomalies import stuck_limit
from fleetbeat_worker.rules.deadlines import Unwatched
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, State, missed_intervals, shown_state
from fleetbeat_worker.rules.maintenance_windows import Window
from fleetbeat_worker.rules.spans import Span, from_milliseconds, to_milliseconds
from fleetbeat_worker.rules.timeline import (
    PAUSES,
    WINDOWS,
    Change,
    is_open,
    paused_spans,
    promise_of,
    promise_told,
    spans_of,
    told_silences,
)


def explain(
    settings: Settings, engine: Engine, client: Redis, asked: str | UUID, at: datetime | None = None
) -> Explanation:
    """Explain the verdict on a session, or on that session of a name that is (or was) the one to judge.

    `at`: a moment of before, explained by what is stored of it.

    Raises DatabaseUnavailable; UnknownSession; FleetbeatError for a moment that lies ahead or before the registration,
    and for a promise that can't be worked out.
    """
    readings = read_redis(settings, client)
    with reading(engine) as connection:
        pipeline = read_pipeline(settings, connection, *readings)
        if at is not None and at > pipeline.now:
            message = f"{exact(at)} UTC lies ahead; only what was and what is can be explained."
            raise FleetbeatError(message)
        case = read_case(connection, asked, at or pipeline.now)
        case.read_windows(connection, pipeline.now)
        as_of = pipeline.as_of or pipeline.now
        if at is not None:
            unwatched = _unwatched(case.outages, at)
            # As it was shown then: of the moment after which nobody watched.
            as_of = from_milliseconds(unwatched[0]) if unwatched else min(at, as_of)
        case.read_heartbeats(connection, pipeline.now if at is None else as_of)
    try:
        return _Judge(settings, case, pipeline, at, as_of).explanation()
    except UNJUDGEABLE as error:
        message = f"The promise of {case.row.agent_name} can't be worked out here: {error}. Register it anew."
        raise FleetbeatError(message) from error


def _unwatched(outages: Sequence[Span], moment: datetime) -> Span | None:
    """Return the outage that a moment lies in."""
    at = to_milliseconds(moment)
    return next((span for span in outages if span[0] < at < span[1]), None)


@dataclass(slots=True)
class _Judge:
    """Judges a case: as of now by the session's row, as of before by what is stored of that time."""

    settings: Settings
    case: Case
    pipeline: PipelineView
    at: datetime | None
    as_of: datetime
    notes: list[str] = field(default_factory=list)

    def explanation(self) -> Explanation:
        """Return the verdict with its facts."""
        now = to_milliseconds(self.as_of)
        past = [change for change in self.case.changes if change.known_at <= now] if self.at else self.case.changes
        windows = [change for change in self.case.windows if change.at <= now]
        arithmetic = self._arithmetic(past, windows, now)
        running = self.case.running if self.at is None else None
        maintenance = windows_of(windows, running, now)
        until = self._counted_until(maintenance, running)
        stored, since = self._state_now() if self.at is None else self._state_then(past, arithmetic, until, now)
        missed = missed_intervals(
            arithmetic.promise,
            arithmetic.start.at,
            arithmetic.deadline_at,
            until if stored in WATCHED else self.as_of,
            arithmetic.missed_limit,
        )
        state = shown_state(stored, missed)
        beats = tuple(self.case.beats[-HEARTBEATS_SHOWN:])
        shown_from = to_milliseconds(min([beat.received_at for beat in beats] + [arithmetic.start.at]))
        text, next_at = self._prospects(past, windows, arithmetic).next(state)
        self._tell_what_is_left_out(past)
        stuck, flapping = self._standing(past, windows, arithmetic, state)
        return Explanation(
            agent_name=self.case.row.agent_name,
            session_id=self.case.row.session_id,
            state=state,
            state_since=arithmetic.late_at if state is State.LATE else since,
            asked_at=self.at,
            as_of=self.as_of,
            held=self._held(),
            pipeline=self.pipeline if self.at is None else None,
            missed=0 if state in {State.ENDED, State.PAUSED} else missed,
            arithmetic=arithmetic,
            flag=_last_flag(past) if state is State.DEGRADED else None,
            stuck=stuck,
            flapping=flapping,
            heartbeats=beats,
            pauses=ended_since(pauses_of(self.case.row, self.case.agent, past, now), shown_from),
            maintenance=ended_since(maintenance, shown_from),
            ended=ended(self.case.agent, past) if state is State.ENDED else None,
            outages=_since([span for span in self.case.outages if span[1] <= now], shown_from),
            next=text,
            next_at=next_at,
            notes=tuple(self.notes),
        )

    def _counted_until(self, maintenance: Sequence[Spell], running: Window | None) -> datetime:
        """Return until when silence counts: in maintenance clocks stand still, here as on the dashboard."""
        if self.at is None and running is None:
            return self.as_of
        lasting = [spell.started_at for spell in maintenance if spell.ended_at is None]
        return min([self.as_of, *lasting, *([running.starts_at] if running else [])])

    def _arithmetic(self, past: Sequence[Change], windows: Sequence[Change], now: int) -> Arithmetic:
        row = self.case.row
        promise, limit = promise_of(row), row.missed_limit
        seen_at, opened_at, resumed_at = row.last_seen_at, row.registered_at, row.resumed_at
        if self.at is not None:
            seen_at = max((beat.seen_at for beat in self.case.beats), default=None)
            life = self.case.life(now)
            opened_at = from_milliseconds(life[0]) if life else row.registered_at
            resumed_at = _last(past, EventType.RESUMED)
            told = [change.detail for change in past if change.kind is EventType.REGISTERED]
            if told:
                promise, limit = promise_told(told[-1], promise), told[-1].get("missed_intervals")
        starts = [
            Start(moment, why)
            for moment, why in (
                (opened_at, "registration"),
                (resumed_at, "end of the pause"),
                (seen_at, "last heartbeat"),
            )
            if moment is not None
        ]
        start = max(reversed(starts), key=lambda start: start.at)
        stored = row.deadline_at if self.at is None else None
        unwatched = self._unwatched(windows, now)
        return work_out(start, promise, limit or self.settings.missed_intervals, unwatched, stored)

    def _unwatched(self, windows: Sequence[Change], now: int) -> Unwatched:
        over = spans_of(windows, now, *WINDOWS)
        if is_open(windows, *WINDOWS):
            over.pop()
        return Unwatched([span for span in self.case.outages if span[1] <= now], over)

    def _standing(
        self, past: Sequence[Change], windows: Sequence[Change], arithmetic: Arithmetic, state: State
    ) -> tuple[Stuck | None, Flapping | None]:
        """Return whether the agent is stuck, or when it would be, and whether it flaps."""
        if state is State.ENDED or self.case.agent is None:
            return None, None
        now, is_now = to_milliseconds(self.as_of), self.at is None
        changes = [change for change in self.case.standing if is_now or change.at <= now]
        standing = Standing(self.case.agent, changes, arithmetic.promise, self.as_of, is_now)
        told = [change.detail for change in past if change.kind is EventType.REGISTERED]
        own = self.case.agent.stuck_after if is_now or not told else told[-1].get("stuck_after")
        limit = stuck_limit(own, self.settings.stuck_after)
        stuck = standing.stuck(limit, self._unwatched(windows, now))
        if stuck is not None and stuck.since is None and state is not State.OK:
            stuck = None  # nobody looks whether it is
        return stuck, standing.flapping(self.settings.flapping_changes)

    def _state_now(self) -> tuple[State, datetime]:
        return State(self.case.row.state), self.case.row.state_changed_at

    def _state_then(
        self, past: Sequence[Change], arithmetic: Arithmetic, until: datetime, now: int
    ) -> tuple[State, datetime | None]:
        """Return the state of before, as the events tell it, and since when."""
        life = self.case.life(now)
        if life is not None and life[1] < now:
            return State.ENDED, from_milliseconds(life[1])
        flag = _last_flag(past)
        silences = told_silences(self.case.row, past)
        if silences and silences[-1].ended_at is None and silences[-1].flagged_at <= now:
            self._tell_of_return(now)
            return State.DEGRADED, flag.flagged_at if flag else from_milliseconds(silences[-1].flagged_at)
        if is_open(past, *PAUSES):
            return State.PAUSED, from_milliseconds(paused_spans(self.case.row, past, now)[-1][0])
        if arithmetic.deadline_at < until:
            self._tell_of_delay(arithmetic.deadline_at)
        opened_at = self.case.row.registered_at if life is None else from_milliseconds(life[0])
        lived = [change for change in past if change.at >= to_milliseconds(opened_at)]
        recovered_at, resumed_at = _last(lived, EventType.RECOVERED), _last(lived, EventType.RESUMED)
        if recovered_at is None and not self._heard_since(opened_at, past):
            return State.PENDING, resumed_at or opened_at
        return State.OK, max((moment for moment in (recovered_at, resumed_at) if moment is not None), default=None)

    def _heard_since(self, opened_at: datetime, past: Sequence[Change]) -> bool:
        """Return whether a heartbeat is of the life that began at a moment.

        One that waited may count from before its session was opened, unless that was opened anew.
        """
        anew = any(change.kind is EventType.DEREGISTERED for change in past)
        return any(not anew or beat.seen_at >= opened_at for beat in self.case.beats)

    def _tell_of_return(self, now: int) -> None:
        later = (change for change in self.case.changes if change.kind is EventType.RECOVERED)
        back = next((change for change in later if change.at <= now < change.known_at), None)
        if back is not None:
            seen_at, stored_at = (exact(from_milliseconds(moment)) for moment in (back.at, back.known_at))
            self.notes.append(f"The heartbeat of {seen_at} that brought it back was stored at {stored_at}.")

    def _tell_of_delay(self, deadline_at: datetime) -> None:
        text = "Its deadline had passed, and no sweep had flagged it yet"
        later = (change for change in self.case.changes if change.at > to_milliseconds(self.as_of))
        flag = next((change for change in later if change.kind is EventType.DEGRADED), None)
        if flag is not None and flag.detail.get("deadline_at") == deadline_at.isoformat():
            text += f"; one did at {exact(from_milliseconds(flag.at))}"
        self.notes.append(text + ".")

    def _held(self) -> bool:
        if self.at is None:
            return self.pipeline.held
        unwatched = _unwatched(self.case.outages, self.at)
        if unwatched is not None:
            start, end = (exact(from_milliseconds(moment)) for moment in unwatched)
            self.notes.append(f"Nobody watched from {start} to {end}, so nothing was judged at that time.")
        elif self.as_of < self.at:
            self.notes.append(f"Nothing is known of after {exact(self.as_of)}: the pipeline is behind.")
        return self.as_of < self.at

    def _prospects(self, past: Sequence[Change], windows: Sequence[Change], arithmetic: Arithmetic) -> Prospects:
        until = paused_until(past) if self.at is not None else self.case.row.paused_until
        coming = self.case.coming if self.at is None else None
        return Prospects(arithmetic, self.as_of, until, is_open(windows, *WINDOWS), coming)

    def _tell_what_is_left_out(self, past: Sequence[Change]) -> None:
        days = self.settings.retention_days
        if self.case.namesakes:
            many = self.case.namesakes > 1
            others = f"{self.case.namesakes} other sessions" if many else "Another session"
            self.notes.append(f"{others} of this name {'were' if many else 'was'} live too: --session ID explains one.")
        if not any(change.kind is EventType.REGISTERED for change in past):
            self.notes.append(
                f"The event of its registration isn't stored (events are kept for {days} days), "
                "so its promise is taken to be the one of now."
            )
        seen_at = self.case.row.last_seen_at
        gone_before = self.pipeline.now - timedelta(days=days)
        if not self.case.beats and seen_at is not None and (seen_at <= self.as_of or self.as_of < gone_before):
            self.notes.append(f"No heartbeat of that time is stored (they are kept for {days} days).")


def _last_flag(changes: Sequence[Change]) -> Flag | None:
    flags = [change for change in changes if change.kind is EventType.DEGRADED]
    return Flag(from_milliseconds(flags[-1].at), flags[-1].detail) if flags else None


def _last(changes: Sequence[Change], kind: EventType) -> datetime | None:
    return max((from_milliseconds(change.at) for change in changes if change.kind is kind), default=None)


def _since(spans: Sequence[Span], moment: int) -> tuple[Span, ...]:
    return tuple(span for span in spans if span[1] >= moment)


Prospect = tuple[str, "datetime | None"]
"""What comes next, in words, and when that is; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Prospects:
    """What is known of the time to come."""

    arithmetic: Arithmetic
    as_of: datetime
    paused_until: datetime | None = None
    in_maintenance: bool = False
    coming: Window | None = None
    """The next maintenance that is known of."""

    def next(self, state: State) -> Prospect:
        """Return what would change the verdict next."""
        if state is State.ENDED:
            return "nothing is expected of it; a new registration opens it again", None
        if state is State.PAUSED:
            until = self.paused_until
            when = f"at {exact(until)}" if until else "when somebody does it (fleetbeat agents resume)"
            return f"resumed {when}; its clock starts anew then", until
        if state is State.DEGRADED:
            return "ok again with the next heartbeat that is recent enough", None
        if self.in_maintenance:
            return f"nothing until maintenance ends; {self._afterwards()}", None
        return self._missed(state)

    def _missed(self, state: State) -> Prospect:
        due, late_at = self.arithmetic.deadline_at, self.arithmetic.late_at
        if due < self.as_of:
            return f"degraded at the next sweep: its deadline was {exact(due)}", due
        text, at = f"degraded at {exact(due)} unless a heartbeat comes", due
        if self.coming is not None and self.coming.starts_at < due:
            text, at = self._spared(self.coming, due), self.coming.starts_at
        if state is State.OK and self.as_of < late_at < at:
            return f"late at {exact(late_at)}, {text}", late_at
        return text, at

    def _spared(self, window: Window, due: datetime) -> str:
        until = f" (until {exact(window.ends_at)})" if window.ends_at else ""
        begins = f"as maintenance begins before, at {exact(window.starts_at)}{until}"
        return f"not degraded at {exact(due)}, {begins}; {self._afterwards()}"

    def _afterwards(self) -> str:
        again = self.arithmetic.start.why == "end of maintenance"
        return "its deadline moves by the time that it took" if again else "its clock starts anew then"

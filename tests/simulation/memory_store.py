"""What is tried without a database: the real rules and the real batches, with the fleet in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from uuid import UUID

from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.broker.pulse import Pulse
from fleetbeat_worker.ingest.batch import Batch
from fleetbeat_worker.ingest.changeset import Changeset
from fleetbeat_worker.ingest.lifecycle import Lifecycle
from fleetbeat_worker.ingest.session_state import AgentRecord, Facts
from fleetbeat_worker.rules.anomalies import is_stuck, stuck_limit
from fleetbeat_worker.rules.deadlines import DeadlineRule, Unwatched, deadline_of
from fleetbeat_worker.rules.liveness import State, silent_since
from fleetbeat_worker.rules.maintenance_windows import Window, WindowRule, running, windows_of
from fleetbeat_worker.rules.spans import from_milliseconds, subtract, to_milliseconds
from fleetbeat_worker.rules.sweep_gaps import longest_gap_seconds, outage_between
from simulation.commands import MaintenanceRule
from simulation.draw import DAY
from simulation.model import MISSED, Arrival, Plan
from simulation.play import WATCHED, Names, entry_of, freed, stuck_from, window_rule


class MemoryStore:
    """The real rules, with the fleet in memory: what a batch changes stays in its records."""

    def __init__(self, plan: Plan) -> None:
        self._sweep_seconds = float(plan.sweep_seconds)
        self._stuck_after = plan.stuck_after
        self._agents: dict[UUID, AgentRecord] = {}
        self._stored: set[UUID] = set()
        self._outages: list[tuple[int, int]] = []
        self._watermark = 0
        self._swept_at: int | None = None
        self._time = from_milliseconds(plan.start), from_milliseconds(plan.end + 30 * DAY)
        self._rules: dict[int, WindowRule] = {}
        self._windows: list[Window] = []
        self._paused: dict[UUID, int | None] = {}
        """Until when."""
        self._due: list[tuple[int, UUID]] = []
        """Deadlines, the next one first; a deadline that moved on is here twice."""
        self._may_stick: list[tuple[int, UUID]] = []
        """From when on agents may be stuck, the next one first; as above."""

    def commit(self, now: int, arrivals: Sequence[Arrival]) -> Names:
        """Apply heartbeats to the fleet."""
        changes = self._changes(now)
        batch = Batch(changes)
        for entry in (entry_of(arrival, now) for arrival in arrivals):
            if isinstance(entry.message, Heartbeat):
                batch.apply(entry, entry.message)
        return self._note(changes, arrivals)

    def advance(self, now: int, arrivals: Sequence[Arrival]) -> Names:
        """Apply registrations and ends to the fleet."""
        changes = self._changes(now)
        lifecycle = Lifecycle(changes)
        for entry in (entry_of(arrival, now) for arrival in arrivals):
            if isinstance(entry.message, Register | Deregister):
                lifecycle.apply(entry, entry.message)
        return self._note(changes, arrivals)

    def _changes(self, now: int) -> Changeset:
        facts = Facts(now, self._watermark or None, self._outages, MISSED, stored=self._stored)
        return Changeset(facts, agents=self._agents)

    def _note(self, changes: Changeset, arrivals: Sequence[Arrival]) -> Names:
        self._stored.update(row[0] for row in changes.heartbeats)
        for session_id in {arrival.message.session_id for arrival in arrivals} & self._agents.keys():
            heappush(self._due, (self._agents[session_id].deadline_at, session_id))
            self._may_be_stuck(self._agents[session_id])
        return freed(changes)

    def sweep(self, seen: Horizon, pulse: Pulse) -> Names:
        """Do what `decide` does with SQL, but for a clock that is set back."""
        now, as_of = to_milliseconds(seen.now), to_milliseconds(seen.watermark or seen.now)
        self._watermark = max(as_of, self._watermark)
        last = None if self._swept_at is None else from_milliseconds(self._swept_at)
        if last is not None and outage_between(last, from_milliseconds(now), self._sweep_seconds):
            self._move(to_milliseconds(last), now)
        elif self._swept_at is not None:
            gaps = pulse.new_gaps(self._swept_at, now, round(longest_gap_seconds(self._sweep_seconds) * 1000))
            self._outages = sorted([*self._outages, *subtract(gaps, self._outages)]) if gaps else self._outages
        self._swept_at = max(now, self._swept_at or now)
        self._resume([key for key, until in self._paused.items() if until is not None and until <= now], now)
        if running(self._windows, from_milliseconds(now)):
            return Names()
        return Names(self._flag(now, as_of), self._find_stuck(now, as_of))

    def _flag(self, now: int, as_of: int) -> list[str]:
        flagged = []
        while self._due and self._due[0][0] < as_of:
            due_at, session_id = heappop(self._due)
            record = self._agents[session_id]
            if record.deadline_at != due_at or record.state not in WATCHED:
                continue
            unwatched = self._unwatched(now)
            if unwatched.is_after(record.since):
                due_at = DeadlineRule(record.promise, MISSED, unwatched)(record.since)
                record.deadline_at = max(record.deadline_at, due_at)
                if record.deadline_at >= as_of:
                    heappush(self._due, (record.deadline_at, session_id))
                    continue
            record.state, record.state_changed_at = State.DEGRADED, now
            flagged.append(record.agent_name)
        return flagged

    def _unwatched(self, now: int) -> Unwatched:
        over = [(window.starts_at, window.ends_at) for window in self._windows if window.ends_at is not None]
        windows = [(to_milliseconds(start), to_milliseconds(end)) for start, end in over]
        return Unwatched(self._outages, [(start, end) for start, end in windows if end <= now])

    def _may_be_stuck(self, record: AgentRecord) -> None:
        """Note when a sweep must look whether an agent is stuck; it looks in vain if anything moved that moment."""
        due_at = stuck_from(record, stuck_limit(record.settings["stuck_after"], self._stuck_after))
        if due_at is not None:
            heappush(self._may_stick, (due_at, record.session_id))

    def _find_stuck(self, now: int, as_of: int) -> list[str]:
        """Do what `stuck` does with SQL: who isn't stuck yet is looked at again when something is heard of it."""
        found: list[str] = []
        again: set[tuple[int, UUID]] = set()
        while self._may_stick and self._may_stick[0][0] < as_of:
            _, session_id = heappop(self._may_stick)
            record = self._agents[session_id]
            limit = stuck_limit(record.settings["stuck_after"], self._stuck_after)
            due_at = stuck_from(record, limit)
            if limit is None or due_at is None or due_at >= as_of:
                continue
            times = (record.changed_at, record.state_changed_at, record.resumed_at)
            unchanged_since = max(time for time in times if time is not None)
            since = silent_since(record.registered_at, record.last_seen_at, record.resumed_at)
            if is_stuck(record.promise, unchanged_since, since, as_of, limit, self._unwatched(now)):
                record.stuck_at = now
                found.append(record.agent_name)
            else:
                again.add((due_at, session_id))
        for each in again:
            heappush(self._may_stick, each)
        return found

    def pause(self, now: int, name: str, until: int | None) -> Names:
        """Do what `store.pauses` does with SQL."""
        found = [record for record in self._agents.values() if record.agent_name == name and record.ended_at is None]
        for record in found:
            record.state, record.state_changed_at = State.PAUSED, now
            self._paused[record.session_id] = until
        return Names([record.agent_name for record in found])

    def resume(self, now: int, name: str) -> None:
        """Do what `store.pauses` does with SQL."""
        self._resume([key for key in self._paused if self._agents[key].agent_name == name], now)

    def _resume(self, sessions: Sequence[UUID], now: int) -> None:
        for key in sessions:
            record, until = self._agents[key], self._paused.pop(key)
            if record.state is State.PAUSED:
                record.resumed_at = record.state_changed_at = now if until is None else min(now, until)
                record.state = State.PENDING if record.last_seen_at is None else State.OK
                record.deadline_at = deadline_of(record.promise, record.since, MISSED, self._outages)
                heappush(self._due, (record.deadline_at, key))
                self._may_be_stuck(record)

    def start_maintenance(self, place: int, rule: MaintenanceRule) -> None:
        """Note it, and work out its windows: they are looked at at each sweep."""
        self._rules[place] = window_rule(rule)
        self._windows = windows_of(self._rules.values(), *self._time)

    def end_maintenance(self, place: int, now: int) -> None:
        """Let its windows end."""
        self._rules[place] = replace(self._rules[place], ended_at=from_milliseconds(now))
        self._windows = windows_of(self._rules.values(), *self._time)

    def finish(self) -> None:
        """Do nothing."""

    def _move(self, started_at: int, ended_at: int) -> None:
        self._outages = sorted([*self._outages, (started_at, ended_at)])
        for record in self._agents.values():
            if record.state in WATCHED and record.since < ended_at and record.deadline_at > started_at:
                record.deadline_at += ended_at - max(started_at, record.since)
        self._due = [(record.deadline_at, session_id) for session_id, record in self._agents.items()]
        heapify(self._due)

"""What is tried on databases: all of the real code, but for Redis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Connection, Engine, exists, func, select, update

from fleetbeat_shared.redis_keys import INBOX, SESSIONS
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.accounting import Account
from fleetbeat_worker.broker.entries import RawEntry, decode
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.broker.lane import Piece
from fleetbeat_worker.broker.pulse import Pulse
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.database.tables import Agent, Liveness, Notification, Pipeline
from fleetbeat_worker.downtime import maintenance
from fleetbeat_worker.downtime.pauses import pause, resume
from fleetbeat_worker.ingest.changeset import Changeset
from fleetbeat_worker.ingest.lane import store_piece
from fleetbeat_worker.ingest.queries import lock_lane
from fleetbeat_worker.ingest.transaction import store_heartbeats
from fleetbeat_worker.rules.anomalies import GIVEN_UP, stuck_limit
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.rules.maintenance_windows import next_start, windows_of
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from fleetbeat_worker.rules.sweep_gaps import last_look, longest_gap_seconds, outage_between
from fleetbeat_worker.sweep.transaction import judge_fleet
from simulation.commands import MaintenanceRule
from simulation.incident_oracle import Told
from simulation.model import Arrival, Plan
from simulation.oracle import FOREVER
from simulation.play import WATCHED, Names, freed, stuck_from, window_rule

_OF_WHO_STICKS = (
    Agent.changed_at,
    Liveness.state_changed_at,
    Liveness.resumed_at,
    Liveness.interval_seconds,
    Liveness.grace_seconds,
)


class SqlStore:
    """The real ingest and the real sweep, on a database.

    A sweep that can find nothing isn't run: what it would write down, its time and its watermark, is written before
    anything else reads it. `every_sweep` runs them all; a test shows that both leave the same in every table.
    """

    def __init__(self, engine: Engine, plan: Plan, *, every_sweep: bool = False) -> None:
        self._engine = engine
        # So calm a fleet is that nobody flaps.
        self._settings = Settings(sweep_seconds=plan.sweep_seconds, flapping_changes=20, stuck_after=plan.stuck_after)
        self._own_limits = {agent.session_id: agent.stuck_after for agent in plan.agents}
        self._rules: dict[int, int] = {}
        """The number of each rule of the plan's maintenance in SQL."""
        self._every_sweep = every_sweep
        self._nothing_until = 0
        """What no watermark has to be past for any sweep to find something; zero when that isn't known."""
        self._nothing_before = 0
        """Before when no pause is over, no maintenance begins or ends, and no incident is given up."""
        self._swept_at: int | None = None
        self._pulse_at: int | None = None
        self._watermark = 0
        self._is_written = True

    def commit(self, now: int, arrivals: Sequence[Arrival]) -> Names:
        """Store heartbeats as the ingest job does."""
        self._write_down()
        raw = [RawEntry(arrival.entry_id, arrival.message.to_wire()) for arrival in arrivals]
        found = store_heartbeats(self._engine, decode(raw, now, INBOX), now, self._settings)
        for changes in found:
            if any(row["type"] != EventType.HEARTBEAT for row in changes.events):
                self._nothing_until = 0
            records = (*changes.agents.values(), *changes.plain.values())
            self._nothing_until = min([self._nothing_until, *(record.deadline_at for record in records)])
            limits = {key: stuck_limit(self._own_limits[key], self._settings.stuck_after) for key in changes.agents}
            may_stick = (stuck_from(agent, limits[key]) for key, agent in changes.agents.items())
            self._nothing_until = min([self._nothing_until, *(at for at in may_stick if at is not None)])
        return _names_of(found)

    def advance(self, now: int, arrivals: Sequence[Arrival]) -> Names:
        """Apply entries of the lane as the ingest job and the sweep do."""
        raw = [RawEntry(arrival.entry_id, arrival.message.to_wire()) for arrival in arrivals]
        with self._commanding() as connection:
            lock_lane(connection)
            piece = Piece(decode(raw, now, SESSIONS), is_poison=False, now=now)
            return _names_of(store_piece(connection, piece, self._settings))

    def sweep(self, seen: Horizon, pulse: Pulse) -> Names:
        """Decide as the sweep job does."""
        now, watermark = to_milliseconds(seen.now), to_milliseconds(seen.watermark) if seen.watermark else 0
        runs = self._every_sweep or not self._is_idle(now, watermark, pulse)
        if runs:
            self._write_down()
        before = None if self._swept_at is None else from_milliseconds(self._swept_at)
        self._swept_at = to_milliseconds(last_look(before, seen.now))
        self._watermark, self._is_written = max(watermark, self._watermark), runs
        self._pulse_at = pulse.at
        if not runs:
            return Names()
        account = Account(seen.now, life=None, lost=0)
        with writing(self._engine) as connection:
            report = judge_fleet(connection, seen, account, self._settings, periodic=True, pulse=pulse)
            # After a gap an incident ends a sweep later.
            self._nothing_until = self._first_due(connection) if report.outage_seconds is None else 0
            self._nothing_before = self._first_end(connection, seen.now)
        return Names(report.degraded, report.stuck)

    def pause(self, now: int, name: str, until: int | None) -> Names:
        """Pause an agent as the command does."""
        with self._commanding() as connection:
            ends_at = None if until is None else from_milliseconds(until)
            paused = pause(connection, name, from_milliseconds(now), ends_at, None)
            return Names([agent.agent_name for agent in paused])

    def resume(self, now: int, name: str) -> None:
        """Resume an agent as the command does."""
        with self._commanding() as connection:
            resume(connection, name, from_milliseconds(now), self._settings.missed_intervals)

    def start_maintenance(self, place: int, rule: MaintenanceRule) -> None:
        """Start maintenance as the command does."""
        with self._commanding() as connection:
            self._rules[place] = maintenance.add_rule(connection, window_rule(rule), from_milliseconds(rule.at))

    def end_maintenance(self, place: int, now: int) -> None:
        """End maintenance as the command does."""
        with self._commanding() as connection:
            maintenance.end_rules(connection, [self._rules[place]], from_milliseconds(now))

    @contextmanager
    def _commanding(self) -> Iterator[Connection]:
        self._write_down()
        self._nothing_until = 0
        with writing(self._engine) as connection:
            yield connection

    def told(self) -> list[Told]:
        """Return what people were told."""
        columns = (Notification.kind, Notification.created_at, Notification.agent_name, Notification.detail)
        with reading(self._engine) as connection:
            return [
                Told(kind, to_milliseconds(created_at), name, detail.get("agents"))
                for kind, created_at, name, detail in connection.execute(select(*columns))
            ]

    def finish(self) -> None:
        """Leave the database as the last sweep would."""
        self._write_down()

    def _is_idle(self, now: int, watermark: int, pulse: Pulse) -> bool:
        """Return whether a sweep that looks now finds no gap and nobody due, so that it changes nothing but its row."""
        if self._swept_at is None or now < self._swept_at or now >= self._nothing_before:
            return False
        if max(watermark, self._watermark) > self._nothing_until:
            return False
        last, sweep_seconds = from_milliseconds(self._swept_at), self._settings.sweep_seconds
        if pulse.new_gaps(self._swept_at, now, round(longest_gap_seconds(sweep_seconds) * 1000)):
            return False
        return outage_between(last, from_milliseconds(now), sweep_seconds) is None

    def _first_due(self, connection: Connection) -> int:
        """Return the earliest deadline there is; zero if a sweep looks for more than silent agents now.

        An incident that isn't over is so until some agent comes back, ends or is paused, all of which is noticed.
        """
        if connection.execute(select(exists().where(Agent.flapping_at.is_not(None)))).scalar():
            return 0
        due_at = connection.execute(select(func.min(Liveness.deadline_at)).where(Liveness.state.in_(WATCHED))).scalar()
        return min(to_milliseconds(due_at) if due_at is not None else FOREVER, self._first_stuck(connection))

    def _first_stuck(self, connection: Connection) -> int:
        """Return the earliest moment at which an agent can be stuck."""
        columns = (*_OF_WHO_STICKS, func.coalesce(Agent.stuck_after, self._settings.stuck_after, 0))
        query = select(*columns).join(Liveness, Liveness.session_id == Agent.session_id)
        ok = query.where(Liveness.state == State.OK, Liveness.interval_seconds.is_not(None), Agent.stuck_at.is_(None))
        found = [FOREVER]
        for *moments, interval_seconds, grace_seconds, limit in connection.execute(ok):
            if limit and moments[0] is not None and interval_seconds is not None:
                since = max(to_milliseconds(moment) for moment in moments if moment is not None)
                found.append(since + round((limit * interval_seconds + grace_seconds) * 1000))
        return min(found)

    def _first_end(self, connection: Connection, now: datetime) -> int:
        """Return when the next pause is over, maintenance begins or ends, or an incident is given up."""
        silent = (Liveness.incident_id.is_not(None), Liveness.state == State.DEGRADED)
        flagged_at = connection.execute(select(func.max(Liveness.state_changed_at)).where(*silent)).scalar()
        rules = maintenance.read_rules(connection, now).values()
        moments = [
            connection.execute(select(func.min(Agent.paused_until))).scalar(),
            flagged_at + GIVEN_UP if flagged_at is not None else None,
            *(next_start(rule, now) for rule in rules),
            *(window.ends_at for window in windows_of(rules, now, now)),
        ]
        return min((to_milliseconds(moment) for moment in moments if moment is not None), default=FOREVER)

    def _write_down(self) -> None:
        """Write what the sweeps that weren't run would have."""
        if self._is_written or self._swept_at is None:
            return
        moments = {"watermark": self._watermark, "last_sweep_at": self._swept_at, "pulse_at": self._pulse_at}
        values = {name: None if moment is None else from_milliseconds(moment) for name, moment in moments.items()}
        with writing(self._engine) as connection:
            connection.execute(update(Pipeline).values(values))
        self._is_written = True


def _names_of(found: Sequence[Changeset]) -> Names:
    silent, stuck = zip(*(freed(changes) for changes in found), strict=True)
    return Names([name for names in silent for name in names], [name for names in stuck for name in names])

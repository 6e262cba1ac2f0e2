"""What is tried: the real rules with a store in memory, or all of the real code on a database.

Both are told what happens in the order in which it happens, and tell what was said of whom.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from contextlib import contextmanager
from dataclasses import replace
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

from simulate_commands import Deed, commands
from simulate_draw import DAY
from simulate_incidents import Told
from simulate_oracle import FOREVER, MISSED, Change
from sqlalchemy import exists, func, select, update

from fleetbeat_shared.incidents import GIVEN_UP
from fleetbeat_shared.liveness import State
from fleetbeat_shared.maintenance import WindowRule, last_end, next_start, running, windows_of
from fleetbeat_shared.messages import Reason
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.account import Account
from fleetbeat_worker.batch import Batch
from fleetbeat_worker.column_types import from_milliseconds, to_milliseconds
from fleetbeat_worker.database import reading, writing
from fleetbeat_worker.deadlines import DeadlineRule, Unwatched, deadline_of
from fleetbeat_worker.inbox import Entry, Horizon
from fleetbeat_worker.records import Facts
from fleetbeat_worker.store import maintenance
from fleetbeat_worker.store.pauses import pause, resume
from fleetbeat_worker.sweep import decide, outage_between
from fleetbeat_worker.tables import LIFECYCLE, Agent, EventType, Liveness, Notification, Pipeline
from fleetbeat_worker.transactions import put_right, store_entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from redis import Redis
    from simulate_commands import Command, MaintenanceRule
    from simulate_plan import Arrival, Plan
    from sqlalchemy import Connection, Engine

    from fleetbeat_shared.maintenance import Window
    from fleetbeat_shared.messages import Deregister, Heartbeat, Register
    from fleetbeat_worker.records import AgentRecord, LifecycleEvent

OVERTAKEN = 90_000
"""How long after it was refused, in milliseconds, a message may be put right."""

_WATCHED = (State.PENDING, State.OK)


class Store(Protocol):
    """What keeps the fleet and judges it. The answers are names of agents."""

    def commit(self, now: int, arrivals: Sequence[Arrival]) -> list[str]:
        """Store entries in one transaction; return who is degraded no longer."""

    def put_right(self, now: int) -> list[str]:
        """Apply what overtook its registration; return who is degraded no longer."""

    def sweep(self, now: int, watermark: int, backlog: int) -> list[str]:
        """Decide by what was seen of Redis at a time; return who is degraded."""

    def pause(self, now: int, name: str, until: int | None) -> list[str]:
        """Pause an agent; return it if it is live: it is degraded no longer."""

    def resume(self, now: int, name: str) -> None:
        """Resume an agent."""

    def start_maintenance(self, place: int, rule: MaintenanceRule) -> None:
        """Take note of maintenance, that isn't ended yet."""

    def end_maintenance(self, place: int, now: int) -> None:
        """End it."""

    def finish(self) -> None:
        """Take note that nothing more will come."""


def play(plan: Plan, store: Store) -> dict[int, list[Change]]:
    """Let everything happen; return what was said of each agent, by its number."""
    numbers = {agent.name: agent.number for agent in plan.agents}
    changes: dict[int, list[Change]] = defaultdict(list)
    horizons: dict[int, Horizon] = {}
    deeds = commands(plan.pauses, plan.maintenance)
    inbox = _Inbox(plan)
    decided = 0

    def say(names: Iterable[str], *, is_degraded: bool) -> None:
        for name in names:
            changes[numbers[name]].append(Change(decided, is_degraded))

    for moment, kind, what in _in_order(plan, deeds):
        if kind == _COMMIT:
            say(store.commit(moment, plan.commits[what].arrivals), is_degraded=False)
        elif kind == _LOOK:
            say(store.put_right(moment), is_degraded=False)
            horizons[what] = inbox.horizon(moment)
        elif kind == _COMMAND:
            say(obey(deeds[what], plan, store), is_degraded=False)
        else:
            horizon = horizons.pop(what)
            watermark = to_milliseconds(horizon.watermark or horizon.now)
            say(store.sweep(to_milliseconds(horizon.now), watermark, horizon.backlog), is_degraded=True)
            decided += 1
    store.finish()
    return changes


def obey(command: Command, plan: Plan, store: Store) -> list[str]:
    """Do what somebody asks for; return who is degraded no longer."""
    if command.deed in {Deed.PAUSE, Deed.RESUME}:
        pause = plan.pauses[command.place]
        name = plan.agents[pause.agent].name
        if command.deed is Deed.PAUSE:
            return store.pause(command.at, name, pause.until)
        store.resume(command.at, name)
    elif command.deed is Deed.START_MAINTENANCE:
        store.start_maintenance(command.place, plan.maintenance[command.place])
    else:
        store.end_maintenance(command.place, command.at)
    return []


_LOOK, _COMMIT, _DECIDE, _COMMAND = range(4)


def _in_order(plan: Plan, deeds: Sequence[Command]) -> list[tuple[int, int, int]]:
    """Return all that happens, as moment, kind and place in the plan's list."""
    commits = [(commit.at, _COMMIT, place) for place, commit in enumerate(plan.commits)]
    looks = [(look.looked_at, _LOOK, place) for place, look in enumerate(plan.looks)]
    decisions = [(look.at, _DECIDE, place) for place, look in enumerate(plan.looks)]
    return sorted([*commits, *looks, *decisions, *((deed.at, _COMMAND, place) for place, deed in enumerate(deeds))])


class _Inbox:
    """The simulated stream: what arrived and isn't acknowledged yet."""

    def __init__(self, plan: Plan) -> None:
        self._arrivals = iter(plan.arrivals)
        self._next = next(self._arrivals, None)
        self._held: deque[Arrival] = deque()
        self._removed = sorted(each.removed_at for each in plan.arrivals if each.removed_at is not None)
        self._arrived = 0

    def horizon(self, moment: int) -> Horizon:
        """Return what `Inbox.horizon` would; moments come in their order."""
        while self._next is not None and self._next.received_at <= moment:
            self._held.append(self._next)
            self._next = next(self._arrivals, None)
            self._arrived += 1
        while self._held and self._held[0].removed_at is not None and self._held[0].removed_at <= moment:
            self._held.popleft()
        oldest = self._held[0].received_at if self._held else moment
        backlog = self._arrived - bisect_right(self._removed, moment)
        return Horizon(from_milliseconds(moment), from_milliseconds(oldest), backlog)


class SqlStore:
    """The real ingest and the real sweep, on a database.

    A sweep that can find nothing isn't run: what it would write down, its time and its watermark, is written before
    anything else reads it. `every_sweep` runs them all; a test shows that both leave the same in every table.
    """

    def __init__(self, engine: Engine, plan: Plan, *, every_sweep: bool = False) -> None:
        self._engine = engine
        # So calm a fleet is that nobody flaps.
        self._settings = Settings(sweep_seconds=plan.sweep_seconds, flapping_changes=20)
        self._rules: dict[int, int] = {}
        """The number of each rule of the plan's maintenance in SQL."""
        self._every_sweep = every_sweep
        self._overtaken_until = 0
        self._nothing_until = 0
        """What no watermark has to be past for any sweep to find something; zero when that isn't known."""
        self._nothing_before = 0
        """Before when no pause is over, no maintenance begins or ends, and no incident is given up."""
        self._swept_at: int | None = None
        self._watermark = 0
        self._is_written = True

    def commit(self, now: int, arrivals: Sequence[Arrival]) -> list[str]:
        """Store entries as the ingest job does."""
        self._write_down()
        entries = [Entry(arrival.entry_id, arrival.message.to_wire()) for arrival in arrivals]
        batches = store_entries(self._engine, entries, from_milliseconds(now), self._settings)
        for batch in batches:
            if any(row["awaits_session_id"] for row in batch.rejected):
                self._overtaken_until = now + OVERTAKEN
            if any(row["type"] != EventType.HEARTBEAT for row in batch.events):
                self._nothing_until = 0
            records = (*batch.agents.values(), *batch.plain.values())
            self._nothing_until = min([self._nothing_until, *(record.deadline_at for record in records)])
        return [name for batch in batches for name in _freed(batch)]

    def put_right(self, now: int) -> list[str]:
        """Apply what overtook its registration, as each sweep does first. Nobody waits for an answer here."""
        if self._every_sweep or now <= self._overtaken_until:
            self._write_down()
            if put_right(self._engine, _NO_REDIS, from_milliseconds(now), self._settings):
                self._nothing_until = 0
        return []  # who is put right was unknown before, so it can't have been degraded

    def sweep(self, now: int, watermark: int, backlog: int) -> list[str]:
        """Decide as the sweep job does."""
        runs = self._every_sweep or not self._is_idle(now, watermark)
        if runs:
            self._write_down()
        self._swept_at, self._watermark, self._is_written = now, max(watermark, self._watermark), runs
        if not runs:
            return []
        seen = Horizon(from_milliseconds(now), from_milliseconds(watermark), backlog)
        account = Account(seen.now, life=None, lost=0)
        with writing(self._engine) as connection:
            report = decide(connection, seen, account, self._settings, periodic=True)
            # After a gap an incident ends a sweep later.
            self._nothing_until = self._first_due(connection) if report.outage_seconds is None else 0
            self._nothing_before = self._first_end(connection, seen.now)
        return report.degraded

    def pause(self, now: int, name: str, until: int | None) -> list[str]:
        """Pause an agent as the command does."""
        with self._commanding() as connection:
            ends_at = None if until is None else from_milliseconds(until)
            return [agent.agent_name for agent in pause(connection, name, from_milliseconds(now), ends_at, None)]

    def resume(self, now: int, name: str) -> None:
        """Resume an agent as the command does."""
        with self._commanding() as connection:
            resume(connection, name, from_milliseconds(now), self._settings.missed_intervals)

    def start_maintenance(self, place: int, rule: MaintenanceRule) -> None:
        """Start maintenance as the command does."""
        with self._commanding() as connection:
            self._rules[place] = maintenance.add(connection, window_rule(rule), from_milliseconds(rule.at))

    def end_maintenance(self, place: int, now: int) -> None:
        """End maintenance as the command does."""
        with self._commanding() as connection:
            maintenance.end(connection, [self._rules[place]], from_milliseconds(now))

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

    def _is_idle(self, now: int, watermark: int) -> bool:
        """Return whether a sweep that looks now finds no gap and nobody due, so that it changes nothing but its row."""
        if self._swept_at is None or now < self._swept_at or now >= self._nothing_before:
            return False
        if max(watermark, self._watermark) > self._nothing_until:
            return False
        last, sweep_seconds = from_milliseconds(self._swept_at), self._settings.sweep_seconds
        return outage_between(last, from_milliseconds(now), sweep_seconds) is None

    def _first_due(self, connection: Connection) -> int:
        """Return the earliest deadline there is; zero if a sweep looks for more than silent agents now.

        An incident that isn't over is so until some agent comes back, ends or is paused, all of which is noticed.
        """
        if connection.execute(select(exists().where(Agent.flapping_at.is_not(None)))).scalar():
            return 0
        due_at = connection.execute(select(func.min(Liveness.deadline_at)).where(Liveness.state.in_(_WATCHED))).scalar()
        return to_milliseconds(due_at) if due_at is not None else FOREVER

    def _first_end(self, connection: Connection, now: datetime) -> int:
        """Return when the next pause is over, maintenance begins or ends, or an incident is given up."""
        silent = (Liveness.incident_id.is_not(None), Liveness.state == State.DEGRADED)
        flagged_at = connection.execute(select(func.max(Liveness.state_changed_at)).where(*silent)).scalar()
        rules = maintenance.window_rules(connection, now).values()
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
        values = {"watermark": from_milliseconds(self._watermark), "last_sweep_at": from_milliseconds(self._swept_at)}
        with writing(self._engine) as connection:
            connection.execute(update(Pipeline).values(values))
        self._is_written = True


def window_rule(rule: MaintenanceRule) -> WindowRule:
    """Return what the real rules go by."""
    return WindowRule(
        from_milliseconds(rule.starts_at),
        None if rule.ends_at is None else from_milliseconds(rule.ends_at),
        rule.schedule,
        rule.time_zone,
        rule.duration_seconds,
    )


_NO_REDIS: Redis = None  # type: ignore[assignment] # only answers are sent to it, and nobody waits for any


class MemoryStore:
    """The real rules, with the fleet in memory: what a batch changes stays in its records."""

    def __init__(self, plan: Plan) -> None:
        self._sweep_seconds = float(plan.sweep_seconds)
        self._agents: dict[UUID, AgentRecord] = {}
        self._lifecycles: dict[UUID, list[LifecycleEvent]] = defaultdict(list)
        self._outages: list[tuple[int, int]] = []
        self._watermark: int | None = None
        self._swept_at: int | None = None
        self._time = from_milliseconds(plan.start), from_milliseconds(plan.end + 30 * DAY)
        self._rules: dict[int, WindowRule] = {}
        self._windows: list[Window] = []
        self._cleared_at = 0
        self._paused: dict[UUID, int | None] = {}
        """Until when."""
        self._waiting: list[tuple[Entry, Register | Heartbeat | Deregister, bool, int]] = []
        """What has no open session; whether that was known, and had ended; and when it was refused."""
        self._due: list[tuple[int, UUID]] = []
        """Deadlines, the next one first; a deadline that moved on is here twice."""

    def commit(self, now: int, arrivals: Sequence[Arrival]) -> list[str]:
        """Apply entries to the fleet."""
        return self._apply(now, [(Entry(each.entry_id, b""), each.message) for each in arrivals])

    def put_right(self, now: int) -> list[str]:
        """Apply what waits for a session that is known by now."""
        ready, waiting = [], []
        for entry, message, had_ended, refused_at in self._waiting:
            agent = self._agents.get(message.session_id)
            if agent and not (had_ended and (agent.ended_at or entry.milliseconds < agent.registered_at)):
                ready.append((entry, message))
            elif now - refused_at < OVERTAKEN:
                waiting.append((entry, message, had_ended, refused_at))
        self._waiting = waiting
        return self._apply(now, ready) if ready else []

    def _apply(self, now: int, messages: Sequence[tuple[Entry, Register | Heartbeat | Deregister]]) -> list[str]:
        facts = Facts(now, self._watermark, self._outages, MISSED, tasks={}, lifecycles=self._lifecycles)
        batch = Batch(facts, agents=self._agents)
        for entry, message in messages:
            batch.apply(entry, message)
        for event in batch.events:
            if event["type"] in LIFECYCLE:
                told = (event["type"], event["occurred_at"], event["message_id"])
                self._lifecycles[event["session_id"]].append(told)
        waiting = {row["entry_id"]: row["reason"] for row in batch.rejected if row["awaits_session_id"]}
        self._waiting += [
            (entry, message, waiting[entry.id] == Reason.SESSION_ENDED, now)
            for entry, message in messages
            if entry.id in waiting
        ]
        for session_id in {message.session_id for _, message in messages} & self._agents.keys():
            heappush(self._due, (self._agents[session_id].deadline_at, session_id))
        return _freed(batch)

    def sweep(self, now: int, watermark: int, backlog: int) -> list[str]:  # noqa: ARG002 - the backlog decides nothing
        """Do what `decide` does with SQL."""
        self._watermark = max(watermark, self._watermark or watermark)
        last = None if self._swept_at is None else from_milliseconds(self._swept_at)
        if last is not None and outage_between(last, from_milliseconds(now), self._sweep_seconds):
            self._move(to_milliseconds(last), now)
        self._swept_at = max(now, self._swept_at or now)
        self._resume([key for key, until in self._paused.items() if until is not None and until <= now], now)
        moment = from_milliseconds(now)
        if ended_at := last_end(self._windows, moment):
            self._cleared_at = max(self._cleared_at, to_milliseconds(ended_at))
        if running(self._windows, moment):
            return []
        flagged = []
        while self._due and self._due[0][0] < self._watermark:
            due_at, session_id = heappop(self._due)
            record = self._agents[session_id]
            if record.deadline_at != due_at or record.state not in _WATCHED:
                continue
            if record.since < self._cleared_at:
                over = [(window.starts_at, window.ends_at) for window in self._windows if window.ends_at is not None]
                windows = [(to_milliseconds(start), to_milliseconds(end)) for start, end in over if end <= moment]
                rule = DeadlineRule(record.promise, MISSED, Unwatched(self._outages, windows))
                record.deadline_at = rule(record.since)
                if record.deadline_at >= self._watermark:
                    heappush(self._due, (record.deadline_at, session_id))
                    continue
            record.state, record.state_changed_at = State.DEGRADED, now
            flagged.append(record.agent_name)
        return flagged

    def pause(self, now: int, name: str, until: int | None) -> list[str]:
        """Do what `store.pauses` does with SQL."""
        found = [record for record in self._agents.values() if record.agent_name == name and record.ended_at is None]
        for record in found:
            record.state, record.state_changed_at = State.PAUSED, now
            self._paused[record.session_id] = until
        return [record.agent_name for record in found]

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
        self._outages.append((started_at, ended_at))
        for record in self._agents.values():
            if record.state in _WATCHED and record.since < ended_at and record.deadline_at > started_at:
                record.deadline_at += ended_at - max(started_at, record.since)
        self._due = [(record.deadline_at, session_id) for session_id, record in self._agents.items()]
        heapify(self._due)


_name_of = attrgetter("agent_name")


def _freed(batch: Batch) -> list[str]:
    """Return who is degraded no longer: it was heard, or it ended, or it was opened anew."""
    up = {EventType.RECOVERED.value, EventType.DEREGISTERED.value}
    events = (event for event in batch.events if event["type"] in up)
    return [event["agent_name"] for event in events if batch.agents[event["session_id"]].state is not State.DEGRADED]

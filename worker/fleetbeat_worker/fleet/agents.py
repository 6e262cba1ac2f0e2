"""The fleet as people see it: every agent with its state, and how far the pipeline is.

Redis is read first, then SQL in one transaction: what is committed in between is then only newer than the time that
the verdicts are taken as of, never older.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from redis import Redis
from sqlalchemy import Connection, Engine, Row

from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.errors import RedisUnavailable
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.downtime.maintenance import read_maintenance, read_unwatched
from fleetbeat_worker.fleet.current_state import Judge
from fleetbeat_worker.fleet.pipeline import PipelineView, view_pipeline
from fleetbeat_worker.fleet.uptime import Record, read_record
from fleetbeat_worker.ingest.rejected import count_rejected
from fleetbeat_worker.rules.anomalies import stuck_limit
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.rules.maintenance_windows import Window
from fleetbeat_worker.store.events import read_latest_events
from fleetbeat_worker.store.pipeline import read_pipeline_state
from fleetbeat_worker.store.sessions import read_newest_session, read_session, read_sessions
from fleetbeat_worker.store.tasks import TaskCounts, count_tasks
from fleetbeat_worker.sweep.incidents import open_incident, silent_members
from fleetbeat_worker.workers.registry import WorkerHealth

LIVE_STATES = frozenset(State) - {State.ENDED}

_URGENCY = {state: place for place, state in enumerate(("degraded", "late", "pending", "paused", "ok", "ended"))}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which agents to show, and in which order."""

    states: frozenset[State] = LIVE_STATES
    agent_name: str | None = None
    limit: int | None = None
    newest_first: bool = False
    """By the latest heartbeat, instead of the most urgent state first and then by name."""
    count_missed: bool = True
    """Whether to say how many intervals each missed: on a cron schedule that takes longer than to find its state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """A session of an agent, as of a moment."""

    agent_name: str
    session_id: UUID
    state: State
    degraded: bool
    stuck: bool
    """It beats, and does the same for longer than it may."""
    flapping: bool
    """It changes its state so often that single changes aren't told."""
    unjudged: bool
    """Its promise can't be worked out, so that its state may be an old one."""
    missed_intervals: int | None
    """`MISSED_COUNTED` stands for that many or more. None when they weren't asked for, or when nothing is known of any
    moment: Redis is away, and no sweep ever ran; or when its promise can't be worked out."""
    last_seen_at: datetime | None
    interval_seconds: float | None
    schedule: str | None
    time_zone: str | None
    grace_seconds: float
    missed_limit: int
    """How many intervals it may miss before it is degraded: its own number, or the fleet's."""
    stuck_after: int | None
    """As it said; None: as the fleet's setting says."""
    deadline_at: datetime
    current_work: str | None
    work_item_id: str | None
    progress: str | None
    status: str | None
    summary: str | None
    error: str | None
    open_tasks: int
    """As the agent reported, else as the tasks of its name are counted."""
    stale_tasks: int
    metadata: dict[str, Any] | None
    project: str | None
    parent_id: UUID | None
    parallel: bool
    registered_at: datetime
    state_changed_at: datetime
    paused_at: datetime | None
    paused_until: datetime | None
    """None while it is paused: until somebody resumes it."""
    pause_reason: str | None
    resumed_at: datetime | None
    ended_at: datetime | None
    exit_status: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the agent as `--json` prints it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class FleetView:
    """The agents that were asked for, and the pipeline."""

    pipeline: PipelineView
    agents: tuple[AgentView, ...]
    counts: Mapping[State, int]
    """How many agents there are in each state, also of those beyond the limit."""
    maintenance: Window | None = None
    """What runs now, so that nobody is flagged."""
    incident: IncidentView | None = None
    """What is open now, of the whole fleet."""

    @property
    def as_of(self) -> datetime | None:
        """The moment that the states are taken as of."""
        return self.pipeline.as_of

    def to_json(self) -> dict[str, Any]:
        """Return what `fleetbeat dashboard --json` prints."""
        return {
            "as_of": self.as_of,
            "pipeline": self.pipeline.to_json(),
            "maintenance": maintenance_json(self.maintenance),
            "incident": self.incident and self.incident.to_json(),
            "counts": dict(self.counts),
            "agents": [agent.to_json() for agent in self.agents],
        }


def maintenance_json(window: Window | None) -> dict[str, Any] | None:
    """Return maintenance as `--json` prints it."""
    return None if window is None else window._asdict()


def read_fleet(settings: Settings, engine: Engine, client: Redis, selection: Selection | None = None) -> FleetView:
    """Return the fleet at this moment; with Redis away, what SQL knows, as of the last watermark.

    Raises DatabaseUnavailable.
    """
    selection = selection or Selection()
    readings = read_redis(settings, client)
    with reading(engine) as connection:
        pipeline = read_pipeline(settings, connection, *readings)
        rows = read_sessions(
            connection,
            live=bool(selection.states & LIVE_STATES),
            ended=State.ENDED in selection.states,
            agent_name=selection.agent_name,
        )
        tasks = count_tasks(connection, _stale_before(settings, pipeline), selection.agent_name)
        judge = _read_judge(connection, pipeline, settings.missed_intervals)
        incident = read_incident(connection)
    # Outside the transaction: working out cron schedules takes time.
    judged = [(state, row) for row in rows if (state := judge.state(row)) in selection.states]
    counts = Counter(state for state, _ in judged)
    shown = _in_order(judged, newest_first=selection.newest_first)[: selection.limit]
    return FleetView(
        pipeline,
        tuple(
            _view(row, state, judge, tasks.get(row.agent_name), count_missed=selection.count_missed)
            for state, row in shown
        ),
        {state: counts[state] for state in State if counts[state]},
        judge.maintenance.running,
        incident,
    )


@dataclass(frozen=True, slots=True)
class AgentReport:
    """All that is known of one session."""

    pipeline: PipelineView
    agent: AgentView
    tasks: TaskCounts
    """As counted, whatever the agent reported."""
    events: Sequence[Row[Any]]
    """The session's last events, the newest last: rows of `events`."""
    record: Record
    """Of all sessions of the name, or of the one session that was asked for."""
    maintenance: Window | None = None
    stuck_limit: int | None = None
    """After how many intervals without a change it is stuck, its own number before the fleet's; None: never."""


def read_agent(
    settings: Settings, engine: Engine, client: Redis, asked: str | UUID, event_limit: int
) -> AgentReport | None:
    """Return a session by its id, or the newest session of a name; None when there is none.

    Raises DatabaseUnavailable.
    """
    readings = read_redis(settings, client)
    with reading(engine) as connection:
        row = read_session(connection, asked) if isinstance(asked, UUID) else read_newest_session(connection, asked)
        if row is None:
            return None
        pipeline = read_pipeline(settings, connection, *readings)
        counted = count_tasks(connection, _stale_before(settings, pipeline), row.agent_name)
        tasks = counted.get(row.agent_name, TaskCounts())
        events = read_latest_events(connection, event_limit, session_id=row.session_id)
        judge = _read_judge(connection, pipeline, settings.missed_intervals)
        record = read_record(connection, asked, pipeline.as_of or pipeline.now)
    view = _view(row, judge.state(row), judge, tasks)
    limit = stuck_limit(row.stuck_after, settings.stuck_after) if row.interval_seconds is not None else None
    return AgentReport(pipeline, view, tasks, events, record, judge.maintenance.running, limit)


def read_redis(settings: Settings, client: Redis) -> tuple[Horizon | None, WorkerHealth | None, str | None]:
    """Return how far SQL can know and who works, or why Redis can't tell."""
    from fleetbeat_worker.broker.inbox import Inbox
    from fleetbeat_worker.workers.status import read_worker_health

    try:
        with redis_errors(settings.redis_url):
            horizon = Inbox(client).horizon()
            return horizon, read_worker_health(client, horizon.now), None
    except RedisUnavailable as error:
        return None, None, str(error)


def read_pipeline(
    settings: Settings, connection: Connection, horizon: Horizon | None, crew: WorkerHealth | None, away: str | None
) -> PipelineView:
    """Return how far the pipeline is; what comes after the connection is what `read_redis` returns."""
    return view_pipeline(
        settings,
        read_pipeline_state(connection),
        horizon,
        crew=crew,
        rejected=sum(count_rejected(connection).values()),
        away=away,
        now=datetime.now(UTC),
    )


def _stale_before(settings: Settings, pipeline: PipelineView) -> datetime:
    return pipeline.now - timedelta(seconds=settings.stale_task_seconds)


def _read_judge(connection: Connection, pipeline: PipelineView, missed_limit: int) -> Judge:
    maintenance = read_maintenance(connection, read_pipeline_state(connection), pipeline.now)
    return Judge(pipeline.as_of, missed_limit, maintenance, read_unwatched(connection, maintenance, pipeline.now))


def _view(
    row: Row[Any], state: State, judge: Judge, tasks: TaskCounts | None, *, count_missed: bool = True
) -> AgentView:
    tasks = tasks or TaskCounts()
    return AgentView(
        agent_name=row.agent_name,
        session_id=row.session_id,
        state=state,
        degraded=state is State.DEGRADED,
        stuck=row.stuck_at is not None,
        flapping=row.flapping_at is not None,
        unjudged=row.unjudged_at is not None,
        missed_intervals=judge.missed(row, state) if count_missed else None,
        last_seen_at=row.last_seen_at,
        interval_seconds=row.interval_seconds,
        schedule=row.schedule,
        time_zone=row.time_zone,
        grace_seconds=row.grace_seconds,
        missed_limit=row.missed_limit or judge.missed_limit,
        stuck_after=row.stuck_after,
        deadline_at=judge.clock(row)[1],
        current_work=row.current_work,
        work_item_id=row.work_item_id,
        progress=row.progress,
        status=row.status,
        summary=row.summary,
        error=row.error,
        open_tasks=tasks.open if row.open_tasks is None else row.open_tasks,
        stale_tasks=tasks.stale if row.stale_tasks is None else row.stale_tasks,
        metadata=row.metadata,
        project=row.project,
        parent_id=row.parent_id,
        parallel=row.parallel,
        registered_at=row.registered_at,
        state_changed_at=row.state_changed_at,
        paused_at=row.paused_at,
        paused_until=row.paused_until,
        pause_reason=row.pause_reason,
        resumed_at=row.resumed_at,
        ended_at=row.ended_at,
        exit_status=row.exit_status,
    )


def _in_order(judged: Iterable[tuple[State, Row[Any]]], *, newest_first: bool) -> list[tuple[State, Row[Any]]]:
    if newest_first:
        # Those that were never heard come last, the newest registration first.
        return sorted(
            judged,
            key=lambda found: (found[1].last_seen_at is not None, found[1].last_seen_at or found[1].registered_at),
            reverse=True,
        )
    return sorted(judged, key=lambda found: (_URGENCY[found[0]], found[1].agent_name, found[1].registered_at))


@dataclass(frozen=True, slots=True)
class IncidentView:
    """Many agents that went silent at once, and aren't back."""

    started_at: datetime
    agents: int
    """How many it took, those that joined it later too."""
    live_agents: int
    """How many there were when it began."""
    silent: int
    """How many of its agents are silent still."""

    def to_json(self) -> dict[str, Any]:
        """Return the incident as `--json` prints it."""
        return asdict(self)


def read_incident(connection: Connection) -> IncidentView | None:
    """Return the incident that is open, or None."""
    found = open_incident(connection)
    if found is None:
        return None
    silent, _ = silent_members(connection, found.id)
    return IncidentView(found.started_at, found.agents, found.live_agents, silent)

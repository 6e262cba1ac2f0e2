"""Tables: what the code knows of the database; the migrations create it."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, MetaData, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fleetbeat_worker.database.column_types import Identifier, Instant, JsonObject

BIG_KEY = BigInteger().with_variant(Integer, "sqlite")  # SQLite generates values only for an INTEGER key


def _partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


class Base(DeclarativeBase):
    """The naming and the column types that all tables share."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        datetime: Instant,
        UUID: Identifier,
        dict[str, Any]: JsonObject,
        str: Text,
        bytes: LargeBinary,
    }


class Agent(Base):
    """A session of an agent: its name and its last report. Seldom written, unlike `liveness`."""

    __tablename__ = "agents"
    __table_args__ = (
        # One live session for each name, unless it is registered as parallel.
        _partial_index("uq_agents_live_name", "agent_name", where="ended_at IS NULL AND NOT parallel", unique=True),
        Index("ix_agents_agent_name", "agent_name"),
        # For retention: sessions that ended, and those that still name one as their parent.
        _partial_index("ix_agents_ended_at", "ended_at", where="ended_at IS NOT NULL"),
        _partial_index("ix_agents_parent_id", "parent_id", where="parent_id IS NOT NULL"),
        # For the sweep, which searches for the few agents that have any of these.
        *(
            _partial_index(f"ix_agents_{name}", name, where=f"{name} IS NOT NULL")
            for name in ("unjudged_at", "flapping_at", "stuck_after", "paused_until")
        ),
        # Space for HOT updates: without it each report wrote to every index, and was three times as slow.
        {"postgresql_with": {"fillfactor": "85"}},
    )

    session_id: Mapped[UUID] = mapped_column(primary_key=True)
    agent_name: Mapped[str]
    project: Mapped[str | None]
    parent_id: Mapped[UUID | None]
    """The session that this one works for."""
    parallel: Mapped[bool]
    """Whether other live sessions may have the same name."""
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    """The agent's last metadata."""
    ended_at: Mapped[datetime | None]
    exit_status: Mapped[int | None]
    current_work: Mapped[str | None]
    """The latest progress, or the work that the registration named."""
    work_said_at: Mapped[datetime | None]
    """When a registration last named the work: an earlier heartbeat doesn't overwrite it."""
    metadata_said_at: Mapped[datetime | None]
    """When a registration last gave the metadata: an earlier heartbeat doesn't overwrite it."""
    error_said_at: Mapped[datetime | None]
    """When the deregistration gave the error: an earlier heartbeat doesn't overwrite it."""
    work_item_id: Mapped[str | None]
    progress: Mapped[str | None]
    status: Mapped[str | None]
    summary: Mapped[str | None]
    error: Mapped[str | None]
    open_tasks: Mapped[int | None]
    """As of the last heartbeat: its own number, or else the number of rows in `tasks`."""
    stale_tasks: Mapped[int | None]
    """As `open_tasks`."""
    reported_at: Mapped[datetime | None]
    """`seen_at` of the newest heartbeat with a report; an older one doesn't overwrite it."""
    reported_entry: Mapped[int | None] = mapped_column(BigInteger)
    """The position of that heartbeat in the stream, for two of the same millisecond."""
    changed_at: Mapped[datetime | None]
    """When progress, work item or status last changed; absent if it never reported any of them."""
    stuck_after: Mapped[int | None]
    """After how many intervals without a change it is stuck: 0 means never; if absent, the fleet's setting applies."""
    stuck_at: Mapped[datetime | None]
    """When a sweep found it stuck; absent if it isn't."""
    flapping_at: Mapped[datetime | None]
    """When it was found to be flapping; absent if it isn't."""
    paused_at: Mapped[datetime | None]
    paused_until: Mapped[datetime | None]
    """When a sweep resumes it; absent if it stays paused until a user resumes it."""
    pause_reason: Mapped[str | None]
    unjudged_at: Mapped[datetime | None]
    """When a sweep couldn't judge it; it is skipped until a registration or a heartbeat can be judged."""


class Liveness(Base):
    """A session's promise and when it was last seen: all that a heartbeat is judged by, in one row.

    Every heartbeat writes here, so it is narrow, and no changing column has an index. Measured with 1,000,000 agents:
    61,600 updates/s on PostgreSQL, against 41,900 with one wide table; with the promise in `agents`, reading it took
    half of a batch's time on PostgreSQL and a quarter on SQLite.
    """

    __tablename__ = "liveness"
    __table_args__ = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        # Space for HOT updates: 96% are with 90, all with 70, but then more pages than fit in the server's memory.
        "postgresql_with": {"fillfactor": "90"},
        "sqlite_with_rowid": False,  # one tree to search instead of two
    }

    session_id: Mapped[UUID] = mapped_column(ForeignKey("agents.session_id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[str]
    """pending, ok, degraded, paused or ended (`fleetbeat_worker.rules.liveness.State`)."""
    state_changed_at: Mapped[datetime]
    last_seen_at: Mapped[datetime | None]
    """Only moves forward."""
    deadline_at: Mapped[datetime]
    """When the agent becomes degraded, if it stays silent."""
    registered_at: Mapped[datetime]
    """When the session was opened; a second registration of a live session doesn't move it."""
    interval_seconds: Mapped[float | None]
    """The promise, unless it is a schedule."""
    schedule: Mapped[str | None]
    """A cron expression, in `time_zone`."""
    time_zone: Mapped[str | None]
    grace_seconds: Mapped[float]
    """How much later than promised a heartbeat may arrive."""
    missed_limit: Mapped[int | None]
    """How many intervals it may miss before it is degraded; if absent, the fleet's setting applies."""
    resumed_at: Mapped[datetime | None]
    """When its last pause ended: silence counts from then, unless a heartbeat is newer."""
    incident_id: Mapped[int | None] = mapped_column(BigInteger)
    """The open incident in which it was flagged; it counts as recovered there when it is no longer degraded.

    Here, and without an index, like the flag itself: an incident of 100,000 agents writes one table instead of two.
    """


class StoredHeartbeat(Base):
    """A heartbeat. On PostgreSQL partitioned by day, by ranges of the id."""

    __tablename__ = "heartbeats"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012 - ids grow with time: one tree, appended to

    id: Mapped[UUID] = mapped_column(primary_key=True)
    """The message's id (UUIDv7): a message that is delivered twice is stored once."""
    session_id: Mapped[UUID]
    received_at: Mapped[datetime]
    """Redis's time when it arrived."""
    seen_at: Mapped[datetime]
    """`received_at` minus the time that it waited to be sent."""
    sent_at: Mapped[datetime]
    """The agent's clock."""
    progress: Mapped[str | None]
    work_item_id: Mapped[str | None]
    status: Mapped[str | None]
    summary: Mapped[str | None]
    error: Mapped[str | None]
    open_tasks: Mapped[int | None]
    stale_tasks: Mapped[int | None]
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")


class StrayHeartbeat(Base):
    """A heartbeat whose id's time is a day or more away from its receipt: a wrong clock, or a long time in a spool.

    Its id doesn't sort with those of its time, so retention finds it here.
    """

    __tablename__ = "stray_heartbeats"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    received_at: Mapped[datetime] = mapped_column(index=True)
    """As in `heartbeats`."""


class Event(Base):
    """Something that changed."""

    __tablename__ = "events"
    __table_args__ = (
        Index(None, "session_id", "id"),
        Index(None, "agent_name", "id"),
        Index(None, "occurred_at"),
        # To count an agent's changes of state, which are few among its progress texts, for flapping.
        _partial_index("ix_events_changes", "session_id", "occurred_at", where="type IN ('degraded', 'recovered')"),
    )

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    type: Mapped[str]
    """One of `EventType`."""
    occurred_at: Mapped[datetime]
    session_id: Mapped[UUID | None]
    """Absent for the whole fleet."""
    agent_name: Mapped[str | None]
    message_id: Mapped[UUID | None] = mapped_column(unique=True)
    """The message that caused it: a message that is delivered twice has one event."""
    text: Mapped[str | None]
    """The progress text of a heartbeat."""
    detail: Mapped[dict[str, Any] | None]
    """Further facts, by type."""


class Task(Base):
    """A work item of an agent, by the agent's name: tasks outlive sessions."""

    __tablename__ = "tasks"
    __table_args__ = (Index(None, "agent_name", "state"),)

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    agent_name: Mapped[str]
    title: Mapped[str]
    state: Mapped[str]
    """One of `TaskState`."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    """An open task that was not updated for long is stale."""


class RejectedMessage(Base):
    """A message that couldn't be accepted, kept with the reason."""

    __tablename__ = "rejected_messages"
    __table_args__ = (Index(None, "received_at"),)

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    entry_id: Mapped[str] = mapped_column(unique=True)
    """The entry's id in its stream, so that one that is delivered twice is set aside once."""
    received_at: Mapped[datetime]
    reason: Mapped[str]
    """One of `fleetbeat_shared.messages.Reason`."""
    detail: Mapped[str]
    """What exactly is wrong."""
    session_id: Mapped[UUID | None]
    """If the message could be read."""
    rejected_at: Mapped[datetime]
    """When it was set aside."""
    raw: Mapped[bytes]
    """The message's bytes, up to the size that a message may have."""


class OutageRow(Base):
    """A span in which agents could not be judged: no sweep ran, or, if it is short, Redis was away."""

    __tablename__ = "outages"

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime] = mapped_column(index=True)


class Incident(Base):
    """Many agents that fell silent at the same time."""

    __tablename__ = "incidents"

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    started_at: Mapped[datetime]
    """Redis's time at the sweep that flagged them."""
    ended_at: Mapped[datetime | None]
    """When most of them had recovered."""
    agents: Mapped[int]
    """How many were flagged."""
    live_agents: Mapped[int]
    """How many there were."""
    first_silent_at: Mapped[datetime]
    """When the first of them was last seen."""
    last_silent_at: Mapped[datetime]
    """When the last of them was last seen."""


class Maintenance(Base):
    """A maintenance window, one-off or recurring, in which no agent is flagged."""

    __tablename__ = "maintenance"

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    created_at: Mapped[datetime]
    starts_at: Mapped[datetime]
    """Of a recurring window: since when it applies."""
    ends_at: Mapped[datetime | None]
    """When a one-off window ends, or a recurring one no longer applies; if absent, a user ends it."""
    schedule: Mapped[str | None]
    """A cron expression in `time_zone`; a recurring window begins at its slots."""
    time_zone: Mapped[str | None]
    duration_seconds: Mapped[float | None]
    """How long each occurrence of a recurring window lasts."""
    reason: Mapped[str | None]
    ended_at: Mapped[datetime | None]
    """When a user ended it early, or a recurring one for good."""
    cut_at: Mapped[datetime | None]
    """When a user last ended the current occurrence of a recurring window, and not the later ones."""


class Notification(Base):
    """A notification in the outbox: written in the transaction of the change, sent by a job."""

    __tablename__ = "notifications"
    __table_args__ = (
        _partial_index("ix_notifications_due_at", "due_at", where="state = 'waiting'"),
        Index(None, "created_at"),
    )

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    """The same for the same change, however often it is found; receivers get it too, to recognise repetitions."""
    kind: Mapped[str]
    """One of `NoticeKind`."""
    created_at: Mapped[datetime]
    """Redis's time."""
    expires_at: Mapped[datetime]
    """An attempt that fails after this time is the last one: a day after the notification was written or retried."""
    session_id: Mapped[UUID | None]
    """Absent for the whole fleet."""
    agent_name: Mapped[str | None]
    project: Mapped[str | None]
    detail: Mapped[dict[str, Any]]
    """The facts of its text, as of the change."""
    state: Mapped[str]
    """One of `NoticeState`."""
    due_at: Mapped[datetime]
    """When it is sent next; a job claims it by moving this time forward before it sends."""
    attempts: Mapped[int]
    delivered: Mapped[dict[str, Any] | None]
    """When each target received it, by the fingerprint of its URL."""
    sent_at: Mapped[datetime | None]
    """When all targets had received it."""
    failure: Mapped[str | None]
    """Why the last attempt failed, without passwords."""


class Pipeline(Base):
    """One row: the state of the pipeline at the last sweep."""

    __tablename__ = "pipeline"

    id: Mapped[int] = mapped_column(primary_key=True)
    watermark: Mapped[datetime | None]
    """Everything received before it was in SQL at the last sweep. Never goes back."""
    last_sweep_at: Mapped[datetime | None]
    """Redis's time at the last sweep."""
    sweep_seconds: Mapped[float | None]
    """The interval of the workers' sweeps: a reading command may have another setting."""
    inbox_life: Mapped[str | None]
    """The life of the inbox's account (`fleetbeat_worker.broker.accounting`) at the last sweep."""
    inbox_lost: Mapped[int | None] = mapped_column(BigInteger)
    """How many entries were lost according to it; an increase is reported."""
    inbox_backlog: Mapped[int | None] = mapped_column(BigInteger)
    """How many entries waited in it: the number that is reported if Redis loses its data."""
    maintenance_since: Mapped[datetime | None]
    """When the maintenance began that the last sweep found; absent if there was none."""
    cleared_at: Mapped[datetime | None]
    """When the last maintenance ended: silence counts from then at the earliest."""
    unjudged: Mapped[int | None]
    """How many agents can't be judged: a batch reads which ones only if there are any."""
    pulse_at: Mapped[datetime | None]
    """The last pulse (`fleetbeat_worker.broker.pulse`) at the last sweep."""

"""The tables. Migrations make them; this module is what the code knows of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, MetaData, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fleetbeat_worker.database.column_types import Identifier, Instant, JsonObject

BIG_KEY = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up by itself only in an INTEGER key


class Base(DeclarativeBase):
    """What all tables share."""

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
    """A session of an agent: who it is and what it last said. Seldom written, unlike `liveness`."""

    __tablename__ = "agents"
    __table_args__ = (
        # One live session to a name, unless it asked for company.
        Index(
            "uq_agents_live_name",
            "agent_name",
            unique=True,
            sqlite_where=text("ended_at IS NULL AND NOT parallel"),
            postgresql_where=text("ended_at IS NULL AND NOT parallel"),
        ),
        Index("ix_agents_agent_name", "agent_name"),
        # For what removes old sessions: those that ended, and who still names one as its parent.
        Index(
            "ix_agents_ended_at",
            "ended_at",
            sqlite_where=text("ended_at IS NOT NULL"),
            postgresql_where=text("ended_at IS NOT NULL"),
        ),
        Index(
            "ix_agents_parent_id",
            "parent_id",
            sqlite_where=text("parent_id IS NOT NULL"),
            postgresql_where=text("parent_id IS NOT NULL"),
        ),
        # For the sweep: few agents have any of these, and it looks for them each time.
        *(
            Index(
                f"ix_agents_{name}",
                name,
                sqlite_where=text(f"{name} IS NOT NULL"),
                postgresql_where=text(f"{name} IS NOT NULL"),
            )
            for name in ("unjudged_at", "flapping_at", "stuck_after", "paused_until")
        ),
        # Room for HOT updates: without it each report wrote to every index, three times as slow.
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
    """What the agent last said of itself."""
    ended_at: Mapped[datetime | None]
    exit_status: Mapped[int | None]
    current_work: Mapped[str | None]
    """The latest progress, or what the registration said the agent was about to do."""
    work_said_at: Mapped[datetime | None]
    """When a registration last said what the agent was about to do: a heartbeat of before doesn't overrule it."""
    metadata_said_at: Mapped[datetime | None]
    """The same of the metadata."""
    error_said_at: Mapped[datetime | None]
    """The same of the error, said by the end of the session."""
    work_item_id: Mapped[str | None]
    progress: Mapped[str | None]
    status: Mapped[str | None]
    summary: Mapped[str | None]
    error: Mapped[str | None]
    open_tasks: Mapped[int | None]
    """As of the last heartbeat: what it said, or else what was counted in `tasks`."""
    stale_tasks: Mapped[int | None]
    """As `open_tasks`."""
    reported_at: Mapped[datetime | None]
    """`seen_at` of the newest heartbeat that said anything; an older one changes none of what is said here."""
    reported_entry: Mapped[int | None] = mapped_column(BigInteger)
    """Its position in the stream, for two of the same millisecond."""
    changed_at: Mapped[datetime | None]
    """When what it does last changed: progress, work item or status; absent if it never said any of it."""
    stuck_after: Mapped[int | None]
    """After how many intervals without a change it is stuck: 0 never, absent as the fleet's setting says."""
    stuck_at: Mapped[datetime | None]
    """When a sweep found it stuck; absent if it isn't."""
    flapping_at: Mapped[datetime | None]
    """When it was found to change its state too often; absent if it doesn't."""
    paused_at: Mapped[datetime | None]
    paused_until: Mapped[datetime | None]
    """When a sweep resumes it; absent if somebody has to."""
    pause_reason: Mapped[str | None]
    unjudged_at: Mapped[datetime | None]
    """When a sweep couldn't judge it; it is left out until a registration or a heartbeat can be."""


class Liveness(Base):
    """What a session promised, and when it was last seen: all that a heartbeat is judged by, found with one look.

    Every heartbeat writes here, so it is narrow, and no index stands on what changes. Measured with 1,000,000 agents:
    61,600 updates/s on PostgreSQL, against 41,900 with one wide table; with the promise in `agents`, reading it took
    half of a batch's time on PostgreSQL and a quarter on SQLite.
    """

    __tablename__ = "liveness"
    __table_args__ = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        # Room for HOT updates: 96% are with 90, all with 70, but then more pages than fit in the server's memory.
        "postgresql_with": {"fillfactor": "90"},
        "sqlite_with_rowid": False,  # one tree to search instead of two
    }

    session_id: Mapped[UUID] = mapped_column(ForeignKey("agents.session_id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[str]
    """pending, ok, degraded, paused or ended (`fleetbeat_worker.rules.liveness.State`)."""
    state_changed_at: Mapped[datetime]
    last_seen_at: Mapped[datetime | None]
    """Moves forward only."""
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
    """How much later than promised a heartbeat may come."""
    missed_limit: Mapped[int | None]
    """How many intervals it may miss before it is degraded; absent: as the fleet's setting says."""
    resumed_at: Mapped[datetime | None]
    """When its last pause ended: silence counts from then, if nothing newer was heard."""
    incident_id: Mapped[int | None] = mapped_column(BigInteger)
    """The incident that it went silent in, as long as that is open; it is back in it when it is degraded no longer.

    Here, and without an index, as the flag itself is: an incident of 100,000 agents writes one table instead of two.
    """


class StoredHeartbeat(Base):
    """A heartbeat. On PostgreSQL partitioned by day, by ranges of the id."""

    __tablename__ = "heartbeats"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012 - ids grow with time: one tree, appended to

    id: Mapped[UUID] = mapped_column(primary_key=True)
    """The message's id (UUIDv7): a replay finds itself stored."""
    session_id: Mapped[UUID]
    received_at: Mapped[datetime]
    """Redis's time when it arrived."""
    seen_at: Mapped[datetime]
    """`received_at` less the time that it waited to be sent."""
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
    """A heartbeat whose id's time is a day or more away from its receipt: a wrong clock, or a long way through a spool.

    In the order of ids it lies among others than those of its time, so it is found here when its time is over.
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
        # An agent's changes are few among its progress texts, and counted to see whether it flaps.
        Index(
            "ix_events_changes",
            "session_id",
            "occurred_at",
            sqlite_where=text("type IN ('degraded', 'recovered')"),
            postgresql_where=text("type IN ('degraded', 'recovered')"),
        ),
    )

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    type: Mapped[str]
    """One of `EventType`."""
    occurred_at: Mapped[datetime]
    session_id: Mapped[UUID | None]
    """Absent where the whole fleet is meant."""
    agent_name: Mapped[str | None]
    message_id: Mapped[UUID | None] = mapped_column(unique=True)
    """The message that caused it, if it can be delivered twice: then the event is stored once all the same."""
    text: Mapped[str | None]
    """The progress text of a heartbeat."""
    detail: Mapped[dict[str, Any] | None]
    """More, by type."""


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
    """An open task that nobody touched for long is stale."""


class RejectedMessage(Base):
    """A message that couldn't be accepted, kept with the reason."""

    __tablename__ = "rejected_messages"
    __table_args__ = (Index(None, "received_at"),)

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    entry_id: Mapped[str] = mapped_column(unique=True)
    """The entry's id in its stream, so that a replay is set aside once."""
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
    """A span in which nobody watched: no sweep ran, or, if it is a short one, Redis stood still."""

    __tablename__ = "outages"

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime] = mapped_column(index=True)


class Incident(Base):
    """Many agents that went silent at once."""

    __tablename__ = "incidents"

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    started_at: Mapped[datetime]
    """Redis's time at the sweep that flagged them."""
    ended_at: Mapped[datetime | None]
    """When most of them were back."""
    agents: Mapped[int]
    """How many were flagged."""
    live_agents: Mapped[int]
    """How many there were."""
    first_silent_at: Mapped[datetime]
    """The earliest of their last signs."""
    last_silent_at: Mapped[datetime]
    """The latest of them."""


class Maintenance(Base):
    """A window in which nobody is flagged: once, or again and again."""

    __tablename__ = "maintenance"

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    created_at: Mapped[datetime]
    starts_at: Mapped[datetime]
    """Of a recurring window: since when it is in force."""
    ends_at: Mapped[datetime | None]
    """When a single window ends, or a recurring one comes no more; absent: when somebody ends it."""
    schedule: Mapped[str | None]
    """A cron expression at whose slots a recurring window begins, in `time_zone`."""
    time_zone: Mapped[str | None]
    duration_seconds: Mapped[float | None]
    """How long each of a recurring window's times lasts."""
    reason: Mapped[str | None]
    ended_at: Mapped[datetime | None]
    """When somebody ended it early, or a recurring one for good."""
    cut_at: Mapped[datetime | None]
    """When somebody last ended a recurring window that ran then: that one, not those to come."""


class Notification(Base):
    """Something that people are told: written with the change itself, sent by a job."""

    __tablename__ = "notifications"
    __table_args__ = (
        Index(
            "ix_notifications_due_at",
            "due_at",
            sqlite_where=text("state = 'waiting'"),
            postgresql_where=text("state = 'waiting'"),
        ),
        Index(None, "created_at"),
    )

    id: Mapped[int] = mapped_column(BIG_KEY, primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    """The same for the same change, however often it is found; receivers get it too, to tell a repetition."""
    kind: Mapped[str]
    """One of `NoticeKind`."""
    created_at: Mapped[datetime]
    """Redis's time."""
    expires_at: Mapped[datetime]
    """A try that fails after this moment is the last one; a day after it was written, or asked for again."""
    session_id: Mapped[UUID | None]
    """Absent where the whole fleet is meant."""
    agent_name: Mapped[str | None]
    project: Mapped[str | None]
    detail: Mapped[dict[str, Any]]
    """The facts that its text is made of, as they were at the change."""
    state: Mapped[str]
    """One of `NoticeState`."""
    due_at: Mapped[datetime]
    """When it is tried next; a job that tries moves it ahead first, so that no other does."""
    attempts: Mapped[int]
    delivered: Mapped[dict[str, Any] | None]
    """Who has it already: for each target (a fingerprint of its URL) the time."""
    sent_at: Mapped[datetime | None]
    """When everybody had it."""
    failure: Mapped[str | None]
    """Why the last try failed, without passwords."""


class Pipeline(Base):
    """One row: what the pipeline last knew of itself."""

    __tablename__ = "pipeline"

    id: Mapped[int] = mapped_column(primary_key=True)
    watermark: Mapped[datetime | None]
    """Everything received before it was in SQL at the last sweep. Never goes back."""
    last_sweep_at: Mapped[datetime | None]
    """Redis's time at the last sweep."""
    sweep_seconds: Mapped[float | None]
    """The interval of the workers' sweeps: whoever looks may have another setting."""
    inbox_life: Mapped[str | None]
    """Which account of the inbox (`fleetbeat_worker.broker.accounting`) the last sweep found."""
    inbox_lost: Mapped[int | None] = mapped_column(BigInteger)
    """How many entries had been lost by it; what is more next time is reported."""
    inbox_backlog: Mapped[int | None] = mapped_column(BigInteger)
    """How many entries waited in it, to tell if it is gone next time."""
    maintenance_since: Mapped[datetime | None]
    """When the maintenance began that the last sweep found; absent if there was none."""
    cleared_at: Mapped[datetime | None]
    """When the last maintenance ended: nobody's silence counts from earlier."""
    unjudged: Mapped[int | None]
    """How many agents are set aside, as they can't be judged: only then does a batch look who they are."""
    pulse_at: Mapped[datetime | None]
    """The last pulse (`fleetbeat_worker.broker.pulse`) that a sweep knew of."""

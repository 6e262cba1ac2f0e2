"""Pipeline state: the row in which each sweep writes how far verdicts have been taken."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import datetime

from sqlalchemy import Connection, select, update

from fleetbeat_worker.database.tables import Pipeline


@dataclass(frozen=True, slots=True)
class PipelineState:
    """The row of `pipeline`; all None before the first sweep."""

    watermark: datetime | None = None
    """Everything received before it was in SQL at the last sweep."""
    last_sweep_at: datetime | None = None
    """Redis's time at the last sweep."""
    sweep_seconds: float | None = None
    """The interval of the workers' sweeps."""
    inbox_life: str | None = None
    """The life of the inbox's account; None before there was any."""
    inbox_lost: int | None = None
    """How many entries were lost according to it."""
    inbox_backlog: int | None = None
    """How many entries waited in the inbox."""
    maintenance_since: datetime | None = None
    """When the maintenance began that the last sweep found; None if there was none."""
    cleared_at: datetime | None = None
    """When the last maintenance ended."""
    unjudged: int | None = None
    """How many agents can't be judged."""
    pulse_at: datetime | None = None
    """The last pulse."""


_COLUMNS = select(*(getattr(Pipeline, column.name) for column in fields(PipelineState)))


def read_pipeline_state(connection: Connection, *, lock: bool = False) -> PipelineState:
    """Read what the last sweep wrote; with `lock`, a second sweep waits here until this one has ended."""
    if lock:  # without the row two sweeps could run at once: an error is better
        return PipelineState(*connection.execute(_COLUMNS.with_for_update()).one())
    row = connection.execute(_COLUMNS).first()
    return PipelineState(*row) if row is not None else PipelineState()


def write_pipeline(connection: Connection, pipeline: PipelineState) -> None:
    """Write how far verdicts have been taken, and what was found in Redis."""
    connection.execute(update(Pipeline).values(asdict(pipeline)))

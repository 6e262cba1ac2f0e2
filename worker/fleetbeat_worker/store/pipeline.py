"""Reading what the pipeline last knew of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from fleetbeat_worker.tables import Pipeline

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class StoredPipeline:
    """The row of `pipeline`, or nothing but None before the first sweep."""

    watermark: datetime | None = None
    """Everything received before it was in SQL at the last sweep."""
    last_sweep_at: datetime | None = None
    """Redis's time at the last sweep."""
    sweep_seconds: float | None = None
    """How often the workers sweep."""


def stored_pipeline(connection: Connection) -> StoredPipeline:
    """Return what the last sweep wrote down."""
    query = select(Pipeline.watermark, Pipeline.last_sweep_at, Pipeline.sweep_seconds)
    row = connection.execute(query).first()
    return StoredPipeline(*row) if row is not None else StoredPipeline()

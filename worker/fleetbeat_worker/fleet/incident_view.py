"""The incident that is open, as it is shown beside the fleet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from fleetbeat_worker.sweep.incident_rows import open_incident, silent_of


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
    silent, _ = silent_of(connection, found.id)
    return IncidentView(found.started_at, found.agents, found.live_agents, silent)

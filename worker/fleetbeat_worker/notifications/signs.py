"""From when on an agent's silence counts, what happened at that moment, and when it was last heard."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fleetbeat_worker.rules.liveness import silent_since

HEARTBEAT = "last heartbeat"
REGISTRATION = "registration"
PAUSE = "end of the pause"
MAINTENANCE = "end of maintenance"
"""Why silence counts from a moment: the words of `fleetbeat explain`."""

RESTARTED = "restarted"
GOODBYE = "goodbye"
"""How a session ended of which people were told: another one took its name, or it said so."""


def silence_facts(
    registered_at: datetime,
    last_seen_at: datetime | None,
    resumed_at: datetime | None,
    cleared_at: datetime | None = None,
) -> dict[str, Any]:
    """Return from when on an agent's silence counts and why, and its last sign of life, as facts that can be told.

    `cleared_at`: the end of the maintenance that started its clock anew since then, if one did.
    """
    since, why = silent_since(registered_at, last_seen_at, resumed_at), REGISTRATION
    if cleared_at is not None:
        since, why = cleared_at, MAINTENANCE
    elif since == last_seen_at:
        why = HEARTBEAT
    elif since != registered_at:
        why = PAUSE
    return {
        "since": since.isoformat(),
        "since_is": why,
        "last_seen_at": None if last_seen_at is None else last_seen_at.isoformat(),
        "registered_at": registered_at.isoformat(),
    }

"""What an agent does, as far as it says so, and when that last changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleetbeat_worker.ingest.session_state import AgentRecord
from fleetbeat_worker.rules.anomalies import DOING


def changed_at(agent: AgentRecord, order: tuple[int, int], said: Mapping[str, Any]) -> int | None:
    """Take over what a heartbeat says, and return when what the agent does changed by it; None if it says nothing new.

    `order` is the heartbeat's `seen_at` and place. One that comes after newer ones, and says something else, means that
    the agent did something else in between: it came back to what it does now no later than at the newest of them, if
    that one spoke of it. (Which heartbeat last spoke of which word isn't kept.)
    """
    given = {name: said[name] for name in DOING if said.get(name) is not None}
    if not given.get("progress"):
        given.pop("progress", None)  # an empty one leaves what was there
    differs = any(agent.doing.get(name) != value for name, value in given.items())
    if agent.reported is not None and order < agent.reported:
        is_news = differs and agent.changed_at is not None and order[0] > agent.changed_at
        return agent.reported[0] if is_news else None
    agent.doing = {**agent.doing, **given}
    return order[0] if differs or (given and agent.changed_at is None) else None

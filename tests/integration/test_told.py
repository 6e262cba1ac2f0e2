"""What people are told of a fleet on a simulated clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetbeat_worker.notice_text import Facts, compose
from fleetbeat_worker.tables import NoticeKind
from helpers import notices
from simulated import NOON, Simulation, at

if TYPE_CHECKING:
    from sqlalchemy import Engine


def sweep_until(fleet: Simulation, start: int, end: int) -> None:
    for second in range(start, end, 5):
        fleet.sweep(second)


def titles(engine: Engine, *kinds: str) -> list[str]:
    """Return the titles of what was told."""
    told = []
    for row in notices(engine, *kinds):
        facts = Facts(NoticeKind(row.kind), row.key, row.agent_name, row.project, row.created_at, row.detail)
        told.append(compose(facts, row.created_at).title)
    return told


def moments(engine: Engine, *kinds: str) -> list[float]:
    """Return when something was told, in seconds after noon."""
    return [(row.created_at - NOON).total_seconds() for row in notices(engine, *kinds)]


def test_an_agent_that_dies_while_it_flaps_is_told_of_as_degraded(database: Engine) -> None:
    """Its single changes are no longer told by then, so what says that it is calm says that it is silent, and since."""
    fleet = Simulation(database, flapping_changes=3)
    session_id = fleet.register("torv", 0)
    for second in (1, 27, 53):
        fleet.beat(session_id, second)
        fleet.sweep(second + 25)
    sweep_until(fleet, 80, 600)
    assert titles(database, "flapping", "calm") == ["torv is flapping, ok now", "torv is calm again, but degraded"]
    (calm,) = notices(database, "calm")
    assert calm.detail["since"] == at(53).isoformat()

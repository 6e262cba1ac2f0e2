from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from acceptance.place import PATIENCE_SECONDS, Place
from helpers import eventually

ALLOWED = timedelta(seconds=3)
"""Two intervals of a second, and a second's grace."""


def event_of(place: Place, kind: str) -> dict[str, Any] | None:
    return next(iter(place.json("fleetbeat", "events", "--type", kind)["events"]), None)


def flagged(place: Place) -> list[str]:
    return [event["agent_name"] for event in place.json("fleetbeat", "events", "--type", "degraded")["events"]]


def moment(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["occurred_at"])


def watched_for(place: Place, length: timedelta) -> None:
    """Wait until sweeps have judged a time of this length from now on."""
    start = datetime.fromisoformat(place.json("fleetbeat", "dashboard")["as_of"])
    eventually(
        lambda: datetime.fromisoformat(place.json("fleetbeat", "dashboard")["as_of"]) > start + length,
        within_seconds=PATIENCE_SECONDS,
    )


def test_silence_in_a_pause_flags_nobody(pipeline: Place) -> None:
    """An agent that falls silent in its pause isn't flagged in it; two intervals and grace after its end it is."""
    worker = pipeline.start("fleetbeat", "worker")
    worker.says("Workers started")
    pipeline.run("fleetbeat-agent", "register", "--stable", "--name", "hint", "--every", "1h")
    pipeline.eventually_state("hint", "pending")
    pipeline.run("fleetbeat", "agents", "pause", "hint", "--reason", "moves")
    pipeline.run("fleetbeat-agent", "register", "--stable", "--name", "hint", "--every", "1s", "--missed", "2")
    eventually(lambda: (pipeline.agent("hint") or {})["interval_seconds"] == 1, within_seconds=PATIENCE_SECONDS)
    watched_for(pipeline, ALLOWED + timedelta(seconds=1))
    assert pipeline.state("hint") == "paused"
    assert flagged(pipeline) == []
    paused = pipeline.json("fleetbeat", "agents", "pause", "hint", "--for", "2s")
    pipeline.eventually_state("hint", "degraded")
    resumed = event_of(pipeline, "resumed")
    assert resumed is not None
    assert resumed["occurred_at"] == paused["until"]
    last = pipeline.json("fleetbeat", "events", "--type", "degraded")["events"][-1]
    assert moment(last) >= moment(resumed) + ALLOWED
    assert datetime.fromisoformat(last["detail"]["deadline_at"]) >= moment(resumed) + ALLOWED


def test_silence_in_maintenance_flags_nobody(pipeline: Place) -> None:
    """A fleet that falls silent in a window isn't flagged in it; two intervals and grace after its end it is."""
    worker = pipeline.start("fleetbeat", "worker")
    worker.says("Workers started")
    pipeline.json("fleetbeat", "maintenance", "start", "--reason", "new switch")
    for name in ("hint", "torv"):
        pipeline.run("fleetbeat-agent", "register", "--name", name, "--every", "1s")
    pipeline.eventually_state("torv", "pending")
    watched_for(pipeline, ALLOWED + timedelta(seconds=1))
    assert flagged(pipeline) == []
    assert pipeline.run("fleetbeat", "check").stdout.count("(new switch): no agent is flagged") == 1
    pipeline.run("fleetbeat", "maintenance", "end")
    over = eventually(lambda: event_of(pipeline, "maintenance_over"), within_seconds=PATIENCE_SECONDS)
    for name in ("hint", "torv"):
        pipeline.eventually_state(name, "degraded")
    for event in pipeline.json("fleetbeat", "events", "--type", "degraded")["events"]:
        assert datetime.fromisoformat(event["detail"]["deadline_at"]) >= moment(over) + ALLOWED
        assert moment(event) >= moment(over) + ALLOWED
    assert sorted(flagged(pipeline)) == ["hint", "torv"]

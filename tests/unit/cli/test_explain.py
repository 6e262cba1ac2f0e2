from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from command_line import run
from sqlalchemy import Engine

from fleetbeat_worker.cli.types import DurationType, MomentType
from simulated import Simulation


@pytest.fixture
def fleet(engine: Engine) -> Simulation:
    """Return a fleet of January, whose agent died."""
    fleet = Simulation(engine)
    session_id = fleet.register("torv [bold]", 0, interval_seconds=10.0, grace_seconds=1.0, work="\x1b[31mred")
    for second in (1, 11, 41):
        fleet.beat(session_id, second, progress="\x1b]0;title\x07page 1")
        fleet.sweep(second + 0.5)
    for second in (35, 60, 70):
        fleet.sweep(second)
    return fleet


NAME = "torv [bold]"


def test_explain_prints_verdict_deadline_and_heartbeats(fleet: Simulation) -> None:
    """The text has the verdict, the deadline's computation and the heartbeats, without escape codes."""
    del fleet
    result = run("explain", NAME, "--at", "2026-01-31T12:01:05Z")
    assert result.exit_code == 0, result.output
    for part in ("torv [bold]", "LATE", "last heartbeat 2026-01-31 12:00:41 + 2 x 10s + 1s grace", "12:01:02"):
        assert part in result.output
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output


def test_explain_as_json(fleet: Simulation) -> None:
    """`--json` prints one object, for now or a past time, by name or by session."""
    del fleet
    by_name = json.loads(run("explain", NAME, "--at", "2026-01-31T12:01:11Z", "--json").stdout)
    assert by_name["verdict"]["state"] == "degraded"
    assert by_name["deadline"]["deadline_at"] == "2026-01-31T12:01:02.000Z"
    now = json.loads(run("explain", "--session", by_name["session_id"], "--json").stdout)
    assert (now["verdict"]["state"], now["asked_at"]) == ("degraded", None)
    assert now["pipeline"]["held"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "Give either an agent's NAME or --session ID."),
        (
            (NAME, "--session", "019c0d3e-0000-7000-8000-000000000000"),
            2,
            "Give either an agent's NAME or --session ID.",
        ),
        (("nobody",), 1, "No agent or session 'nobody' was ever registered"),
        (("--session", "019c0d3e-0000-7000-8000-000000000000"), 1, "was ever registered"),
        ((NAME, "--at", "2026-01-31T11:00Z"), 1, "was not registered yet"),
        ((NAME, "--at", "9999-01-01T00:00Z"), 1, "lies ahead"),
        ((NAME, "--at", "yesterday"), 2, "'yesterday' is not a time"),
    ],
)
def test_explain_errors(fleet: Simulation, args: tuple[str, ...], code: int, says: str) -> None:
    """Wrong usage, unknown agents and impossible times end with one sentence and their exit status."""
    del fleet
    result = run("explain", *args)
    assert (result.exit_code, says in result.stderr) == (code, True), result.output


def test_backtest_compares_both_settings(fleet: Simulation) -> None:
    """The text has both totals and the silences; `--json` all agents."""
    del fleet
    result = run("backtest", "--missed", "1", "--agent", "torv*")
    assert result.exit_code == 0, result.output
    assert NAME in result.output
    assert "after 11s" in result.output
    assert "\x1b" not in result.output
    found = json.loads(run("backtest", "--missed", "1", "--json").stdout)
    assert set(found) == {
        *("since", "until", "is_cut", "sessions", "heartbeats", "unjudged", "would_be", "was", "agents", "silences"),
    }
    assert found["would_be"]["flags"] == 2
    assert [agent["agent_name"] for agent in found["agents"]] == [NAME]
    assert [silence["silent_since"] for silence in found["silences"]] == [
        "2026-01-31T12:00:11.000Z",
        "2026-01-31T12:00:41.000Z",
    ]


def test_backtest_without_flags(fleet: Simulation) -> None:
    """If no agent would be flagged and none was, one sentence says so."""
    del fleet
    result = run("backtest", "--missed", "100", "--agent", "torv*", "--since", "1s")
    assert "No agent would have been flagged, and none was." in result.output


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--since", "0s", "out of range"),
        ("--since", "99999999d", "out of range"),
        ("--grace", "x", "duration"),
        ("--interval", "0", "0 is too small; 1s to 31d is allowed"),
        ("--interval", "0.5s", "0.5s is too small; 1s to 31d is allowed"),
        ("--interval", "40d", "40d is too large; 1s to 31d is allowed"),
    ],
)
def test_backtest_refuses_durations_outside_their_limits(fleet: Simulation, option: str, value: str, says: str) -> None:
    """What isn't a duration, or one that no registration could have, is a usage error."""
    del fleet
    result = run("backtest", option, value)
    assert (result.exit_code, says in result.stderr) == (2, True), result.output


def test_backtest_of_an_unknown_name(fleet: Simulation) -> None:
    """An unregistered name is an error, a pattern without a match a warning; both leave the JSON valid."""
    del fleet
    for options in ((), ("--json",)):
        name, pattern = (run("backtest", "--agent", asked, *options) for asked in ("torf", "torf*"))
        assert (name.exit_code, pattern.exit_code) == (1, 0)
        assert name.stderr == "Error: No agent 'torf' was ever registered. See: fleetbeat agents list --all\n"
        assert pattern.stderr.startswith("Warning: No agent's name matches 'torf*'")
    assert json.loads(name.stdout)["sessions"] == json.loads(pattern.stdout)["sessions"] == 0


def test_agents_show_has_uptimes_silences_and_changes(fleet: Simulation) -> None:
    """`agents show` has the uptimes, the silences and the state changes, also with `--json`."""
    del fleet
    result = run("agents", "show", NAME, "--events", "1")
    for part in ("uptime", "of 24h", "Silences", "still silent", "State changes"):
        assert part in result.output
    assert "\x1b" not in result.output
    found = json.loads(run("agents", "show", NAME, "--json").stdout)
    assert set(found) >= {"as_of", "held", "agent", "tasks", "events", "uptime", "silences", "state_changes"}
    assert set(found["uptime"]) == {"24h", "7d", "30d"}
    assert found["silences"][-1]["ended_at"] is None
    assert {event["type"] for event in found["state_changes"]} >= {"registered", "degraded"}


def convert(kind: Any, text: str) -> Any:
    return kind.convert(text, None, None)


def test_moments_and_durations_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment is ISO 8601, in local time unless it has a zone, or a duration."""
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert convert(MomentType("2h"), "2026-01-31T08:15") == datetime(2026, 1, 31, 7, 15, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert convert(MomentType("2h"), "2026-01-31T08:15:00+05:30") == datetime(2026, 1, 31, 2, 45, tzinfo=UTC)
    assert convert(MomentType("2h"), "2h") == timedelta(hours=2)
    assert convert(DurationType(zero=True), "0s") == timedelta()

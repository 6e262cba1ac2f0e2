from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakeredis import FakeRedis
from sqlalchemy import Engine

from fleetbeat_shared import connection
from fleetbeat_worker.cli import main
from fleetbeat_worker.cli.types import DurationType, MomentType
from simulated import Simulation


@pytest.fixture
def fleet(engine: Engine, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """Return a fleet of January, whose agent died, with Redis as the commands see it."""
    monkeypatch.setattr(connection, "connect", lambda *_, **__: redis)
    fleet = Simulation(engine)
    session_id = fleet.register("torv [bold]", 0, interval_seconds=10.0, grace_seconds=1.0, work="\x1b[31mred")
    for second in (1, 11, 41):
        fleet.beat(session_id, second, progress="\x1b]0;title\x07page 1")
        fleet.sweep(second + 0.5)
    for second in (35, 60, 70):
        fleet.sweep(second)
    return fleet


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


NAME = "torv [bold]"


def test_explain_tells_all_in_plain_text(fleet: Simulation) -> None:
    """The text has the verdict, the sum and the heartbeats; what an agent is called acts on no terminal."""
    del fleet
    result = run("explain", NAME, "--at", "2026-01-31T12:01:05Z")
    assert result.exit_code == 0, result.output
    for part in ("torv [bold]", "LATE", "last heartbeat 2026-01-31 12:00:41 + 2 x 10s + 1s grace", "12:01:02"):
        assert part in result.output
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output


def test_explain_as_json(fleet: Simulation) -> None:
    """`--json` is one object, of now or of a moment, by name or by session."""
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
def test_what_cannot_be_explained_is_said_in_a_sentence(
    fleet: Simulation, args: tuple[str, ...], code: int, says: str
) -> None:
    """Wrong usage, unknown agents and impossible times end with an error that says what to do."""
    del fleet
    result = run("explain", *args)
    assert (result.exit_code, says in result.stderr) == (code, True), result.output


def test_backtest_tells_both(fleet: Simulation) -> None:
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


def test_backtest_without_flags_says_so(fleet: Simulation) -> None:
    """Where nobody would be flagged and nobody was, a sentence says it."""
    del fleet
    result = run("backtest", "--missed", "100", "--agent", "torv*", "--since", "1s")
    assert "No agent would have been flagged, and none was." in result.output


@pytest.mark.parametrize("args", [("--since", "0s"), ("--interval", "0"), ("--grace", "x"), ("--since", "99999999d")])
def test_backtest_refuses_impossible_durations(fleet: Simulation, args: tuple[str, str]) -> None:
    """What is no duration, or none that could be meant, is wrong usage."""
    del fleet
    assert run("backtest", *args).exit_code == 2


def test_a_backtest_of_nobody_says_so(fleet: Simulation) -> None:
    """A name that nobody ever had is an error, a pattern that fits nobody a warning; both leave JSON as it is."""
    del fleet
    for options in ((), ("--json",)):
        name, pattern = (run("backtest", "--agent", asked, *options) for asked in ("torf", "torf*"))
        assert (name.exit_code, pattern.exit_code) == (1, 0)
        assert name.stderr == "Error: No agent 'torf' was ever registered. See: fleetbeat agents list --all\n"
        assert pattern.stderr.startswith("Warning: No agent's name matches 'torf*'")
    assert json.loads(name.stdout)["sessions"] == json.loads(pattern.stdout)["sessions"] == 0


@pytest.mark.parametrize(("interval", "how"), [("0.5s", "little"), ("40d", "much")])
def test_backtest_tries_no_interval_that_a_registration_refuses(fleet: Simulation, interval: str, how: str) -> None:
    """What an agent can't promise is nothing to try."""
    del fleet
    result = run("backtest", "--interval", interval)
    assert result.exit_code == 2
    assert f"{interval} is too {how}; 1s to 31d is allowed" in result.stderr


def test_an_agent_is_shown_with_its_record(fleet: Simulation) -> None:
    """`agents show` has the uptimes, the silences and the changes of state, also for programs."""
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


def test_times_as_people_type_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time is ISO, in local time unless it says a zone, or a duration."""
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

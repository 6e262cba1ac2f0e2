from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from command_line import answer, run
from ops_fixtures import put_agent, put_sweep, seconds
from sqlalchemy import Engine, update

from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.database.tables import Maintenance
from helpers import agent, events, state

UNSET = "019c0d3e-0000-7000-8000-000000000000"


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """Return the database after a first sweep."""
    put_sweep(engine, datetime.now(UTC))
    return engine


def test_pause_and_resume(engine: Engine) -> None:
    """A pause says until when and why, in the answer, the event, the dashboard and `agents show`; a resume ends it."""
    session = put_agent(engine, "hint", at=datetime.now(UTC))
    told = answer("agents", "pause", "hint", "--for", "2h", "--reason", "moves\x1b[31m")
    assert told["paused"] == [{"agent_name": "hint", "session_id": str(session), "state": "paused"}]
    assert told["reason"] == "moves"
    row = agent(engine, session)
    assert (row.state, row.paused_until - row.paused_at, row.pause_reason) == ("paused", timedelta(hours=2), "moves")
    (event,) = events(engine, "paused")
    assert (event.detail["reason"], datetime.fromisoformat(event.detail["until"])) == ("moves", row.paused_until)
    (shown,) = answer("dashboard", "--state", "paused")["agents"]
    assert (shown["pause_reason"], shown["missed_intervals"], shown["degraded"]) == ("moves", 0, False)
    assert "1 agent: 1 paused" in run("dashboard").output
    assert f"{row.paused_until:%H:%M:%S}" in run("dashboard").output
    assert "moves" in run("agents", "show", "hint").output
    check = run("check")
    assert (check.exit_code, "(1 paused), none degraded" in check.output) == (0, True)
    assert "the deadline restarts now" in run("agents", "resume", "hint").output
    row = agent(engine, session)
    assert (row.state, row.paused_at, row.deadline_at - row.resumed_at) == ("ok", None, seconds(62))


def test_repeated_pause_changes_end_and_reason(engine: Engine) -> None:
    """Pausing a paused agent changes the end and the reason, but not the start."""
    session = put_agent(engine, "hint", at=datetime.now(UTC))
    answer("agents", "pause", "hint", "--for", "2h", "--reason", "a")
    before = agent(engine, session)
    assert "until resumed" in run("agents", "pause", "--session", str(session)).output
    row = agent(engine, session)
    assert (row.paused_at, row.paused_until, row.pause_reason) == (before.paused_at, None, None)
    assert len(events(engine, "paused")) == 2


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("pause", "nobody"), 1, "nobody was never registered. See: fleetbeat agents list --all"),
        (("resume", "nobody"), 1, "nobody was never registered"),
        (("pause", "gone"), 1, "gone has ended, so it can't be paused or resumed"),
        (("resume", "gone"), 1, "gone has ended"),
        (("resume", "hint"), 1, "hint is not paused"),
        (("pause", "--session", UNSET), 1, f"session {UNSET} was never registered"),
        (("pause",), 2, "Give either an agent's NAME or --session ID."),
        (("pause", "hint", "--session", UNSET), 2, "Give either"),
        (("pause", "hint", "--for", "soon"), 2, "'soon' is not a duration"),
        (("pause", "hint", "--for", "0"), 2, "out of range"),
        (("pause", "hint", "--for", "99999999999999d"), 2, "out of range"),
        (("pause", "hint", "--reason", ""), 2, "a reason has 1 to 500 characters"),
    ],
    ids=str,
)
def test_pause_and_resume_errors(engine: Engine, args: tuple[str, ...], code: int, told: str) -> None:
    """An unknown, ended or unpaused agent causes an error of one sentence, and nothing changes."""
    now = datetime.now(UTC)
    session = put_agent(engine, "hint", at=now)
    put_agent(engine, "gone", at=now, state="ended", ended_at=now)
    result = run("agents", *args)
    assert (result.exit_code, told in " ".join(result.output.split())) == (code, True), result.output
    assert state(engine, session) == "ok"
    assert events(engine) == []


def test_maintenance_from_now_until_its_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs at once, is shown by the dashboard, `check` and `agents`, and `end` ends it."""
    monkeypatch.setenv("COLUMNS", "160")  # so that no sentence is wrapped
    put_agent(engine, "hint", at=datetime.now(UTC))
    told = answer("maintenance", "start", "--for", "2h", "--reason", "new switch")
    assert (told["id"], told["state"], told["reason"]) == (1, "running", "new switch")
    for command in (("dashboard",), ("agents", "list"), ("agents", "show", "hint"), ("check",)):
        assert "Maintenance since" in run(*command).output
        assert "(new switch): no agent is flagged" in " ".join(run(*command).output.split())
        shown = answer(*command).get("maintenance", {"reason": "new switch"})
        assert shown["reason"] == "new switch"
    assert "running" in run("maintenance", "list").output
    assert run("maintenance", "end").output == "Ended maintenance 1.\n"
    assert answer("dashboard")["maintenance"] is None
    assert run("maintenance", "list").output.startswith("No maintenance.")
    (over,) = answer("maintenance", "list", "--all")["maintenance"]
    assert over["state"] == "over"
    ended = f"{datetime.fromisoformat(over['ended_at']):%Y-%m-%d %H:%M:%S}"
    assert f"ended at {ended} UTC" in " ".join(run("maintenance", "list", "--all").output.split())
    again = run("maintenance", "end")
    assert (again.exit_code, "No maintenance is running" in again.output) == (1, True)


def test_planned_maintenance(engine: Engine) -> None:
    """--at takes local time, a zone, or a duration from now; a window ended before its start never runs."""
    assert engine is not None
    at = (datetime.now(UTC) + timedelta(days=2)).replace(microsecond=0)
    told = answer("maintenance", "start", "--at", at.isoformat(), "--for", "1h")
    assert (told["state"], told["next_start"]) == ("planned", f"{at:%Y-%m-%dT%H:%M:%S}.000Z")
    local = at.astimezone().replace(tzinfo=None).isoformat()
    assert answer("maintenance", "start", "--at", local)["starts_at"] == told["starts_at"]
    assert answer("maintenance", "start", "--at", "2h", "--for", "1h")["state"] == "planned"
    assert run("check").output.count("Maintenance") == 0
    assert run("maintenance", "end", "1").exit_code == 0
    assert [one["id"] for one in answer("maintenance", "list")["maintenance"]] == [2, 3]
    missing = run("maintenance", "end", "1")
    assert (missing.exit_code, "No maintenance 1 is running or planned" in missing.output) == (1, True)


def test_recurring_maintenance_ends_once_or_for_good(engine: Engine) -> None:
    """`end` ends the running window and prints the next one; with an ID there is no next one."""
    assert engine is not None
    minute = datetime.now(UTC) - timedelta(minutes=5)
    cron = ("--cron", f"{minute.minute} * * * *", "--for", "30m")
    told = answer("maintenance", "start", *cron, "--time-zone", "UTC")
    assert (told["state"], told["schedule"], told["duration_seconds"]) == ("planned", cron[1], 1800)
    with writing(engine) as connection:  # as if it had been asked for yesterday
        connection.execute(update(Maintenance).values(starts_at=minute - timedelta(days=1)))
    (shown,) = answer("maintenance", "list")["maintenance"]
    assert (shown["state"], shown["running_until"] is not None) == ("running", True)
    assert "30m each time at" in run("maintenance", "list").output
    ended = run("maintenance", "end").output
    assert ended.startswith("Ended maintenance 1.\nIt runs again at ")
    (shown,) = answer("maintenance", "list")["maintenance"]
    assert shown["state"] == "planned"
    assert run("maintenance", "end", "1").output == "Ended maintenance 1.\n"
    assert answer("maintenance", "list")["maintenance"] == []


def test_unusable_maintenance_is_listed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window whose time zone no longer exists is listed as unusable, and can be ended."""
    answer("maintenance", "start", "--cron", "0 3 * * *", "--for", "1h")
    with writing(engine) as connection:
        connection.execute(update(Maintenance).values(time_zone="Mars/Olympus"))
    (shown,) = answer("maintenance", "list")["maintenance"]
    assert shown["state"] == "unusable"
    assert "Mars/Olympus" in shown["fault"]
    monkeypatch.setenv("COLUMNS", "300")
    assert "End it, and start another." in run("maintenance", "list").output
    assert run("dashboard").exit_code == 0
    assert run("maintenance", "end").exit_code == 1
    assert run("maintenance", "end", "1").output == "Ended maintenance 1.\n"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--cron", "0 3 * * 0"), "--cron needs --for"),
        (("--cron", "soon", "--for", "1h"), "'soon' is not a cron expression"),
        (("--cron", "0 3 * * 0", "--for", "1h", "--time-zone", "Mars"), "'Mars' is not a time zone"),
        (("--time-zone", "UTC"), "--time-zone goes with --cron"),
        (("--at", "2020-01-01T00:00Z"), "is past, and maintenance undoes no earlier flag"),
        (("--at", "soon"), "'soon' is not a time"),
        (("--cron", "0 * * * *", "--for", "1h"), "no agent would ever be flagged"),
        (("--for", "0"), "out of range"),
    ],
    ids=str,
)
def test_maintenance_errors(engine: Engine, args: tuple[str, ...], told: str) -> None:
    """Contradictory options are refused with what to write instead, and nothing is stored."""
    assert engine is not None
    result = run("maintenance", "start", *args)
    assert (result.exit_code, told in " ".join(result.output.split())) == (2, True), result.output
    assert answer("maintenance", "list", "--all")["maintenance"] == []

from __future__ import annotations

import re
from datetime import datetime

import pytest
from command_line import answer, run
from fakeredis import FakeRedis
from ops_fixtures import put_agent, put_event, put_sweep, seconds
from rq import Queue, SimpleWorker
from sqlalchemy import Engine

from fleetbeat_shared.redis_keys import FIELD, GROUP, INBOX, QUEUE


def test_dashboard_json_has_the_documented_keys(engine: Engine, now: datetime) -> None:
    """`dashboard --json` is one object with the documented keys, times in UTC, and ASCII only."""
    session_id = put_agent(engine, "hinß", at=now, metadata={"model": "m-1"}, project="p", summary="fine")
    put_sweep(engine, now)
    view = answer("dashboard")
    assert run("dashboard", "--json").stdout.isascii()
    assert set(view) >= {"as_of", "pipeline", "agents"}
    assert set(view["pipeline"]) >= {"backlog", "lag_seconds", "workers", "last_sweep_at", "rejected", "held"}
    assert set(view["agents"][0]) >= {
        *("agent_name", "session_id", "state", "degraded", "missed_intervals", "last_seen_at", "interval_seconds"),
        *("deadline_at", "current_work", "work_item_id", "progress", "status", "summary", "error", "open_tasks"),
        *("stale_tasks", "metadata", "project", "parent_id", "schedule", "time_zone", "grace_seconds"),
        *("registered_at", "ended_at", "state_changed_at"),
    }
    agent = view["agents"][0]
    assert agent["session_id"] == str(session_id)
    assert agent["metadata"] == {"model": "m-1"}
    assert agent["last_seen_at"].endswith("Z")
    assert datetime.fromisoformat(view["as_of"]).tzinfo is not None


def test_plain_output_has_no_escape_codes(engine: Engine, now: datetime) -> None:
    """Output to a pipe has no escape codes, even if an agent's texts have."""
    put_agent(engine, "hint", at=now - seconds(500), state="degraded", error="\x1b[31mred")
    put_event(engine, "degraded", "hint", now, detail={"why": "\x1b]0;x\x07silent"})
    put_sweep(engine, now)
    for args in (["dashboard"], ["agents", "list"], ["agents", "show", "hint"], ["events"], ["queue"], ["check"]):
        output = run(*args).output
        assert "\x1b" not in output, args
        assert "secret" not in output, args
    assert "DEGRADED" in run("dashboard").output


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize("command", [("dashboard",), ("agents", "list")])
def test_narrow_terminal_shows_agent_names(
    engine: Engine, now: datetime, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], columns: int
) -> None:
    """On a narrow terminal an agent's name is shown, nine letters of it on one line."""
    monkeypatch.setenv("COLUMNS", str(columns))
    long = {"schedule": "*/5 9-17 * * mon-fri", "time_zone": "America/New_York", "interval_seconds": None}
    put_agent(engine, "crawler-1", at=now, current_work="reading the handbook", project="billing", **long)
    printed = run(*command).stdout
    assert "crawler-1" in printed
    assert max(map(len, printed.splitlines())) <= columns


def test_agents_are_listed_by_their_latest_heartbeat(engine: Engine, now: datetime) -> None:
    """`agents list` has live agents, the newest heartbeat first; others with --state and --all."""
    put_agent(engine, "torv", at=now - seconds(20))
    put_agent(engine, "hint", at=now - seconds(5))
    put_agent(engine, "rams", at=now - seconds(300), state="degraded")
    put_agent(engine, "gone", at=now - seconds(10), state="ended", ended_at=now)
    put_sweep(engine, now)

    def names(*args: str) -> list[str]:
        return [agent["agent_name"] for agent in answer("agents", "list", *args)["agents"]]

    assert names() == ["hint", "torv", "rams"]
    assert names("--all") == ["hint", "gone", "torv", "rams"]
    assert names("--state", "OK, degraded") == ["hint", "torv", "rams"]
    assert names("--state", "ended") == ["gone"]
    assert run("agents", "list", "--state", "fine").exit_code == 2


def test_agents_show_has_every_field(engine: Engine, now: datetime) -> None:
    """`agents show` takes a name or a session, and has the agent's report, its tasks and its latest events."""
    session_id = put_agent(engine, "hint", at=now, error="e" * 300, metadata={"model": "m-1"})
    for number in range(12):
        put_event(engine, "heartbeat", "hint", now, text=f"step {number}", session_id=session_id)
    put_sweep(engine, now)
    run("tasks", "add", "hint", "Sort")
    report = answer("agents", "show", "hint")
    assert report == answer("agents", "show", str(session_id)) | {name: report[name] for name in ("as_of", "uptime")}
    assert report["tasks"] == {"open": 1, "stale": 0}
    assert [event["text"] for event in report["events"]] == [f"step {number}" for number in range(2, 12)]
    text = run("agents", "show", "hint").output
    assert text.count("e") > 300
    assert '{"model": "m-1"}' in text


def test_agents_show_of_an_unknown_agent(engine: Engine) -> None:
    """An unknown name or session exits with 1 and one sentence."""
    for asked in ("nobody", "019c0d3e-0000-7000-8000-000000000000"):
        result = run("agents", "show", asked)
        assert result.exit_code == 1
        assert "was ever registered. See: fleetbeat agents list --all" in result.stderr
    assert engine is not None


def test_events_are_listed_newest_last(engine: Engine, now: datetime) -> None:
    """`events` shows the latest in order, for one agent or some types."""
    for kind, name in (("registered", "hint"), ("registered", "torv"), ("degraded", "hint"), ("recovered", "hint")):
        put_event(engine, kind, name, now)

    def kinds(*args: str) -> list[str]:
        return [event["type"] for event in answer("events", *args)["events"]]

    assert kinds() == ["registered", "registered", "degraded", "recovered"]
    assert kinds("--limit", "2") == ["degraded", "recovered"]
    assert kinds("--agent", "torv") == ["registered"]
    assert kinds("--type", "registered", "--type", "recovered", "--agent", "hint") == ["registered", "recovered"]
    lines = run("events").output.splitlines()
    assert "recovered" in lines[-1]


def test_event_details_are_formatted(engine: Engine, now: datetime) -> None:
    """Moments are shown as times, durations with units, other values unchanged."""
    detail = {
        "deadline_at": "2026-01-31T12:00:00.000+00:00",
        "silent_seconds": 20.853,
        "missed": 2,
        "why": "31",
        "x": None,
    }
    put_event(engine, "degraded", "hint", now, detail=detail)
    assert "deadline 2026-01-31 12:00:00, silent 20s, missed 2, why 31" in " ".join(run("events").output.split())


def test_queue_shows_claims_jobs_and_workers(engine: Engine, redis: FakeRedis) -> None:
    """`queue` has the backlog, the entries claimed by each consumer, RQ's jobs and the workers."""
    assert answer("queue")["pending"] == []
    for _ in range(3):
        redis.xadd(INBOX, {FIELD: b"{}"})
    redis.xgroup_create(INBOX, GROUP, id="0")
    redis.xreadgroup(GROUP, "dead", {INBOX: ">"}, count=2)
    queue = Queue(QUEUE, connection=redis, serializer="json")
    queue.enqueue("builtins.print")
    worker = SimpleWorker([queue], name="w-1", connection=redis, serializer="json")
    worker.register_birth()
    state = answer("queue")
    assert (state["backlog"], state["pending"]) == (3, [{"consumer": "dead", "entries": 2}])
    assert state["jobs"] == {"waiting": 1, "started": 0, "failed": 0}
    assert [found["name"] for found in state["workers"]] == ["w-1"]
    text = run("queue").output
    assert "3 messages not yet in SQL" in text
    assert "2 messages claimed by dead" in text
    assert "w-1" in text
    assert answer("dashboard")["pipeline"]["workers"] == 1
    assert engine is not None


def test_agents_show_has_the_lag_of_the_pipeline(engine: Engine, now: datetime, redis: FakeRedis) -> None:
    """With a lag of more than two sweeps a state is shown with its time; otherwise without."""
    put_agent(engine, "hint", at=now - seconds(40), interval_seconds=10.0)
    put_sweep(engine, now)
    assert "as of" not in run("agents", "show", "hint").output
    put_sweep(engine, now - seconds(12))
    redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
    redis.xadd(INBOX, {FIELD: b"{}"}, id=f"{int((now - seconds(12)).timestamp() * 1000)}-0")
    shown = " ".join(run("agents", "show", "hint").output.split())
    assert re.search(r"\(as of [\d: -]+ UTC; the pipeline is 1\ds behind\)", shown)


def test_agents_show_marks_capped_missed_count(engine: Engine, now: datetime) -> None:
    """An agent that missed more than is counted shows the limit with a plus."""
    put_agent(engine, "hint", at=now - seconds(90_000), state="degraded")
    put_sweep(engine, now)
    assert ", 100+ missed" in run("agents", "show", "hint").output
    assert answer("agents", "show", "hint")["agent"]["missed_intervals"] == 100

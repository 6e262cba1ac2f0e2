from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from uuid import uuid4

from redis import Redis

from acceptance.place import PATIENCE_SECONDS, Place
from fleetbeat_shared.redis_keys import FIELD, INBOX, SESSIONS
from fleetbeat_worker.broker.embedded_valkey import find_free_port
from helpers import eventually, heartbeat, redis_time, register, send

EVIL = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202egnp\r\nline"
"""Colours, a window title, clearing the screen, reversed text, line breaks."""


def is_inert(text: str) -> bool:
    """Return whether a text can do a terminal nothing but break its lines."""
    return all(line.isprintable() for line in text.split("\n"))


def send_late_one(client: Redis) -> None:
    """Let an agent be late for the next eight minutes. It must be the first to send anything."""
    session_id = uuid4()
    at = redis_time(client) - timedelta(seconds=700)
    send(client, register("torv", session_id, interval_seconds=600), heartbeat(session_id), at=at)


def test_an_agent_falls_silent_and_comes_back(place: Place) -> None:
    """An agent of a 1 s interval is degraded and recovers, a slow one is late; `check` exits with 0, then 1, then 0."""
    place.environment["FLEETBEAT_DATA_DIR"] = str(place.directory / "data")
    place.start_up()
    with closing(Redis.from_url(place.environment["FLEETBEAT_REDIS_URL"])) as client:
        send_late_one(client)
    eventually(lambda: place.run("fleetbeat", "check", exits=None).exit_status == 0, within_seconds=PATIENCE_SECONDS)
    place.run("fleetbeat-agent", "register", "--stable", "--name", "rams", "--every", "1s", "--grace", "1s")
    beat = ("fleetbeat-agent", "heartbeat", "--agent", "rams", "--wait", "20")
    place.run(*beat, "--progress", "the first")
    assert place.eventually_state("torv", "late")["missed_intervals"] == 1
    degraded = place.eventually_state("rams", "degraded")
    assert degraded["degraded"] is True
    assert degraded["missed_intervals"] >= 2
    checks = place.run_all(["fleetbeat", "check", *words] for words in ([], ["--agent", "rams"], ["--agent", "hint"]))
    assert [check.exit_status for check in checks] == [1, 1, 1]
    assert checks[0].stdout.startswith("DEGRADED: 1 of 2 agents: rams (last seen ")
    assert checks[1].stdout.startswith("DEGRADED: 1 of 1 agent: rams (last seen ")
    assert checks[2].stdout == "UNKNOWN: no live agent is named hint.\n"

    place.run("fleetbeat-agent", "register", "--stable", "--name", "rams", "--every", "1h")
    place.run(*beat)
    assert place.state("rams") == "ok"
    told = place.run("fleetbeat", "check").stdout
    assert told.startswith("OK: 2 agents (1 late), none degraded")
    assert told.count("\n") == 1
    events = place.json("fleetbeat", "events", "--agent", "rams", "--type", "degraded", "--type", "recovered")["events"]
    assert [event["type"] for event in events] == ["degraded", "recovered"]
    assert events[0]["detail"]["deadline_at"][:19] == degraded["deadline_at"][:19]
    shown = place.run("fleetbeat", "events").stdout
    assert [word in shown for word in ("registered", "heartbeat", "the first", "degraded", "recovered")] == [True] * 5


def test_the_dashboard_with_redis_away_is_held(fleet: Place) -> None:
    """With Redis away the dashboard shows what SQL knows, HELD as of when, and where Redis should be; check says so."""
    fleet.run("fleetbeat-agent", "register", "--stable", "--name", "held", "--every", "1h")
    fleet.eventually_state("held", "pending")
    port = find_free_port()
    away = ("--redis-url", f"redis://127.0.0.1:{port}/0")
    shown = fleet.run("fleetbeat", "dashboard", *away).stdout
    assert "HELD as of 2" in shown
    assert "held" in shown
    assert f"Redis at redis://127.0.0.1:{port}/0 can't be used" in shown
    assert "Pipeline  Redis unavailable" in shown
    assert fleet.json("fleetbeat", "agents", "list", *away)["held"] is True
    assert fleet.run("fleetbeat", "check", *away, exits=3).stdout.startswith("PIPELINE: ")
    refused = fleet.run("fleetbeat", "queue", *away, exits=75)
    assert (refused.stdout, refused.stderr.startswith("Error: Redis at ")) == ("", True)


def test_no_data_yet(place: Place) -> None:
    """Commands that look say how to begin where nothing has ever run, and make no file."""
    for words, status in ((["dashboard"], 1), (["events"], 1), (["check"], 3)):
        done = place.run("fleetbeat", *words, exits=status)
        assert "Start with: fleetbeat up" in done.all
    assert not (place.directory / ".fleetbeat").exists()


def test_tasks_of_an_agent(fleet: Place) -> None:
    """Tasks are added, changed and done; the dashboard counts them, until the agent reports counts of its own."""
    fleet.run("fleetbeat-agent", "register", "--stable", "--name", "worker bee", "--every", "1h")
    fleet.eventually_state("worker bee", "pending")
    first, second, third = (
        fleet.json("fleetbeat", "tasks", "add", "worker bee", title)["id"] for title in ("sort", "stamp", "send")
    )
    assert fleet.json("fleetbeat", "tasks", "update", str(first), "--state", "in_progress")["state"] == "in_progress"
    assert fleet.json("fleetbeat", "tasks", "done", str(second))["state"] == "done"
    listed = fleet.json("fleetbeat", "tasks", "list", "worker bee")["tasks"]
    assert [(task["id"], task["state"]) for task in listed] == [
        (first, "in_progress"),
        (second, "done"),
        (third, "open"),
    ]
    counts = fleet.json("fleetbeat", "tasks", "counts", "worker bee")
    assert (counts["open"], counts["stale"]) == (2, 0)
    shown = fleet.agent("worker bee")
    assert shown is not None
    assert (shown["open_tasks"], shown["stale_tasks"]) == (2, 0)
    fleet.run("fleetbeat-agent", "heartbeat", "--agent", "worker bee", "--open-tasks", "7", "--wait", "20")
    fleet.run("fleetbeat-agent", "deregister", "--agent", "worker bee")
    assert fleet.eventually_state("worker bee", "ended")["open_tasks"] == 7
    listed = fleet.json("fleetbeat", "tasks", "list", "worker bee", "--state", "open")["tasks"]
    assert [task["id"] for task in listed] == [first, third]


def test_rejected_messages(pipeline: Place, redis: Redis) -> None:
    """What is set aside is listed and shown; requeued, it stays until it can be accepted, as of its receipt."""
    session_id = uuid4()
    received_at = redis_time(redis) - timedelta(minutes=5)
    send(redis, heartbeat(session_id, progress="long ago"), b"no message at all", at=received_at)
    pipeline.run("fleetbeat", "worker", "--burst")
    found = pipeline.json("fleetbeat", "rejected", "list")
    assert found["counts"] == {"unknown_session": 1, "not_json": 1}
    (number,) = [row["id"] for row in found["rejected"] if row["session_id"] == str(session_id)]
    shown = pipeline.json("fleetbeat", "rejected", "show", str(number))
    assert (shown["reason"], json.loads(shown["raw"])["progress"]) == ("unknown_session", "long ago")
    kept = pipeline.json("fleetbeat", "rejected", "requeue", str(number), exits=1)
    assert kept["results"] == [{"id": number, "outcome": "unknown_session"}]

    with closing(sqlite3.connect(pipeline.directory / "fleet.db")) as connection, connection:
        # As if it had been set aside too long ago to be put right without being asked to.
        connection.execute("UPDATE rejected_messages SET rejected_at = rejected_at - 300000")
    send(redis, register("late riser", session_id, interval_seconds=3600))
    pipeline.run("fleetbeat", "worker", "--burst")
    assert pipeline.state("late riser") == "pending"
    requeued = pipeline.run("fleetbeat", "rejected", "requeue", "--all", exits=1).stdout
    assert "1 message stored, 1 still rejected." in requeued
    agent = pipeline.agent("late riser")
    assert agent is not None
    assert agent["last_seen_at"][:19] == received_at.isoformat()[:19]
    assert "1 message: 1 not_json" in pipeline.run("fleetbeat", "rejected", "list").stdout
    missing = pipeline.run("fleetbeat", "rejected", "requeue", str(number), exits=1).stderr
    assert f"There is no rejected message {number}" in missing


def test_escape_sequences_are_inert_everywhere(pipeline: Place, redis: Redis) -> None:
    """Whatever an agent or an argument says, no command prints a character that acts on a terminal."""
    session_id = uuid4()
    evil = json.dumps(EVIL + "\x00")
    named = register("evil NAME", uuid4(), interval_seconds=1).to_wire().replace(b'"evil NAME"', evil.encode())
    wire = register("agent", session_id, interval_seconds=1, work="WORD", project="WORD").to_wire()
    at = redis_time(redis) - timedelta(minutes=1)
    beat = heartbeat(session_id, **dict.fromkeys(("progress", "summary", "error", "status", "work_item_id"), "WORD"))
    metadata = heartbeat(session_id, metadata={"WORD": ["WORD"]})
    wires = (wire, beat.to_wire(), metadata.to_wire())
    messages = [wire.replace(b'"WORD"', evil.encode()) for wire in wires]
    send(redis, messages[0], named, at=at, stream=SESSIONS)
    send(redis, *messages[1:], EVIL.encode(), b'{"kind": ' + evil.encode() + b"}", at=at)
    for fields in ({FIELD: EVIL.encode("utf-16")}, {EVIL: EVIL}):
        redis.xadd(INBOX, fields)
    logs = pipeline.run("fleetbeat", "worker", "--burst", FLEETBEAT_LOG_LEVEL="DEBUG")

    (agent,) = pipeline.json("fleetbeat", "dashboard")["agents"]
    assert agent["state"] == "degraded"
    assert all("red" in agent[said] and agent[said].isprintable() for said in ("progress", "project", "summary"))
    pipeline.run("fleetbeat", "tasks", "add", "agent", EVIL)
    pipeline.run("fleetbeat", "tasks", "add", EVIL, EVIL, exits=2)
    rows = pipeline.json("fleetbeat", "rejected", "list")["rejected"]
    assert len(rows) == 5
    assert "agent_name: it has characters that can't be printed (U+001B, " in " ".join(row["detail"] for row in rows)
    commands = [
        *(
            ["dashboard"],
            ["agents", "list"],
            ["agents", "show", "agent"],
            ["events"],
            ["check"],
            ["tasks", "list", "agent"],
        ),
        *(["check", "--agent", EVIL], [EVIL], ["rejected", "list"], ["rejected", "show", str(rows[0]["id"])]),
    ]
    agents = [["register", "--name", EVIL, "--every", "1h"], ["heartbeat", "--session", EVIL]]
    scripts = {"fleetbeat": commands, "fleetbeat-agent": agents}
    told = pipeline.run_all([[script, *words] for script, all_words in scripts.items() for words in all_words])
    assert all(done.exit_status == 0 and "red" in done.stdout for done in told[:3])
    assert not [done for done in (logs, *told) if not is_inert(done.all)]

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from acceptance.place import PATIENCE_SECONDS, Place
from fleetbeat_worker.broker.embedded_valkey import find_free_port
from helpers import eventually

AGENT = "fleetbeat-agent"
ALWAYS = {"ok", "message_id", "session_id", "agent_name", "timestamp", "progress"}


def refusal(place: Place, *arguments: str, exits: int, **variables: str) -> Any:
    """Run a command that is refused, and return the object on stdout; with --json, stderr stays empty."""
    done = place.run(AGENT, *arguments, "--json", exits=exits, **variables)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["ok"] is False
    assert set(told) == {"ok", "error", "code"}
    return told


def test_an_agents_life(fleet: Place) -> None:
    """An agent registers, beats and says goodbye; each answer has the documented keys, the dashboard all it said."""
    registered = fleet.json(
        *(AGENT, "register", "--name", "life", "--every", "5m", "--grace", "10s", "--project", "post"),
        *("--work", "opening letters", "--metadata", '{"model": "small"}'),
    )
    assert set(registered) >= ALWAYS
    assert (registered["ok"], registered["agent_name"], registered["interval_seconds"]) == (True, "life", 300)
    session_id = registered["session_id"]
    UUID(session_id)
    assert fleet.eventually_state("life", "pending")["current_work"] == "opening letters"

    beaten = fleet.json(
        *(AGENT, "heartbeat", "--session", session_id, "--progress", "letter 3", "--work-item", "L-3"),
        *("--status", "busy", "--summary", "3 of 9", "--error", "no stamp", "--open-tasks", "6", "--stale-tasks", "1"),
        *("--wait", "20"),
    )
    assert set(beaten) >= ALWAYS
    assert (beaten["session_id"], beaten["agent_name"], beaten["progress"]) == (session_id, "life", "letter 3")
    shown = fleet.agent("life")
    assert shown is not None
    assert beaten["timestamp"][:23] == shown["last_seen_at"][:23]
    expected = {
        "state": "ok",
        "current_work": "letter 3",
        "work_item_id": "L-3",
        "status": "busy",
        "summary": "3 of 9",
        "error": "no stamp",
        "open_tasks": 6,
        "stale_tasks": 1,
        "project": "post",
        "grace_seconds": 10,
        "metadata": {"model": "small"},
    }
    assert {name: shown[name] for name in expected} == expected

    goodbye = fleet.json(AGENT, "deregister", "--session", session_id, "--exit-status", "3", "--error", "lamp went out")
    assert set(goodbye) >= ALWAYS
    assert fleet.eventually_state("life", "ended")["exit_status"] == 3
    told = refusal(fleet, "heartbeat", "--session", session_id, "--wait", "20", exits=1)
    assert told["code"] == "session_ended"


def test_sentences_for_people(fleet: Place) -> None:
    """Without --json each command prints one sentence, and a heartbeat that waited says when the agent was seen."""
    out = fleet.run(AGENT, "register", "--name", "prose", "--every", "1h", "--stable").stdout
    assert out.startswith("Registered prose as session ")
    assert fleet.run(AGENT, "heartbeat", "--agent", "prose").stdout == "Sent a heartbeat for prose.\n"
    waited = fleet.run(AGENT, "heartbeat", "--agent", "prose", "--progress", "ink", "--wait", "20").stdout
    assert waited.startswith("prose was seen at 2")
    assert waited.endswith("Z: ink.\n")
    assert fleet.run(AGENT, "deregister", "--agent", "prose").stdout == "Sent a deregistration for prose.\n"


def test_stable_twice_is_one_session(fleet: Place) -> None:
    """--stable gives one session id however often it is said, --agent means it, and the last promise counts."""
    first = fleet.json(AGENT, "register", "--stable", "--name", "steady", "--every", "1h")
    again = fleet.json(AGENT, "register", "--stable", "--name", "steady", "--every", "2h")
    assert first["session_id"] == again["session_id"]
    beaten = fleet.json(AGENT, "heartbeat", "--agent", "steady", "--wait", "20")
    assert beaten["session_id"] == first["session_id"]
    agents = fleet.json("fleetbeat", "dashboard", "--all", "--agent", "steady")["agents"]
    assert [agent["interval_seconds"] for agent in agents] == [7200]


def test_a_new_session_of_a_name_ends_the_old_one(fleet: Place) -> None:
    """A second registration of a name ends the first session, unless it says --parallel."""
    for options in ([], [], ["--parallel"]):
        fleet.run(AGENT, "register", "--name", "again", "--every", "1h", *options)

    def states() -> list[str]:
        agents = fleet.json("fleetbeat", "dashboard", "--all", "--agent", "again", exits=None)["agents"]
        return sorted(agent["state"] for agent in agents)

    eventually(lambda: states() == ["ended", "pending", "pending"], within_seconds=PATIENCE_SECONDS)


def test_a_cron_schedule_in_a_time_zone(fleet: Place) -> None:
    """--cron makes an agent's promise a schedule, and the deadline is two slots after the heartbeat plus grace."""
    arguments = ("--name", "nightly", "--cron", "15 8 * * *", "--time-zone", "Asia/Tokyo")
    assert fleet.json(AGENT, "register", "--stable", *arguments)["schedule"] == "15 8 * * *"
    fleet.run(AGENT, "heartbeat", "--agent", "nightly", "--wait", "20")
    shown = fleet.agent("nightly")
    assert shown is not None
    assert (shown["state"], shown["interval_seconds"], shown["time_zone"]) == ("ok", None, "Asia/Tokyo")
    assert "T23:16:00" in shown["deadline_at"]  # 08:15 in Tokyo and a minute


def test_a_delegate_names_its_parent(fleet: Place) -> None:
    """A delegate's session knows its parent's."""
    parent = fleet.json(AGENT, "register", "--name", "boss", "--every", "1h")["session_id"]
    fleet.run(AGENT, "register", "--name", "delegate", "--every", "1h", "--parent", parent)
    assert fleet.eventually_state("delegate", "pending")["parent_id"] == parent


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["register", "--name", "x"], "usage"),
        (["register", "--name", "x", "--every", "soon"], "usage"),
        (["register", "--name", "x", "--every", "1s", "--metadata", "[]"], "usage"),
        (["register", "--name", "x", "--cron", "61 * * * *"], "invalid_message"),
        (["register", "--name", "x" * 65, "--every", "1s"], "invalid_message"),
        (["heartbeat"], "usage"),
        (["heartbeat", "--session", "no-uuid"], "invalid_message"),
        (["heartbeat", "--agent", "x", "--open-tasks", "-1"], "invalid_message"),
        (["heartbeat", "--agent", "x", "--nonsense"], "usage"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else value,
)
def test_wrong_usage(place: Place, arguments: list[str], code: str) -> None:
    """What can't be sent is refused with exit status 2 and a code, before any connection is made."""
    assert refusal(place, *arguments, exits=2)["code"] == code


def test_a_bad_setting_is_named(place: Place) -> None:
    """A setting that can't be used gives exit status 2 and the variable's name, as JSON and as a sentence."""
    beat = ("heartbeat", "--agent", "x")
    told = refusal(place, *beat, exits=2, FLEETBEAT_REDIS_TIMEOUT_SECONDS="soon")
    assert told["code"] == "bad_setting"
    assert "FLEETBEAT_REDIS_TIMEOUT_SECONDS" in told["error"]
    said = place.run(AGENT, *beat, exits=2, FLEETBEAT_REDIS_TIMEOUT_SECONDS="soon")
    assert said.stdout == ""
    assert said.stderr.startswith("Error: FLEETBEAT_REDIS_TIMEOUT_SECONDS ")


def test_redis_away(place: Place) -> None:
    """With Redis away a call that must get through exits with 75 at once, and says where it looked."""
    port = find_free_port()
    url = f"redis://agent:hunter2@127.0.0.1:{port}/0"
    told = refusal(place, "deregister", "--agent", "x", exits=75, FLEETBEAT_REDIS_URL=url)
    assert told["code"] == "redis_unavailable"
    assert f"redis://127.0.0.1:{port}/0" in told["error"]
    assert "hunter2" not in told["error"]


def test_an_unknown_session(fleet: Place) -> None:
    """A heartbeat of a session that nobody registered is an error, exit status 1, once it waits for the answer."""
    unknown = str(uuid4())
    assert fleet.json(AGENT, "heartbeat", "--session", unknown)["ok"] is True
    told = refusal(fleet, "heartbeat", "--session", unknown, "--wait", "20", exits=1)
    assert told["code"] == "unknown_session"
    assert unknown in told["error"]


def test_no_worker_confirms(pipeline: Place) -> None:
    """Without a worker, a call that waits gives up after its time with exit status 75; the message stays queued."""
    told = refusal(pipeline, "heartbeat", "--agent", "x", "--wait", "0.2", exits=75)
    assert told["code"] == "not_confirmed"
    assert pipeline.json("fleetbeat", "queue")["backlog"] == 1


def test_a_heartbeat_of_an_unknown_session_is_kept(fleet: Place) -> None:
    """A heartbeat sent before its registration is rejected, and is stored when it is requeued after that."""
    fleet.run(AGENT, "heartbeat", "--agent", "early", "--progress", "first of all")

    def kept_aside() -> list[Any]:
        found = fleet.json("fleetbeat", "rejected", "list", "--reason", "unknown_session")["rejected"]
        return [row for row in found if row["session_id"] == session_id]

    registration = ("register", "--stable", "--name", "early", "--every", "1h")
    session_id = fleet.json(AGENT, "heartbeat", "--agent", "early")["session_id"]
    eventually(lambda: len(kept_aside()) == 2, within_seconds=PATIENCE_SECONDS)
    fleet.run(AGENT, *registration)
    fleet.eventually_state("early", "pending")
    fleet.run("fleetbeat", "rejected", "requeue", *(str(row["id"]) for row in kept_aside()))
    assert kept_aside() == []

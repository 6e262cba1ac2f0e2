from __future__ import annotations

import re
import shlex
import signal
import socket

import psutil

from acceptance.place import PATIENCE_SECONDS, Place, Running
from fleetbeat_worker.broker.embedded_valkey import find_free_port
from helpers import eventually


def is_valkey(process: psutil.Process) -> bool:
    return "valkey" in process.name()


def follow_greeting(place: Place, up: Running) -> None:
    """Set the variables that the greeting says to set, as a user would in another terminal."""
    for name, value in re.findall(r"^ +export (\w+)=(.+)$", up.stdout, re.MULTILINE):
        place.environment[name] = shlex.split(value)[0]


def backlog(place: Place) -> int:
    return place.json("fleetbeat", "queue")["backlog"]


def watch_end(valkey: psutil.Process, others: list[psutil.Process]) -> bool:
    """Return whether Valkey has ended; whenever it has, everything else must have."""
    gone = not valkey.is_running() or valkey.status() == psutil.STATUS_ZOMBIE
    assert not (gone and any(process.is_running() for process in others)), "Valkey ended before the workers"
    return gone


def test_up_says_how_to_reach_it_and_ctrl_c_ends_it_in_order(place: Place) -> None:
    """Who follows the greeting can register, beat and look; Ctrl-C ends the workers first and Valkey last."""
    port = find_free_port()
    data = place.directory / "data of mine"
    up = place.start("fleetbeat", "up", "--port", str(port), "--data-dir", str(data))
    up.says("Ctrl-C")
    assert f"redis://127.0.0.1:{port}/0" in up.stdout
    follow_greeting(place, up)

    session_id = place.json("fleetbeat-agent", "register", "--name", "hint", "--every", "30s")["session_id"]
    beat = ("fleetbeat-agent", "heartbeat", "--session", session_id, "--progress", "page 1", "--wait", "20")
    assert place.json(*beat)["agent_name"] == "hint"
    view = place.json("fleetbeat", "dashboard")
    assert [(agent["agent_name"], agent["state"], agent["progress"]) for agent in view["agents"]] == [
        ("hint", "ok", "page 1")
    ]
    assert view["pipeline"]["workers"] == 1

    children = up.children()
    (valkey,) = [child for child in children if is_valkey(child)]
    others = [child for child in children if not is_valkey(child)]
    assert len(others) >= 2
    up.press_ctrl_c()
    eventually(lambda: watch_end(valkey, others), within_seconds=PATIENCE_SECONDS, every_seconds=0.001)
    done = up.ends()
    assert done.exit_status == 0
    assert done.stdout.endswith("Fleetbeat has stopped; queued messages are kept.\n")
    assert "Traceback" not in done.stderr
    assert place.is_empty()


def test_what_is_queued_survives_a_restart(place: Place) -> None:
    """Heartbeats that nobody took yet are still there after Ctrl-C and a new start, and are stored then."""
    data = place.environment["FLEETBEAT_DATA_DIR"] = str(place.directory / "data")
    port = find_free_port()
    up = place.start_up(port=port)
    place.run("fleetbeat-agent", "register", "--stable", "--name", "torv", "--every", "30s")
    place.eventually_state("torv", "pending")

    url = place.environment["FLEETBEAT_REDIS_URL"]
    place.run("rq", "suspend", "-u", url)
    eventually(lambda: place.json("fleetbeat", "queue")["workers"][0]["state"] == "suspended", within_seconds=20)
    for page in range(3):
        place.run("fleetbeat-agent", "heartbeat", "--agent", "torv", "--progress", f"page {page}")
    assert backlog(place) == 3
    up.press_ctrl_c()
    assert up.ends().exit_status == 0

    place.start_up("--data-dir", data, port=port)
    assert backlog(place) == 3
    place.run("rq", "resume", "-u", url)
    eventually(lambda: backlog(place) == 0, within_seconds=PATIENCE_SECONDS)
    events = place.json("fleetbeat", "events", "--type", "heartbeat")["events"]
    assert [event["text"] for event in events] == ["page 0", "page 1", "page 2"]


def test_what_is_queued_survives_kill_9(place: Place) -> None:
    """After kill -9 of `up` its workers end, its Valkey goes on taking heartbeats, and the next `up` takes it over."""
    place.environment["FLEETBEAT_DATA_DIR"] = str(place.directory / "data")
    port = find_free_port()
    up = place.start_up(port=port)
    place.run("fleetbeat-agent", "register", "--stable", "--name", "rams", "--every", "30s")
    place.eventually_state("rams", "pending")

    up.process.kill()
    assert up.ends().exit_status == -signal.SIGKILL
    eventually(lambda: all(map(is_valkey, place.processes())), within_seconds=PATIENCE_SECONDS)
    (orphan,) = place.processes()
    place.run("fleetbeat-agent", "heartbeat", "--agent", "rams", "--progress", "nobody listens")
    assert backlog(place) == 1

    second = place.start_up(port=port)
    assert orphan not in place.processes()
    assert len([child for child in second.children() if is_valkey(child)]) == 1
    assert place.eventually_state("rams", "ok")["progress"] == "nobody listens"
    assert "Traceback" not in second.stderr


def test_valkey_is_started_again_when_it_dies(place: Place) -> None:
    """When the embedded Valkey is killed, `up` says so and starts it again, and heartbeats are stored as before."""
    place.environment["FLEETBEAT_DATA_DIR"] = str(place.directory / "data")
    up = place.start_up()
    place.run("fleetbeat-agent", "register", "--stable", "--name", "kami", "--every", "30s")
    beat = ("fleetbeat-agent", "heartbeat", "--agent", "kami", "--progress", "again", "--wait", "20")
    place.run(*beat)
    (valkey,) = [child for child in up.children() if is_valkey(child)]
    valkey.kill()
    up.says("Valkey ended and is restarted")
    eventually(lambda: place.run(*beat, exits=None).exit_status == 0, within_seconds=PATIENCE_SECONDS)


def test_up_lets_its_workers_follow_the_lag(place: Place) -> None:
    """With --autoscale it begins within the bounds, and its pool is known by them; what is no range starts nothing."""
    refused = place.run("fleetbeat", "up", "--autoscale", "3:2", exits=2)
    assert "is not a range of workers" in refused.stderr
    place.start_up("--autoscale", "2:3")
    look = lambda: place.json("fleetbeat", "workers")["pools"]  # noqa: E731 - one look
    eventually(lambda: [len(pool["worker_pids"]) for pool in look()] == [2], within_seconds=PATIENCE_SECONDS)
    assert [pool["wanted"] for pool in look()] == ["2:3"]


def test_a_second_up_is_refused(fleet: Place) -> None:
    """A second `up` on the same data directory says whose it is and exits 1; the first goes on."""
    refused = fleet.run("fleetbeat", "up", "--port", str(find_free_port()), exits=1)
    assert "is in use by another `fleetbeat up`" in refused.stderr
    assert "--data-dir" in refused.stderr
    assert refused.stdout == ""
    assert fleet.json("fleetbeat", "queue")["workers"]


def test_a_taken_port_is_told(place: Place) -> None:
    """`up` on a port that another program has says so, starts nothing, and can be run again on another port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = place.run("fleetbeat", "up", "--port", str(port), exits=None)
    assert refused.exit_status != 0
    assert f"Port {port} of this machine is in use" in refused.stderr
    assert "--port" in refused.stderr
    assert place.is_empty()

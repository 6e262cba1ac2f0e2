from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest
from redis import Redis

from acceptance.compose_support import ROOT
from acceptance.place import PATIENCE_SECONDS, Place
from fleetbeat_shared.identifiers import stable_session_id
from helpers import backlog, eventually, fake_crontab

FILE = "agents.toml"


@pytest.fixture
def example(pipeline: Place) -> Place:
    """Return a place with the example of docs/, and a crontab command that keeps a file."""
    shutil.copy(ROOT / "docs" / FILE, pipeline.directory)
    commands = fake_crontab(pipeline.directory)
    pipeline.environment["PATH"] = f"{commands}{os.pathsep}{pipeline.environment['PATH']}"
    pipeline.environment["TZ"] = "UTC"
    return pipeline


def kept(place: Place) -> Path:
    """Return the file that is the user's crontab."""
    return place.directory / "bin" / "kept"


def test_the_example_beats_as_cron_would_have_it(example: Place, redis: Redis) -> None:
    """Registered twice and called from lines of the crontab in an empty environment, all four keep their promises."""
    example.run("fleetbeat-agent", "register", "--from", FILE)
    told = example.json("fleetbeat-agent", "register", "--from", FILE)["agents"]
    names = ["hint", "torv", "rams", "kami"]
    assert [agent["agent_name"] for agent in told] == names
    assert [agent["session_id"] for agent in told] == [str(stable_session_id(name)) for name in names]
    assert backlog(redis) == 8

    example.run("fleetbeat-agent", "cron", "install", FILE, "--yes")
    lines = [line for line in kept(example).read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        command = line.split(" ", 5)[5]
        done = subprocess.run(
            ["/usr/bin/env", "-i", f"HOME={example.directory}", "/bin/sh", "-c", command.replace("\\%", "%")],
            cwd=example.directory,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
        assert (done.stdout, done.stderr) == (b"", b"")
    log = (example.directory / ".local" / "state" / "fleetbeat" / "cron.log").read_text().splitlines()
    assert [line.split("\t")[1:3] for line in log] == [[name, "sent"] for name in names]

    example.run("fleetbeat", "worker", "--burst")
    agents = {agent["agent_name"]: agent for agent in example.json("fleetbeat", "dashboard")["agents"]}
    promises = {name: (agents[name]["interval_seconds"], agents[name]["schedule"]) for name in names}
    assert promises == {
        "hint": (21_600, None),
        "torv": (None, "15 8 * * *"),
        "rams": (None, "20 8 * * *"),
        "kami": (None, "30 0 * * *"),
    }
    assert {(agent["state"], agent["status"], agent["project"]) for agent in agents.values()} == {
        ("ok", "ok", "example")
    }
    assert agents["torv"]["summary"] == "writes the morning digest"


def test_a_file_says_where_its_fleet_finds_redis(example: Place, redis: Redis) -> None:
    """redis_url_file goes before the environment, for registering as well as for the crontab; an option goes first."""
    url = example.environment["FLEETBEAT_REDIS_URL"]
    nowhere = {"FLEETBEAT_REDIS_URL": "redis://:s3cret@127.0.0.1:1/0"}
    (example.directory / "url").write_text(url)
    text = (ROOT / "docs" / FILE).read_text()
    example.run("fleetbeat-agent", "register", "--from", FILE, exits=75, **nowhere)
    assert "s3cret" not in example.run("fleetbeat-agent", "cron", "print", FILE, exits=2, **nowhere).all
    (example.directory / FILE).write_text(text.replace("[defaults]", '[defaults]\nredis_url_file = "url"'))
    example.run("fleetbeat-agent", "register", "--from", FILE, **nowhere)
    assert backlog(redis) == 4
    printed = example.run("fleetbeat-agent", "cron", "print", FILE, **nowhere).stdout
    assert printed.count(f"/usr/bin/env FLEETBEAT_REDIS_URL_FILE={example.directory}/url /") == 4
    away = ("--redis-url", "redis://127.0.0.1:1/0")
    example.run("fleetbeat-agent", "register", "--from", FILE, *away, exits=75)
    done = example.run("fleetbeat-agent", "register", "--from", FILE, "--name", "hint", "--stable", exits=2)
    assert "Leave out --name, --stable" in done.stderr


def test_a_terminal_is_asked(example: Place) -> None:
    """On a terminal the difference is shown and nothing is written before somebody says yes."""
    assert answer(example, "install", "n") == 1
    assert not kept(example).exists()
    assert answer(example, "install", "y") == 0
    assert kept(example).read_text().count("heartbeat --agent") == 4
    assert answer(example, "remove", "y") == 0
    assert kept(example).read_text() == ""


def answer(place: Place, command: str, word: str) -> int:
    """Run a command on a terminal, answer its question, and return its exit status."""
    keys, terminal = pty.openpty()
    words = ["fleetbeat-agent", "cron", command, FILE]
    with subprocess.Popen(
        words, stdin=terminal, stdout=terminal, stderr=terminal, env=place.environment, cwd=place.directory
    ) as process:
        os.close(terminal)
        shown = b""

        def is_asked() -> bool:
            nonlocal shown
            shown += os.read(keys, 65_536)
            return b"Write this crontab? [y/N]" in shown

        eventually(is_asked, within_seconds=PATIENCE_SECONDS)
        assert b"# fleetbeat begin " in shown
        os.write(keys, f"{word}\n".encode())
        status = process.wait(PATIENCE_SECONDS)
    os.close(keys)
    return status

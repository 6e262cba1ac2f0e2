from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from acceptance.compose_support import ROOT
from acceptance.place import Done, Place
from fleetbeat_worker.broker.embedded_valkey import find_free_port
from helpers import fake_crontab

SECRET = "hunter2"  # noqa: S105 - a password that the tests look for
URLS = {
    "refused": "redis://agent:{secret}@127.0.0.1:{port}/0",
    "unknown host": "redis://agent:{secret}@redis.invalid/0",
    "as a query": "redis://127.0.0.1:{port}/0?password={secret}",
    "port that is none": "redis://agent:{secret}@127.0.0.1:port/0",
    "scheme that is none": "http://agent:{secret}@127.0.0.1/0",
    "bracket left open": "redis://agent:{secret}@[127.0.0.1/0",
    "slash in the password": "redis://agent:{secret}/x@127.0.0.1:{port}/0",
    "scheme forgotten": "agent:{secret}@127.0.0.1:{port}/0",
    "certificate missing": "rediss://agent:{secret}@127.0.0.1:{port}/0?ssl_ca_certs=/none",
    "sentinel away": "redis+sentinel://agent:{secret}@127.0.0.1:{port}/service",
}
"""URLs that lead nowhere, each with a password."""
FILE = "agents.toml"
COMMANDS = [
    ("register", "--name", "x", "--every", "30s"),
    ("register", "--from", FILE, "--json"),
    ("heartbeat", "--agent", "x", "--log-file", "calls.log"),
    ("heartbeat", "--agent", "x", "--strict", "--json"),
    ("heartbeat", "--agent", "x", "--wait", "0.2"),
    ("deregister", "--agent", "x"),
    ("run", "--name", "x", "--every", "30s", "--", "true"),
    ("cron", "print", FILE),
    ("cron", "install", FILE, "--yes"),
    ("cron", "remove", FILE, "--yes"),
]
"""Every command of agents, whatever it prints and writes."""
HELP = [
    (*command, "--help")
    for command in ((), ("register",), ("heartbeat",), ("deregister",), ("run",), ("cron", "install"))
]


@pytest.fixture
def example(place: Place) -> Place:
    """Return a place with a fleet's file, a crontab command that keeps a file, and little patience for Redis."""
    shutil.copy(ROOT / "docs" / FILE, place.directory)
    commands = fake_crontab(place.directory)
    place.environment["PATH"] = f"{commands}{os.pathsep}{place.environment['PATH']}"
    place.environment["FLEETBEAT_REDIS_TIMEOUT_SECONDS"] = "0.5"
    place.environment["TZ"] = "UTC"
    return place


def leaks(place: Place, *, but: Path | None = None) -> list[Path]:
    """Return the files below a place that hold the password."""
    found = [path for path in place.directory.rglob("*") if path.is_file() and path != but]
    return [path for path in found if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("shape", URLS)
def test_no_command_of_an_agent_shows_a_password(example: Place, shape: str) -> None:
    """Of whatever shape a URL is: no output, log, spool or crontab has its password, and `run` runs its command."""
    url = URLS[shape].format(secret=SECRET, port=find_free_port())
    told = look(example, COMMANDS, FLEETBEAT_REDIS_URL=url)
    assert leaks(example) == []
    assert [done.exit_status for words, done in zip(COMMANDS, told, strict=True) if words[0] == "run"] == [0]


def test_nor_does_help_or_a_url_that_came_another_way(example: Place) -> None:
    """The same by option and by file, and --help, which shows where settings come from."""
    url = URLS["refused"].format(secret=SECRET, port=find_free_port())
    in_a_file = example.directory / "secret-url"
    in_a_file.write_text(url)
    look(example, COMMANDS, FLEETBEAT_REDIS_URL_FILE=str(in_a_file))
    look(example, [(command[0], "--redis-url", url, *command[1:]) for command in COMMANDS if command[0] != "cron"])
    look(example, HELP, FLEETBEAT_REDIS_URL=url)
    assert leaks(example, but=in_a_file) == []


def look(place: Place, commands: list[tuple[str, ...]], **variables: str) -> list[Done]:
    """Run commands, and hold what they print to the rule."""
    tried = [["fleetbeat-agent", *command] for command in commands]
    told = place.run_all(tried, **variables)
    assert [words for words, done in zip(tried, told, strict=True) if SECRET in done.all] == []
    return told


def test_a_password_is_found_where_it_stands(example: Place) -> None:
    """The search above finds what it looks for."""
    (example.directory / "calls.log").write_text(f"a line with {SECRET}")
    assert leaks(example) == [example.directory / "calls.log"]

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from redis import Redis
from sqlalchemy import Engine

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli import main
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.ingest.rejected import rejected_ids
from helpers import (
    count_heartbeats,
    drain,
    eventually,
    heartbeat,
    redis_time,
    register,
    seconds,
    send,
    stored_ids,
)

KILLED = -9


@pytest.fixture(autouse=True)
def _environment(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBEAT_REDIS_URL", quick.redis_url)
    monkeypatch.setenv("FLEETBEAT_DATABASE_URL", quick.sql_url)


def run(*args: str, **options: Any) -> Result:
    return CliRunner().invoke(main, ["rejected", *args], **options)


def test_a_killed_requeue_loses_and_doubles_nothing(redis: Redis, database: Engine, quick: Settings) -> None:
    """Of 1,000 messages of an unknown session each is stored once, though the command was killed in the middle."""
    message = register("late")
    beats = [heartbeat(message.session_id) for _ in range(1000)]
    send(redis, *beats, at=redis_time(redis) - seconds(3600))
    drain(redis, database, quick, within=60)
    with reading(database) as connection:
        ids = rejected_ids(connection)
    assert len(ids) == 1000
    send(redis, message)
    drain(redis, database, quick)
    assert count_heartbeats(database) == 0
    fleetbeat = Path(sys.executable).parent / "fleetbeat"
    with subprocess.Popen([fleetbeat, "rejected", "requeue", "--reason", "unknown_session"]) as requeue:
        eventually(lambda: count_heartbeats(database) > 100, within_seconds=60)
        requeue.kill()
    assert requeue.returncode == KILLED
    left = 1000 - count_heartbeats(database)
    result = run("requeue", "--reason", "unknown_session", "--agent", "late")
    assert (result.exit_code, result.output) == (0, f"{left:,} messages stored, 0 still rejected.\n")
    assert stored_ids(database) == sorted(beat.id for beat in beats)
    assert json.loads(run("list", "--json").output) == {"counts": {}, "rejected": []}


def test_thousands_are_purged_by_what_they_are(redis: Redis, database: Engine, quick: Settings) -> None:
    """Purge takes those of a reason, an age or an agent, asks before, and does nothing when the answer isn't yes."""
    send(redis, *[b"old"] * 1200, at=redis_time(redis) - seconds(7200))
    send(redis, *[b"new"] * 30)
    drain(redis, database, quick, within=60)
    refused = run("purge", "--all", input="n\n")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "Delete 1,230 rejected messages for good? [y/N]" in refused.stderr
    assert refused.stderr.endswith("Nothing was purged.\n")
    assert run("purge", "--all", input="").exit_code == 1
    assert json.loads(run("list", "--json").output)["counts"] == {"not_json": 1230}
    assert run("purge", "--agent", "torv", "--yes").output == "0 rejected messages purged.\n"
    purged = run("purge", "--reason", "not_json", "--older-than", "1h", "--yes", "--json")
    assert json.loads(purged.output) == {"purged": 1200}
    assert run("purge", "--younger-than", "1h", input="y\n").stdout == "30 rejected messages purged.\n"
    assert run("purge").exit_code == 2
    assert run("purge", "--all", "--older-than", "soon").exit_code == 2

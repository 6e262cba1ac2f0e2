from __future__ import annotations

import re
from datetime import datetime

import pytest
from command_line import answer, run
from fakeredis import FakeRedis
from ops_fixtures import put_agent, put_sweep, seconds
from rq import Queue, SimpleWorker
from rq.utils import utcformat
from sqlalchemy import Engine, update

from fleetbeat_shared.redis_keys import FIELD, GROUP, INBOX, QUEUE
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.database.tables import Liveness
from fleetbeat_worker.fleet import current_state as judging
from fleetbeat_worker.sweep.incidents import begin_incident


def test_open_incident_is_shown(engine: Engine, now: datetime) -> None:
    """The dashboard and `check` show an open incident in one line: since when, and how many are still silent."""
    put_sweep(engine, now)
    put_agent(engine, "hint", at=now)
    assert answer("dashboard")["incident"] is answer("check")["incident"] is None
    assert "incident" not in run("dashboard").output
    then = now - seconds(90)
    with writing(engine) as connection:
        number = begin_incident(connection, then, 16, 28, (then, then))
    put_agent(engine, "rams", at=now - seconds(300), state="degraded")
    with writing(engine) as connection:
        connection.execute(update(Liveness).where(Liveness.state == "degraded").values(incident_id=number))
    line = r"Incident open since [-\d: ]+ UTC: 16 of 28 agents fell silent, still silent: 1"
    assert re.search(line, " ".join(run("dashboard").output.split()))
    told = run("check")
    assert (told.exit_code, told.output.count("\n")) == (1, 1)
    assert re.search(line, told.output)
    for open_now in (answer("dashboard")["incident"], answer("check", code=1)["incident"]):
        assert (open_now["agents"], open_now["live_agents"], open_now["silent"]) == (16, 28, 1)


def test_check_names_stalled_workers(engine: Engine, now: datetime, redis: FakeRedis) -> None:
    """If ingest is behind and a worker has sent no heartbeat for a while, the advice is to look at the workers."""
    put_sweep(engine, now)
    redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
    redis.xadd(INBOX, {FIELD: b"{}"}, id=f"{int((now - seconds(45)).timestamp() * 1000)}-0")
    for name, age in (("w-1", 17), ("w-2", 1)):
        worker = SimpleWorker(
            [Queue(QUEUE, connection=redis, serializer="json")], name=name, connection=redis, serializer="json"
        )
        worker.register_birth()
        redis.hset(worker.key, "last_heartbeat", utcformat(now - seconds(age)))
    told = run("check")
    assert told.exit_code == 3
    assert re.search(
        r"The workers are 4\ds behind .*1 of 2 workers have not responded for 1\ds\. See: fleetbeat workers",
        told.output,
    )


def test_check_reports_ok_degraded_or_behind(engine: Engine, now: datetime, redis: FakeRedis) -> None:
    """Exit status 0, 1 and 3, with one line each; pipeline trouble takes precedence over degraded agents."""
    put_agent(engine, "hint", at=now)
    put_agent(engine, "torv", at=now - seconds(40))
    put_sweep(engine, now)
    well = run("check")
    assert (well.exit_code, well.output.count("\n")) == (0, 1)
    assert well.output.startswith("OK: 2 agents (1 late), none degraded")
    put_agent(engine, "rams", at=now - seconds(300), state="degraded")
    ill = run("check")
    assert (ill.exit_code, ill.output.count("\n")) == (1, 1)
    assert ill.output.startswith("DEGRADED: 1 of 3 agents: rams (last seen 5m")
    assert answer("check", code=1)["degraded"] == ["rams"]
    assert run("check", "--agent", "hint").exit_code == 0
    assert run("check", "--agent", "rams").exit_code == 1
    assert run("check", "--agent", "nobody").exit_code == 1
    put_sweep(engine, now - seconds(31))
    behind = run("check")
    assert (behind.exit_code, behind.output.count("\n")) == (3, 1)
    assert behind.output.startswith("PIPELINE: The last sweep was 3")
    redis.connection_pool.connection_kwargs["server"].connected = False
    away = run("check")
    assert away.exit_code == 3
    assert away.output.startswith("PIPELINE: Redis at redis://127.0.0.1:1/0 can't be used")
    assert "secret" not in away.output


def test_check_counts_no_missed_intervals(engine: Engine, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` and the text of `agents list` count no missed intervals: on cron schedules that is slow."""
    put_agent(engine, "hint", at=now, state="degraded", interval_seconds=None, schedule="* * * * *", time_zone="UTC")
    put_sweep(engine, now)

    def count(*_: object, **__: object) -> int:
        pytest.fail("missed intervals of a degraded agent were counted")

    monkeypatch.setattr(judging, "missed_intervals", count)
    assert run("check").output.startswith("DEGRADED: 1 of 1 agent: hint")
    assert "DEGRADED" in run("agents", "list").output


def test_stuck_flapping_and_unjudged_are_marked(engine: Engine, now: datetime) -> None:
    """Stuck, flapping and unjudged agents are marked in text and JSON; `check` exits with 1 for unjudged ones."""
    put_agent(engine, "loops", at=now, stuck_at=now)
    put_agent(engine, "flips", at=now, flapping_at=now)
    put_sweep(engine, now)
    assert run("check").exit_code == 0
    put_agent(engine, "lost", at=now, schedule="0 * * * *", interval_seconds=0.0, time_zone="Mars/X", unjudged_at=now)
    with writing(engine) as connection:
        connection.execute(update(Liveness).where(Liveness.interval_seconds == 0.0).values(interval_seconds=None))
    marks = {
        agent["agent_name"]: [name for name in ("stuck", "flapping", "unjudged") if agent[name]]
        for agent in answer("dashboard")["agents"]
    }
    assert marks == {"loops": ["stuck"], "flips": ["flapping"], "lost": ["unjudged"]}
    for args in (["dashboard"], ["agents", "list"]):
        output = run(*args).output
        assert [output.count(word) for word in ("stuck", "flapping", "unjudged")] == [1, 1, 1]
    assert "ok since" in (shown := run("agents", "show", "loops").output)
    assert ", stuck" in shown
    assert answer("agents", "show", "lost")["agent"]["missed_intervals"] is None
    ill = run("check")
    assert (ill.exit_code, ill.output.count("\n")) == (1, 1)
    assert ill.output.startswith(
        "UNJUDGED: 1 agent can't be judged: lost. For the reason see: fleetbeat events --type unjudged"
    )
    assert answer("check", code=1)["unjudged"] == ["lost"]
    put_agent(engine, "rams", at=now - seconds(300), state="degraded")
    both = answer("check", code=1)
    assert (both["status"], both["degraded"], both["unjudged"]) == ("degraded", ["rams"], ["lost"])

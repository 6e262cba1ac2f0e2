"""What producer.py measures, each in a process of its own: our calls, and those of what a user would pick instead.

`python producer_calls.py PART [ARGUMENTS]` prints one JSON value a line. Nothing of the benchmark is imported here, so
that the process is an agent's and no more. All libraries have their default settings, and none has hiredis: the base
install, with which agents run, has none.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

OURS = "session.progress"
TEXT = "120 of 480 pages"
WARM_UP_CALLS = 50
HALF_FULL = 5_000
"""Of the buffer's 10,000 messages: from there on the caller of the throughput's measurement waits."""


def our_call() -> Callable[[], object]:
    """Return a call of `session.progress`, in a session that has begun."""
    from fleetbeat_producer import AgentSession, flush

    session = AgentSession("benchmark", interval_seconds=30).__enter__()
    flush(1)  # the thread starts and imports redis once in a process's life
    return lambda: session.progress(TEXT, work_item_id="W-17")


def rq_call() -> Callable[[], object]:
    """Return a call of `Queue.enqueue`."""
    from redis import Redis
    from rq import Queue

    queue = Queue("benchmark", connection=Redis.from_url(os.environ["FLEETBEAT_REDIS_URL"]))
    return lambda: queue.enqueue("builtins.print", TEXT, work_item_id="W-17")


def celery_call() -> Callable[[], object]:
    """Return a call of a task's `delay`."""
    from celery import Celery

    app = Celery("benchmark", broker=os.environ["FLEETBEAT_REDIS_URL"])
    task = app.task(progress, ignore_result=True)
    return lambda: task.delay(TEXT, work_item_id="W-17")


def dramatiq_call() -> Callable[[], object]:
    """Return a call of an actor's `send`."""
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url=os.environ["FLEETBEAT_REDIS_URL"])  # type: ignore[no-untyped-call]
    dramatiq.set_broker(broker)
    actor = dramatiq.actor(progress)
    return lambda: actor.send(TEXT, work_item_id="W-17")


def progress(text: str, work_item_id: str) -> None:
    """Be the task that the others' messages are for; nobody runs it."""


CALLS = {OURS: our_call, "rq Queue.enqueue": rq_call, "Celery delay": celery_call, "Dramatiq send": dramatiq_call}


def _compute(least_seconds: float, most_seconds: float) -> None:
    """Do what keeps the processor as busy as an agent's own work does.

    Each time for another time: with 1 ms always, every fifth call would come as the interpreter, whose threads take
    turns of 5 ms, hands over to the sender that an earlier call woke.
    """
    ends_at = time.perf_counter() + random.uniform(least_seconds, most_seconds)  # noqa: S311 - no secret
    while time.perf_counter() < ends_at:
        json.loads(json.dumps({"pages": list(range(50)), "text": TEXT}))


PACES: dict[str, Callable[[], None]] = {
    "after work": lambda: _compute(0.0005, 0.0015),
    "after sleep": lambda: time.sleep(0.001),
    "in a row": lambda: None,
}
"""What a caller does between two calls."""


def time_calls(name: str, count: int, pace: str) -> None:
    """Print, for each call, its nanoseconds and the error that it raised."""
    between = PACES[pace]
    logging.disable()
    call = CALLS[name]()
    found = []
    for _ in range(count):
        error = None
        began = time.perf_counter_ns()
        try:
            call()
        except Exception as raised:  # noqa: BLE001 - it is told, and costs what it costs
            error = type(raised).__name__
        found.append((time.perf_counter_ns() - began, error))
        if name != OURS:
            _print(found.pop())  # at once, as the next one may never come back
        between()
    for each in found[WARM_UP_CALLS:]:
        _print(each)


def sustain(name: str, seconds: float) -> None:
    """Print how many messages a second reach Redis from one thread that calls in a row for a time."""
    call = CALLS[name]()
    call()
    began = time.perf_counter()
    calls = _keep_calling(call, began + seconds, ours=name == OURS)
    _print(calls / (time.perf_counter() - began))


def _keep_calling(call: Callable[[], object], ends_at: float, *, ours: bool) -> int:
    from fleetbeat_producer import flush, stats

    calls = 0
    while time.perf_counter() < ends_at:
        for _ in range(100):
            call()
        calls += 100
        # A caller that only calls would outrun any network: it waits while the buffer is half full.
        while ours and stats().queued > HALF_FULL:
            time.sleep(0.001)
    if ours and not (flush(60) and stats().dropped == 0):
        message = f"messages were lost, the figure means nothing: {stats()}"
        raise RuntimeError(message)
    return calls


def hold_sessions(sessions: int, interval_seconds: float, seconds: float) -> None:
    """Hold many sessions; print the memory that they take (bytes) and, over some seconds, the share of a core."""
    from fleetbeat_producer import AgentSession, flush

    process = psutil.Process()
    first = AgentSession("first", interval_seconds=interval_seconds).__enter__()
    first.beat()
    flush(10)
    before = process.memory_info().rss
    held = []
    for number in range(sessions):
        held.append(AgentSession(f"agent-{number}", interval_seconds=interval_seconds).__enter__())
        if number % 1000 == 0:
            flush(10)  # more registrations than the buffer holds would be dropped
    flush(30)
    memory = process.memory_info().rss - before
    used, began = sum(process.cpu_times()[:2]), time.perf_counter()
    time.sleep(seconds)
    used, lasted = sum(process.cpu_times()[:2]) - used, time.perf_counter() - began
    _print({"memory": memory, "core": used / lasted})


def call_without_redis(calls: int, seconds: float) -> None:
    """Spread calls over a time in which Redis is away; print what became of them, memory (bytes), and warnings."""
    warnings: list[str] = []

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    logging.getLogger("fleetbeat").addHandler(Count())
    from fleetbeat_producer import flush, register, send_heartbeat, stats

    process = psutil.Process()
    session_id = register("benchmark", interval_seconds=30).session_id
    flush(1)  # redis is imported now
    before, began, raised = process.memory_info().rss, time.monotonic(), 0
    for number in range(1, calls):  # the registration was the first
        try:
            send_heartbeat(session_id, TEXT)
        except Exception:  # noqa: BLE001 - that is what is counted
            raised += 1
        time.sleep(max(0.0, began + seconds * number / calls - time.monotonic()))
    counts = stats()
    _print(
        {
            "raised": raised,
            "queued": counts.queued,
            "sent": counts.sent,
            "dropped": counts.dropped,
            "accounted": counts.queued + counts.sent + counts.dropped,
            "memory": process.memory_info().rss - before,
            "warnings": len(warnings),
            "seconds": time.monotonic() - began,
        }
    )


def _print(found: object) -> None:
    print(json.dumps(found), flush=True)


_PARTS: dict[str, Callable[..., None]] = {
    part.__name__: part for part in (time_calls, sustain, hold_sessions, call_without_redis)
}

if __name__ == "__main__":
    modules: Any = sys.modules
    modules["hiredis"] = None  # before redis is imported, which looks for it
    _PARTS[sys.argv[1]](*(json.loads(argument) for argument in sys.argv[2:]))
    os._exit(0)  # how the libraries end isn't what is measured

from __future__ import annotations

import re
from pathlib import Path

import pytest
from redis import Redis

from agent_scripts import inbox, progress, run
from fleetbeat_shared.messages import Heartbeat

ENDS = {
    "returning": ("", 0),
    "an exception": ("raise ValueError('no paper')", 1),
    "sys.exit": ("sys.exit(3)", 3),
}


@pytest.mark.parametrize("end", ENDS)
def test_messages_arrive_however_the_process_ends(redis: Redis, redis_url: str, end: str) -> None:
    """A process that exits normally sends all its messages, the deregistration with its error last."""
    code, status = ENDS[end]
    run(f"with session:\n for n in range(50): session.progress(str(n))\n {code or 'pass'}", redis_url, exits=status)
    first, *_, last = inbox(redis)
    assert (first.kind, last.kind) == ("register", "deregister")
    assert progress(redis) == [str(number) for number in range(50)]
    assert last.error == {0: None, 1: "ValueError: no paper", 3: "SystemExit: 3"}[status]


def test_async_with(redis: Redis, redis_url: str) -> None:
    """A session in an event loop registers, sends a heartbeat and deregisters."""
    code = "import asyncio\nasync def main():\n async with session:\n  session.status('busy')\nasyncio.run(main())"
    run(code, redis_url)
    assert [message.kind for message in inbox(redis)] == ["register", "heartbeat", "deregister"]


def test_a_forked_child_sends_only_its_own_messages(redis: Redis, redis_url: str) -> None:
    """Forks before and after the first call, and from multiprocessing: each message arrives once."""
    code = """
import multiprocessing
def child(name):
    session.progress(name)
with session:
    session.progress('parent')
    for n in range(3):
        if os.fork() == 0:
            session.progress(f'fork {n}')
            sys.exit(0)
        os.wait()
    process = multiprocessing.get_context('fork').Process(target=child, args=('multi',))
    process.start()
    process.join()
"""
    run(code, redis_url)
    assert sorted(progress(redis)) == ["fork 0", "fork 1", "fork 2", "multi", "parent"]
    assert [message.kind for message in inbox(redis)].count("deregister") == 1


def test_a_session_sends_automatic_heartbeats(redis: Redis, redis_url: str) -> None:
    """On an interval of a second the background thread sends heartbeats while the agent sleeps."""
    code = "with fleetbeat.AgentSession('torv', interval_seconds=1): time.sleep(2.3)"
    run(code, redis_url)
    heartbeats = [message for message in inbox(redis) if isinstance(message, Heartbeat)]
    assert 2 <= len(heartbeats) <= 5


def test_calls_return_when_no_thread_can_start(redis_url: str) -> None:
    """Where no thread can be started, calls return and the messages are counted as queued."""
    code = """
import threading
def refuse(self): raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
session.start()
session.progress('x')
print(fleetbeat.stats().queued, fleetbeat.stats().last_error)
sys.stdout.flush()
os._exit(0)
"""
    printed = run(code, redis_url)
    assert printed.startswith("2 no thread can be started")


PAGE = (Path(__file__).parents[3] / "docs" / "producer.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"(?<!worker -->\n)^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_docs_run(redis: Redis, redis_url: str, number: int) -> None:
    """Every example of docs/producer.md runs as it is, and its messages arrive."""
    run(EXAMPLES[number], redis_url)
    assert inbox(redis) or "stats" in EXAMPLES[number]

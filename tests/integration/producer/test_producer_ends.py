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
def test_sigterm_at_any_line_of_ours(redis: Redis, redis_url: str, handler: str) -> None:
    """Whatever a call is at when SIGTERM comes, all that was said arrives, and the exit status is as ever.

    A signal finds the buffer's lock held about one time in ten, hence the number of processes.
    """
    set_up, status = HANDLERS[handler]
    code = f"""
import redis, tempfile, threading  # redis here, once for all
{set_up}
fleetbeat.flush_on_sigterm()
said = tempfile.TemporaryFile(buffering=0)
said.write(b"%8d" % 0 * 30)
for child in range(30):
    if os.fork() == 0:
        threading.Timer(0.03, os.kill, (os.getpid(), 15)).start()
        for n in range(1, 1_000_000):
            session.progress(f"{{child}}")
            os.pwrite(said.fileno(), b"%8d" % n, child * 8)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == {status}
said.seek(0)
print(said.read().decode())
"""
    told = [int(number) for number in run(code, redis_url).split()]
    arrived = Counter(map(int, progress(redis)))
    assert len(told) == 30
    # The call that was broken off may have put its message into the buffer, and wasn't counted.
    assert all(told[child] <= arrived[child] <= told[child] + 1 for child in range(30)), (told, arrived)


def test_what_is_said_while_the_interpreter_ends(redis: Redis, redis_url: str) -> None:
    """An exit handler is heard, even one that was there before our first call; later calls raise and hang nowhere."""
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


def test_an_exit_handler_older_than_ours_is_heard(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    """A framework that registered its exit handler before the agent imported us may still speak through us."""
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


def test_daemon_threads_may_speak_to_the_last(redis_url: str) -> None:
    """An interpreter that ends threads where they stand finds none in pydantic, which would crash the process."""
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
def speak():
    while True:
        session.status("busy")
for _ in range(3):
    threading.Thread(target=speak, daemon=True).start()
time.sleep(0.03)
"""
    assert run(code, redis_url) == f"{[0] * 20}\n"


def test_the_first_call_may_come_from_an_exit_handler(redis_url: str) -> None:
    """A process that speaks for the first time while it ends isn't told of what is impossible by then."""
    code = "import atexit\natexit.register(session.start)\natexit.register(fleetbeat.stats)"
    assert run(code, redis_url) == ""

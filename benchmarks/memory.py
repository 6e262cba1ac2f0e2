"""How much memory a heartbeat takes in Redis while it waits in the inbox, and how much a worker takes to store many.

What is measured: an empty Valkey's inbox is filled with heartbeats of the sessions of a fleet, and the memory is
divided by their number. `stream` is what MEMORY USAGE says of the inbox with all its entries looked at; `used_memory`
is by how much the whole server grew, which also holds what the allocator rounds up and what the client's buffers took.
Three mixes: bare heartbeats; each with about 40 characters of progress and a work item's id; and the typical mix of
70% bare and 30% with progress. `on the wire` is the mean size of the messages themselves.

With `--backlog N` also: N bare heartbeats wait, or a twentieth as many with 4 KB of metadata each, and
`fleetbeat worker -n 1`, as a process, stores them in SQLite until all are stored or `--seconds` are over. `largest` is
the resident memory of the largest of its processes at its highest; `together` is what all of them took, memory that
they share counted once.

How to read it: it tells how long an outage of the workers Redis can carry: maxmemory / (bytes * heartbeats per second).
The figures don't hang on the machine's speed and hardly vary between runs.

Needed: at most 220 bytes for each bare heartbeat and 250 for one of the typical mix; a worker stays under 250 MB.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from uuid import UUID

import click
import psutil
from redis import Redis
from support import (
    end_in_order,
    fill_stream,
    heartbeats,
    print_json,
    print_machine,
    print_table,
    redis_client,
    registration,
    shown,
    valkey,
    verbatim,
)

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.messages import Heartbeat
from fleetbeat_shared.redis_keys import INBOX, SESSIONS
from fleetbeat_shared.settings import Settings

NEEDED_BYTES = 220
NEEDED_MEGABYTES = 250
TYPICAL = "typical: 30% with progress"
MIXES = {"bare": 0.0, TYPICAL: 0.3, "all with progress": 1.0}
"""The share of heartbeats with progress text, by the mix's name."""


@dataclass(frozen=True)
class Run:
    """What one run found for one mix, in bytes per heartbeat."""

    wire: float
    stream: float
    used_memory: float


def measure(count: int, agents: int, share: float) -> Run:
    """Return the figures of one run, on a server of its own."""
    with valkey() as url, closing(redis_client(url)) as client:
        sessions = [registration(number).session_id for number in range(agents)]
        sizes: list[int] = []
        before = client.info("memory")["used_memory"]
        fill_stream(client, _measured(heartbeats(sessions, count, share), sizes))
        after = client.info("memory")["used_memory"]
        stream = client.memory_usage(INBOX, samples=0)
    return Run(wire=mean(sizes), stream=stream / count, used_memory=(after - before) / count)


def _measured(wires: Iterable[bytes], sizes: list[int]) -> Iterator[bytes]:
    for wire in wires:
        sizes.append(len(wire))
        yield wire


@dataclass(frozen=True)
class Peak:
    """What the processes of a worker took at their highest, in megabytes, and how many heartbeats they stored."""

    largest: float
    together: float
    stored: int


def _left(client: Redis) -> int:
    return int(client.xlen(INBOX)) + int(client.xlen(SESSIONS))


def measure_worker(count: int, agents: int, metadata: dict[str, str] | None, seconds: float) -> Peak:
    """Return what a worker takes that finds a backlog."""
    with tempfile.TemporaryDirectory(prefix="fleetbeat-bench-") as directory, valkey() as url:
        settings = Settings(redis_url=url, data_dir=Path(directory), log_level="WARNING")
        settings.export(os.environ)  # for the worker
        with closing(redis_client(url)) as client:
            made = [registration(number) for number in range(agents)]
            fill_stream(client, (message.to_wire() for message in made), SESSIONS)
            fill_stream(client, _backlog([message.session_id for message in made], count, metadata))
            worker = psutil.Popen([str(Path(sys.executable).with_name("fleetbeat")), "worker", "-n", "1"])
            try:
                largest, together = _watch(worker, lambda: not _left(client), seconds)
            finally:
                worker.terminate()
                worker.wait()
            return Peak(largest, together, count + agents - _left(client))


def _backlog(sessions: list[UUID], count: int, metadata: dict[str, str] | None) -> Iterator[bytes]:
    if metadata is None:
        yield from heartbeats(sessions, count, 0.0)
        return
    for number in range(count):
        said = Heartbeat(
            id=new_message_id(),
            session_id=sessions[number % len(sessions)],
            sent_at=datetime.now(UTC),
            metadata=metadata,
        )
        yield said.to_wire()


def _watch(root: psutil.Process, ended: Callable[[], bool], seconds: float) -> tuple[float, float]:
    """Return the highest memory of one of a tree's processes and of all, in megabytes."""
    largest = together = 0.0
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at and not ended():
        found = []
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                found.append(process.memory_full_info())
        largest = max([largest, *(memory.rss / 1e6 for memory in found)])
        together = max(together, sum(memory.pss for memory in found) / 1e6)
        time.sleep(0.1)
    return largest, together


def report_workers(peaks: dict[str, Peak]) -> None:
    """Print the table of workers."""
    print_table(
        "megabytes of a worker that finds a backlog, at their highest",
        ("waiting", "stored meanwhile", "largest", "together", "needed"),
        [
            (name, f"{peak.stored:,}", shown(peak.largest), shown(peak.together), f"{NEEDED_MEGABYTES}")
            for name, peak in peaks.items()
        ],
    )
    print("reached" if all(peak.largest < NEEDED_MEGABYTES for peak in peaks.values()) else "NOT REACHED")


def report(found: dict[str, list[Run]], count: int) -> None:
    """Print the table."""
    rows = []
    for name, runs in found.items():
        figures = [median(values) for values in zip(*(asdict(run).values() for run in runs), strict=True)]
        rows.append((name, *(shown(figure) for figure in figures), f"{NEEDED_BYTES}" if name == TYPICAL else ""))
    runs_made = len(found[TYPICAL])
    print_table(
        f"bytes of Redis memory per queued heartbeat; {count:,} heartbeats, median of {runs_made} runs",
        ("heartbeats", "on the wire", "stream", "used_memory", "needed"),
        rows,
    )
    reached = median(max(run.stream, run.used_memory) for run in found[TYPICAL]) <= NEEDED_BYTES
    print("reached" if reached else "NOT REACHED")


@click.command(help=verbatim(__doc__))
@click.option("--heartbeats", "count", type=click.IntRange(1), default=100_000, show_default=True, help="Per mix.")
@click.option("--agents", type=click.IntRange(1), default=1_000, show_default=True, help="In the fleet.")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="How often all is measured.")
@click.option("--backlog", type=click.IntRange(0), default=0, show_default=True, help="Waiting for a worker.")
@click.option(
    "--seconds", type=click.FloatRange(1), default=300.0, show_default=True, help="To watch a worker at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(*, count: int, agents: int, runs: int, backlog: int, seconds: float, as_json: bool) -> None:  # noqa: PLR0913 - one parameter per option
    """Measure, and print."""
    end_in_order()
    found = {name: [measure(count, agents, share) for _ in range(runs)] for name, share in MIXES.items()}
    peaks = {}
    if backlog:
        few = max(1, backlog // 20)
        peaks[f"{backlog:,} bare heartbeats"] = measure_worker(backlog, agents, None, seconds)
        peaks[f"{few:,} with 4 KB of metadata"] = measure_worker(few, agents, {"text": "x" * 4000}, seconds)
    if as_json:
        figures = {name: [asdict(run) for run in of_mix] for name, of_mix in found.items()}
        workers = {name: asdict(peak) for name, peak in peaks.items()}
        print_json("memory", {"heartbeats": count, "agents": agents, "runs": figures, "workers": workers})
        return
    report(found, count)
    if peaks:
        report_workers(peaks)
    print_machine()


if __name__ == "__main__":
    main()

"""How much of Redis's memory a heartbeat takes while it waits in the inbox.

What is measured: an empty Valkey's inbox is filled with heartbeats of the sessions of a fleet, and the memory is
divided by their number. `stream` is what MEMORY USAGE says of the inbox with all its entries looked at; `used_memory`
is by how much the whole server grew, which also holds what the allocator rounds up and what the client's buffers took.
Three mixes: bare heartbeats; each with about 40 characters of progress and a work item's id; and the typical mix of
70% bare and 30% with progress. `on the wire` is the mean size of the messages themselves.

How to read it: it tells how long an outage of the workers Redis can carry: maxmemory / (bytes * heartbeats per second).
The figures don't hang on the machine's speed and hardly vary between runs.

Needed: at most 250 bytes for each heartbeat of the typical mix.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import TYPE_CHECKING

import click
from support import (
    end_in_order,
    fill_inbox,
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

from fleetbeat_shared.names import INBOX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NEEDED_BYTES = 250
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
        fill_inbox(client, _measured(heartbeats(sessions, count, share), sizes))
        after = client.info("memory")["used_memory"]
        stream = client.memory_usage(INBOX, samples=0)
    return Run(wire=mean(sizes), stream=stream / count, used_memory=(after - before) / count)


def _measured(wires: Iterable[bytes], sizes: list[int]) -> Iterator[bytes]:
    for wire in wires:
        sizes.append(len(wire))
        yield wire


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
    print_machine()


@click.command(help=verbatim(__doc__))
@click.option("--heartbeats", "count", type=click.IntRange(1), default=100_000, show_default=True, help="Per mix.")
@click.option("--agents", type=click.IntRange(1), default=1_000, show_default=True, help="In the fleet.")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="How often all is measured.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(*, count: int, agents: int, runs: int, as_json: bool) -> None:
    """Measure, and print."""
    end_in_order()
    found = {name: [measure(count, agents, share) for _ in range(runs)] for name, share in MIXES.items()}
    if as_json:
        figures = {name: [asdict(run) for run in of_mix] for name, of_mix in found.items()}
        print_json("memory", {"heartbeats": count, "agents": agents, "runs": figures})
    else:
        report(found, count)


if __name__ == "__main__":
    main()

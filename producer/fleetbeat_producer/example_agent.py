"""Example agent, to learn from and to experiment with: `python -m fleetbeat_producer.example_agent --name hint`.

It registers, and sends a heartbeat with its progress after each page. On SIGTERM it deregisters; when it is killed it
can't, and Fleetbeat flags it.
"""

from __future__ import annotations

import signal
import threading
from itertools import count

import click

from fleetbeat_producer import deregister, register, send_heartbeat


@click.command()
@click.option("--name", required=True, help="The agent's name.")
@click.option(
    "--every", "interval_seconds", type=float, default=2.0, show_default=True, help="Seconds between heartbeats."
)
@click.option("--work", default="reading pages", show_default=True, help="The work that it reports.")
def main(name: str, interval_seconds: float, work: str) -> None:
    """Send heartbeats until SIGTERM or Ctrl-C."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    session = register(name, interval_seconds=interval_seconds, project="demo", work=work, stable=True)
    for page in count(1):
        send_heartbeat(
            session.session_id,
            progress=f"{work}: page {page}",
            work_item_id=f"{name}-{page}",
            status="ok",
            summary=f"{page} pages so far",
            open_tasks=max(0, 20 - page),
            stale_tasks=0,
        )
        if stopping.wait(interval_seconds):
            break
    deregister(session.session_id)


if __name__ == "__main__":
    main()

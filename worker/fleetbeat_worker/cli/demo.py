"""`fleetbeat demo`: see it work."""

from __future__ import annotations

import time

import click

from fleetbeat_worker.cli.demo_fleet import Demo, temporary_pipeline
from fleetbeat_worker.cli.options import asked_to_stop, example
from fleetbeat_worker.telemetry.log import set_up

NEXT_STEPS = """
What to do next:
  fleetbeat up           run it here, with your data in ~/.fleetbeat
  fleetbeat-agent -h     let a shell script or a cron job beat: register --stable, then heartbeat --agent NAME
  README.md              five minutes to monitor your own agent"""


@click.command(epilog=example("fleetbeat demo"))
def demo() -> None:
    """Watch four agents beat, one die, be flagged, and come back; it takes half a minute and leaves nothing behind."""
    set_up("ERROR")
    asked = asked_to_stop()
    started_at = time.monotonic()
    click.echo("Starting Valkey, SQLite, a worker and a dispatcher in a temporary place …\n")
    with temporary_pipeline() as (settings, pool):
        Demo(settings, pool, asked).run()
    click.echo(NEXT_STEPS)
    click.echo(f"\nThe demonstration took {time.monotonic() - started_at:.0f} s; all that it started has ended.")

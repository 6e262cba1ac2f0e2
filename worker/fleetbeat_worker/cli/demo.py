"""`fleetbeat demo`: four agents, one of which dies, is flagged, and recovers, on a temporary pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from fleetbeat_shared.connection import connect
from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.embedded_valkey import EmbeddedValkey, find_free_port
from fleetbeat_worker.cli.dashboard import render
from fleetbeat_worker.cli.events import events_table
from fleetbeat_worker.cli.options import asked_to_stop, example
from fleetbeat_worker.cli.rendering import console
from fleetbeat_worker.database import schema
from fleetbeat_worker.database.engine import open_engine, reading
from fleetbeat_worker.fleet.agents import FleetView, read_fleet
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.store.events import read_latest_events
from fleetbeat_worker.telemetry.log import set_up
from fleetbeat_worker.workers.pool import Pool

AGENTS = {
    "hint": (2.0, "collecting hints"),
    "torv": (2.0, "reading the forum"),
    "rams": (3.0, "drawing plans"),
    "kami": (2.0, "folding letters"),
}
"""Name, seconds between heartbeats, and current work."""

VICTIM = "kami"

STEP_SECONDS = 15.0
"""A step that takes longer than this fails the demo."""

REFRESH_SECONDS = 0.25

NEXT_STEPS = """
What to do next:
  fleetbeat up           run it here, with your data in ~/.fleetbeat
  fleetbeat-agent -h     send heartbeats from a script or a cron job: register --stable, then heartbeat --agent NAME
  README.md              five minutes to monitor your own agent"""


@click.command(epilog=example("fleetbeat demo"))
def demo() -> None:
    """Watch four agents run, one die, be flagged, and recover. It takes half a minute and leaves nothing behind."""
    set_up("ERROR")
    stop_asked = asked_to_stop()
    started_at = time.monotonic()
    click.echo("Starting Valkey, SQLite, a worker and a dispatcher in a temporary directory …\n")
    with temporary_pipeline() as (settings, pool):
        Demo(settings, pool, stop_asked).run()
    click.echo(NEXT_STEPS)
    click.echo(f"\nThe demo took {time.monotonic() - started_at:.0f} s. Everything that it started has been stopped.")


class Demo:
    """One run of the demo: starts agents on a pool, kills one and starts it again, until it is asked to stop."""

    def __init__(self, settings: Settings, pool: Pool, stop_asked: Callable[[], bool]) -> None:
        self._settings = settings
        self._pool = pool
        self._stop_asked = stop_asked
        self._console = console()
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._story: list[Text] = []
        self._live: Live | None = None

    def run(self) -> None:
        """Run all steps, and stop the agents. Raises FleetbeatError when a step takes too long."""
        try:
            if self._console.is_terminal:
                with Live(console=self._console, auto_refresh=False) as self._live:
                    self._run_steps()
            else:
                self._run_steps()
            self._show_events()
        finally:
            self._stop_agents()

    def _run_steps(self) -> None:
        for name in AGENTS:
            self._start_agent(name)
        self._step(f"Four agents started: {', '.join(AGENTS)}.", self._all_ok, dwell_seconds=3)
        self._agents[VICTIM].kill()
        self._agents[VICTIM].wait()
        self._step(
            f"{VICTIM} was killed with SIGKILL. It had promised a heartbeat every 2 s.", self._victim_is(State.LATE)
        )
        self._step(
            f"{VICTIM} has missed two intervals, and its grace is over.",
            self._victim_is(State.DEGRADED),
            dwell_seconds=1,
        )
        self._start_agent(VICTIM)
        self._step(f"{VICTIM} was started again.", self._victim_is(State.OK), dwell_seconds=2)

    def _step(self, what: str, is_seen: Callable[[FleetView], bool], dwell_seconds: float = 0) -> None:
        """Print what happened, and show the dashboard until the effect is seen and `dwell_seconds` longer."""
        self._story.append(Text(f"» {what}", style="bold"))
        ends_at = time.monotonic() + STEP_SECONDS
        while not is_seen(view := self._refresh()):
            if time.monotonic() > ends_at:
                message = f"After {STEP_SECONDS:.0f} s the dashboard did not show this: {what} Please report it."
                raise FleetbeatError(message)
        dwells_until = time.monotonic() + dwell_seconds
        while time.monotonic() < dwells_until:
            view = self._refresh()
        if self._live is None:
            self._console.print(self._story[-1], Text(), render(view), Text(), sep="\n")

    def _refresh(self) -> FleetView:
        if self._stop_asked():  # only here: an agent that is just being started must be stopped too
            sys.exit("The demo was interrupted. Everything that it started has been stopped.")
        self._pool.supervise(REFRESH_SECONDS)
        engine = open_engine(self._settings.sql_url)  # for each refresh: the pool may fork between two
        try:
            with closing(connect(self._settings.redis_url, timeout_seconds=1)) as client:
                view = read_fleet(self._settings, engine, client)
        finally:
            engine.dispose()
        if self._live is not None:
            self._live.update(Group(*self._story, Text(), render(view)), refresh=True)
        return view

    def _all_ok(self, view: FleetView) -> bool:
        return sorted(agent.agent_name for agent in view.agents if agent.state is State.OK) == sorted(AGENTS)

    def _victim_is(self, state: State) -> Callable[[FleetView], bool]:
        return lambda view: any(agent.agent_name == VICTIM and agent.state is state for agent in view.agents)

    def _show_events(self) -> None:
        types = [kind.value for kind in EventType if kind is not EventType.HEARTBEAT]
        engine = open_engine(self._settings.sql_url)
        try:
            with reading(engine) as connection:
                found = read_latest_events(connection, 50, types=types)
        finally:
            engine.dispose()
        self._console.print(Text("\nThe recorded events, without heartbeats:\n", style="bold"))
        self._console.print(events_table(found, datetime.now(UTC)))

    def _start_agent(self, name: str) -> None:
        interval_seconds, work = AGENTS[name]
        command = [sys.executable, "-m", "fleetbeat_producer.example_agent", "--name", name, "--work", work]
        command += ["--every", str(interval_seconds)]
        self._agents[name] = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def _stop_agents(self) -> None:
        for process in self._agents.values():
            process.terminate()
        for process in self._agents.values():
            process.wait()


@contextmanager
def temporary_pipeline() -> Iterator[tuple[Settings, Pool]]:
    """Run Valkey, SQLite, one worker and a dispatcher in a temporary directory."""
    with TemporaryDirectory(prefix="fleetbeat-demo-") as directory:
        server = EmbeddedValkey(Path(directory) / "valkey", find_free_port())
        settings = Settings(
            data_dir=Path(directory), redis_url=server.url, sweep_seconds=1, linger_seconds=1, log_level="ERROR"
        )
        # For the agents and the jobs, which read their settings where they run.
        for variable in [name for name in os.environ if name.startswith("FLEETBEAT_")]:
            del os.environ[variable]
        settings.export(os.environ)
        server.start()
        try:
            engine = open_engine(settings.sql_url)
            schema.upgrade(engine)
            engine.dispose()
            pool = Pool(settings, workers=1)
            pool.start()
            try:
                yield settings, pool
            finally:
                pool.stop()
        finally:
            server.stop()

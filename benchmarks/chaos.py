"""Kill, stop, fill and lock everything that a heartbeat passes, again and again, and count what is lost or doubled.

What is done: Valkey with AOF (everysec), SQLite or PostgreSQL 18, and `fleetbeat worker -n N` run as processes. In each
round two producers send registrations, heartbeats, goodbyes and bad messages, and note which entries Redis has
acknowledged; meanwhile a fault strikes. Then the round waits until the inbox and its pending list are empty.

  sent        entries that Redis acknowledged
  stored      of these, in SQL exactly once, as a heartbeat or as an event
  rejected    of these, in rejected_messages exactly once
  lost        in neither of them
  doubled     more than once
  left        in the inbox or in somebody's hands at the end
  flags       agents that were flagged though they beat
  recovery    the longest time from the end of a round's sending until everything was in SQL, seconds

How to read it: lost, doubled, left and flags must be 0. The exit status is 1 if any isn't.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psutil
from chaos_place import LOAD_SECONDS, Load, Place, audit, place, wait_until
from sqlalchemy import func, select, text
from support import end_in_order, print_json, print_machine, print_table, verbatim

from fleetbeat_worker.database import open_engine
from fleetbeat_worker.tables import StoredHeartbeat

if TYPE_CHECKING:
    from collections.abc import Callable

STRIKES = 6
"""How often a fault that kills one process after another strikes in a round."""
HOLD_SECONDS = 2.0
"""How long a server is kept away."""


def kill_workers(here: Place) -> None:
    """Kill workers and their jobs, one after the other."""
    for number in range(STRIKES):
        family = here.family(here.pools[0])[1:]
        if family:
            here.kill(family[-1 - number % len(family)])
        time.sleep(0.25)


def kill_and_stop_half(here: Place) -> None:
    """Half-way, kill half of the workers and end the others in order; the pool starts them again."""
    time.sleep(LOAD_SECONDS / 2)
    for number, victim in enumerate(here.family(here.pools[0], recursive=False)[2:]):
        if number % 2:
            with suppress(psutil.NoSuchProcess):
                victim.terminate()
        else:
            here.kill(victim)


def kill_after_commit(here: Place) -> None:
    """Kill all that work as soon as SQL has more than before: at that time its acknowledgement is on its way."""
    engine = open_engine(here.settings.sql_url)

    def stored() -> int:
        with engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(StoredHeartbeat)).scalar_one())

    for _ in range(STRIKES // 2):
        before = stored()
        wait_until(lambda before=before: stored() > before, 2)
        for victim in here.family(here.pools[0])[1:]:
            here.kill(victim)
    engine.dispose()


def scale(here: Place) -> None:
    """Start more workers, and end them again."""
    here.start_pool(4)
    time.sleep(1.5)
    here.one_pool()


def kill_dispatcher(here: Place) -> None:
    """Kill the elected dispatcher."""
    for victim in here.family(here.pools[0])[:1]:
        here.kill(victim)


def kill_redis(here: Place) -> None:
    """Kill Valkey, and start it again."""
    time.sleep(0.3)
    here.kill_valkey()
    here.valkey.start()


def stop_redis(here: Place) -> None:
    """Let Valkey stand still."""
    with closing(here.client()) as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(HOLD_SECONDS)
    os.kill(pid, signal.SIGCONT)


def fill_redis(here: Place) -> None:
    """Let Valkey have no room for more."""
    with closing(here.client()) as client:
        client.config_set("maxmemory", "1")
        time.sleep(HOLD_SECONDS)
        client.config_set("maxmemory", "0")


def start_without_redis(here: Place) -> None:
    """Start workers while Valkey is away."""
    here.kill_valkey()
    for victim in [here.pools[0], *here.family(here.pools[0])]:
        here.kill(victim)
    here.start_pool()
    time.sleep(HOLD_SECONDS)
    here.valkey.start()


def restart_postgresql(here: Place) -> None:
    """Let PostgreSQL go down at once, in the middle of transactions, and come back."""
    time.sleep(0.5)
    server = here.postgresql
    command = [server.bin_path / "pg_ctl", "-D", server.pgdata, "-m", "immediate", "-w", "-l", server.log, "restart"]
    subprocess.run(command, check=True, user=server.system_user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    here.kills += 1


def lock_database(here: Place) -> None:
    """Hold a lock in which nobody else can write."""
    engine = open_engine(here.settings.sql_url)
    with engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE liveness, heartbeats"))
        time.sleep(HOLD_SECONDS)
    engine.dispose()


def nothing(_here: Place) -> None:
    """Only the bad messages that are in every load."""


FAULTS: dict[str, Callable[[Place], None]] = {
    "workers-killed": kill_workers,
    "half-killed-half-ended": kill_and_stop_half,
    "killed-after-commit": kill_after_commit,
    "scaled": scale,
    "dispatcher-killed": kill_dispatcher,
    "redis-killed": kill_redis,
    "redis-stopped": stop_redis,
    "redis-full": fill_redis,
    "redis-down-at-start": start_without_redis,
    "postgresql-restarted": restart_postgresql,
    "database-locked": lock_database,
    "bad-messages": nothing,
}


def strike(name: str, kind: str, rounds: int, messages: int, workers: int, lease_seconds: float) -> dict[str, Any]:  # noqa: PLR0913, PLR0917 - what the options say
    """Let a fault strike in some rounds; return what became of the messages."""
    recovery = 0.0
    with (
        tempfile.TemporaryDirectory(prefix="fleetbeat-chaos-", ignore_cleanup_errors=True) as directory,
        place(kind, Path(directory), workers, lease_seconds) as here,
    ):
        for number in range(rounds):
            wait_until(lambda: len(here.family(here.pools[0])) > workers)  # until the dispatcher and all workers run
            load = Load(here, messages, seed=1000 * number)
            FAULTS[name](here)
            load.wait()
            sent_at = time.monotonic()
            here.one_pool()
            wait_until(lambda: here.left() == 0)
            recovery = max(recovery, time.monotonic() - sent_at)
        figures = audit(here) | {"left": here.left(), "kills": here.kills}
    return {"fault": name, "database": kind, "rounds": rounds, **figures, "recovery_seconds": round(recovery, 1)}


COLUMNS = ("rounds", "kills", "sent", "stored", "rejected", "lost", "duplicated", "left", "false_flags")


def report(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    rows = [
        (one["fault"], one["database"], *(f"{one[name]:,}" for name in COLUMNS), f"{one['recovery_seconds']:g}")
        for one in results
    ]
    totals = [f"{sum(one[name] for one in results):,}" for name in COLUMNS]
    rows.append(("all", "", *totals, f"{max(one['recovery_seconds'] for one in results):g}"))
    heads = ("rounds", "kills", "sent", "stored", "rejected", "lost", "doubled", "left", "flags", "recovery")
    print_table("What became of every message that Redis acknowledged", ("fault", "database", *heads), rows)
    print_machine()


@click.command(help=verbatim(__doc__))
@click.option("--rounds", type=click.IntRange(1), default=4, show_default=True, help="Of each fault.")
@click.option("--messages", type=click.IntRange(50), default=500, show_default=True, help="Sent in each round.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="RQ workers.")
@click.option(
    "--database", type=click.Choice(["sqlite", "postgresql", "both"]), default="both", show_default=True, help="Kind."
)
@click.option("--fault", "names", type=click.Choice(list(FAULTS)), multiple=True, help="Only this one; repeatable.")
@click.option("--lease", type=click.FloatRange(0.5), default=2.0, show_default=True, help="Of workers, in seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def main(  # noqa: PLR0913 - one parameter per option
    *, rounds: int, messages: int, workers: int, database: str, names: tuple[str, ...], lease: float, as_json: bool
) -> None:
    """Strike, and print."""
    end_in_order()
    kinds = ["sqlite", "postgresql"] if database == "both" else [database]
    results = []
    for name in names or FAULTS:
        for kind in kinds:
            if name == "postgresql-restarted" and kind == "sqlite":
                continue
            results.append(strike(name, kind, rounds, messages, workers, lease))
            click.echo(f"{name} on {kind}: done", err=True)
    if as_json:
        print_json("chaos", {"faults": results})
    else:
        report(results)
    if any(one[name] for one in results for name in ("lost", "duplicated", "left", "false_flags")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

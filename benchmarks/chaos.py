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
  misjudged   set aside as deadly or unstorable without being so, or the other way round
  flags       agents that were flagged though they beat
  recovery    the longest time from the end of a round's sending until everything was in SQL, seconds

How to read it: lost, doubled, left, misjudged and flags must be 0. The exit status is 1 if any isn't, or if a fault
didn't do what it is there for: another dispatcher must be elected within 10 s, say.

The disk that is full is SQLite's alone: PostgreSQL would need a small disk, which only root can make.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
from support import end_in_order, print_json, print_machine, print_table, verbatim

from chaos.faults import BUILT_IN, FAULTS, ONLY_ON
from chaos.place import Load, audit, place, wait_until

WRONG = ("lost", "duplicated", "left", "misjudged", "false_flags")
"""What must be 0."""


def strike(  # noqa: PLR0913 - what the options say
    name: str, kind: str, *, rounds: int, messages: int, workers: int, lease_seconds: float, away_seconds: float
) -> dict[str, Any]:
    """Let a fault strike in some rounds; return what became of the messages."""
    recovery = 0.0
    fault = FAULTS[name]
    with (
        tempfile.TemporaryDirectory(prefix="fleetbeat-chaos-", ignore_cleanup_errors=True) as directory,
        place(kind, Path(directory), workers, lease_seconds, away_seconds, built_in=fault in BUILT_IN) as here,
    ):
        for number in range(rounds):
            wait_until(lambda: len(here.family(here.pools[0])) > workers)  # until the dispatcher and all workers run
            load = Load(here, messages, seed=1000 * number)
            try:
                fault(here)
            finally:
                load.wait()
            sent_at = time.monotonic()
            here.one_pool()
            wait_until(lambda: here.left() == 0)
            recovery = max(recovery, time.monotonic() - sent_at)
        figures = audit(here) | {"left": here.left(), "kills": here.kills}
    return {"fault": name, "database": kind, "rounds": rounds, **figures, "recovery_seconds": round(recovery, 1)}


COLUMNS = ("rounds", "kills", "sent", "stored", "rejected", *WRONG)


def report(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    rows = [
        (one["fault"], one["database"], *(f"{one[name]:,}" for name in COLUMNS), f"{one['recovery_seconds']:g}")
        for one in results
    ]
    totals = [f"{sum(one[name] for one in results):,}" for name in COLUMNS]
    rows.append(("all", "", *totals, f"{max(one['recovery_seconds'] for one in results):g}"))
    heads = (
        "rounds",
        "kills",
        "sent",
        "stored",
        "rejected",
        "lost",
        "doubled",
        "left",
        "misjudged",
        "flags",
        "recovery",
    )
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
@click.option("--away", type=click.FloatRange(1), default=5.0, show_default=True, help="Of database-away, in seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def main(  # noqa: PLR0913 - one parameter per option
    *,
    rounds: int,
    messages: int,
    workers: int,
    database: str,
    names: tuple[str, ...],
    lease: float,
    away: float,
    as_json: bool,
) -> None:
    """Strike, and print."""
    end_in_order()
    kinds = ["sqlite", "postgresql"] if database == "both" else [database]
    pairs = [(name, kind) for name in names or FAULTS for kind in kinds if ONLY_ON.get(name, kind) == kind]
    if not pairs:
        message = f"{' and '.join(names)} can't strike there; choose another --database."
        raise click.UsageError(message)
    results = []
    sizes = {"rounds": rounds, "messages": messages, "workers": workers}
    for name, kind in pairs:
        results.append(strike(name, kind, **sizes, lease_seconds=lease, away_seconds=away))
        click.echo(f"{name} on {kind}: done", err=True)
    if as_json:
        print_json("chaos", {"faults": results})
    else:
        report(results)
    if any(one[name] for one in results for name in WRONG):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

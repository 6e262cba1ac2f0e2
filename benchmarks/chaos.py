"""Kill, suspend, fill and lock every part of the pipeline repeatedly, and count lost and duplicated messages.

Method: Valkey with AOF (everysec), SQLite or PostgreSQL 18, and `fleetbeat worker -n N` run as processes. In each
round, two producers send registrations, heartbeats, deregistrations and bad messages, and record which entries Redis
acknowledged; meanwhile a fault is injected. Then the round waits until the inbox is empty and no entry is claimed.

  sent        entries that Redis acknowledged
  stored      of these, in SQL exactly once, as a heartbeat or as an event
  rejected    of these, in rejected_messages exactly once
  lost        in neither of them
  doubled     more than once
  left        in the inbox or claimed by a worker at the end
  misjudged   wrongly rejected as poison or failed, or wrongly not
  flags       agents that were flagged although they sent heartbeats
  recovery    the longest time from the end of a round's load until everything was in SQL, seconds

Reading: lost, doubled, left, misjudged and flags must be 0. The exit status is 1 if one isn't, or if a fault didn't
have its effect: for example, if no other dispatcher was elected within 10 s.

The fault disk-full is only for SQLite: PostgreSQL would need a small disk, which only root can create.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
from support import end_in_order, print_json, print_machine, print_table, verbatim

from chaos.faults import FAULTS, NEEDS_FAULTY_WORKER, ONLY_ON
from chaos.load import Load, audit
from chaos.rig import running_rig, wait_until

WRONG = ("lost", "duplicated", "left", "misjudged", "false_flags")
"""What must be 0."""


def inject(  # noqa: PLR0913 - one parameter per option
    name: str, kind: str, *, rounds: int, messages: int, workers: int, lease_seconds: float, away_seconds: float
) -> dict[str, Any]:
    """Inject a fault in some rounds; return what became of the messages."""
    recovery = 0.0
    fault = FAULTS[name]
    with (
        tempfile.TemporaryDirectory(prefix="fleetbeat-chaos-", ignore_cleanup_errors=True) as directory,
        running_rig(
            kind, Path(directory), workers, lease_seconds, away_seconds, faulty=fault in NEEDS_FAULTY_WORKER
        ) as rig,
    ):
        for number in range(rounds):
            wait_until(lambda: len(rig.processes_of(rig.pools[0])) > workers)  # dispatcher and all workers
            load = Load(rig, messages, seed=1000 * number)
            try:
                fault(rig)
            finally:
                load.wait()
            sent_at = time.monotonic()
            rig.keep_one_pool()
            wait_until(lambda: rig.count_left() == 0)
            recovery = max(recovery, time.monotonic() - sent_at)
        figures = audit(rig) | {"left": rig.count_left(), "kills": rig.kills}
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
@click.option("--rounds", type=click.IntRange(1), default=4, show_default=True, help="Rounds of each fault.")
@click.option("--messages", type=click.IntRange(50), default=500, show_default=True, help="Messages per round.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="RQ workers.")
@click.option(
    "--database", type=click.Choice(["sqlite", "postgresql", "both"]), default="both", show_default=True, help="Kind."
)
@click.option("--fault", "names", type=click.Choice(list(FAULTS)), multiple=True, help="Only this fault; repeatable.")
@click.option(
    "--lease", type=click.FloatRange(0.5), default=2.0, show_default=True, help="Lease of the workers, in seconds."
)
@click.option(
    "--away", type=click.FloatRange(1), default=5.0, show_default=True, help="Duration of database-away, in seconds."
)
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
    """Inject all faults, and print the figures."""
    end_in_order()
    kinds = ["sqlite", "postgresql"] if database == "both" else [database]
    pairs = [(name, kind) for name in names or FAULTS for kind in kinds if ONLY_ON.get(name, kind) == kind]
    if not pairs:
        message = f"{' and '.join(names)} can't be injected there; choose another --database."
        raise click.UsageError(message)
    results = []
    sizes = {"rounds": rounds, "messages": messages, "workers": workers}
    for name, kind in pairs:
        results.append(inject(name, kind, **sizes, lease_seconds=lease, away_seconds=away))
        click.echo(f"{name} on {kind}: done", err=True)
    if as_json:
        print_json("chaos", {"faults": results})
    else:
        report(results)
    if any(one[name] for one in results for name in WRONG):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

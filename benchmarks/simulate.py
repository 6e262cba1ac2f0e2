"""Simulate fleets, and count wrong, missed and late verdicts with an oracle that knows what really happened.

Method: each seed gives a plan. Agents with intervals of 10 minutes to a day, or with cron schedules in zones whose
clocks change, run, die, deregister and return; some fall silent for about as long as they may. Their clocks are wrong
by days; their heartbeats are slow, lost, sent twice, or wait in a spool. Many report their work, and some repeat
themselves. Redis, the workers, the sweeper and the database are down for seconds to half a day, Redis stalls for up
to half a minute, the machine sleeps, batches are slow, overtake each other, are stored twice, or are left by a dead
worker; two sweeps run at once. Most of a fleet falls silent at one time. Users pause agents, for a time or until they
resume them, and there is maintenance, once or by a cron schedule. Everything is played through the real rules with
the fleet in memory (`none`), or through the real ingest and the real sweep on SQLite and PostgreSQL. There, one plan
of three also sets Redis's clock back by seconds to hours.

Shortcuts: most agents have long intervals and beat on a grid, so that batches are large; and on a database, a sweep
that can't find anything only writes its time and its watermark.

  false    flags that are wrong as of the watermark
  missed   silences that weren't flagged, or too late
  late     recoveries that came too late
  notices  wrong notices (on a database): single ones instead of an incident or the reverse, an incident's end too early
           or not at all, a flag or a stuck agent without a notice
  stuck    agents that repeat themselves: found in error, missed or found late, ended too late; found correctly
  flags    correct flags
  delay    seconds from the deadline to the flag; and the part of it that isn't the pipeline's lag at the sweep before,
           in sweep intervals: at most one, unless sweeps were down
  took     seconds of work for all plans; with several jobs less time passes

Reading: everything false, missed or late must be 0. Otherwise the exit status is 1, and the errors are printed with
the seed. To replay it: `--seed S --plans 1`, and otherwise the same options.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import click
from support import databases, end_in_order, percentile, print_json, print_machine, print_table, shown, verbatim

from simulation.model import Plan
from simulation.plan import draw_plan
from simulation.trial import Totals, try_plan
from simulation.verdicts import Findings

KINDS = {"none": ("none",), "sqlite": ("sqlite",), "postgresql": ("postgresql",), "both": ("sqlite", "postgresql")}
SHOWN = 5
"""How many errors of a kind are printed per plan."""
COLUMNS = {
    "plans": "plans",
    "false": "false",
    "missed": "missed",
    "late": "late",
    "false_notices": "notices",
    "false_stuck": "stuck: false",
    "missed_stuck": "missed",
    "late_unstuck": "late",
    "stuck": "right",
    "flags": "flags",
    "delay_median_seconds": "delay",
    "delay_p99_seconds": "p99",
    "delay_in_sweeps_p99": "in sweeps, p99",
    "seconds": "took s",
}


def run_plans(kind: str, seeds: Sequence[int], *, agents: int, weeks: float) -> Totals:
    """Try the plans of some seeds on one store."""
    end_in_order()
    totals = Totals()
    with databases("sqlite" if kind == "none" else kind) as new_database:
        for seed in seeds:
            started = time.perf_counter()
            plan = draw_plan(seed, agents, weeks, sets_clock_back=kind != "none")
            findings = try_plan(plan, None if kind == "none" else new_database)
            totals.seconds += time.perf_counter() - started
            totals.add(plan, findings)
            print_errors(plan, findings)
    return totals


def run_in_jobs(kind: str, seeds: Sequence[int], jobs: int, *, agents: int, weeks: float) -> Totals:
    """Spread the plans over processes, each with databases of its own."""
    shares = [share for share in (seeds[job::jobs] for job in range(jobs)) if share]
    if len(shares) == 1:
        return run_plans(kind, seeds, agents=agents, weeks=weeks)
    with ProcessPoolExecutor(len(shares), get_context("spawn")) as pool:
        futures = [pool.submit(run_plans, kind, share, agents=agents, weeks=weeks) for share in shares]
        totals = Totals()
        for future in futures:
            totals.join(future.result())
    return totals


def print_errors(plan: Plan, findings: Findings) -> None:
    """Print the errors of a plan, if there are any."""
    if any(findings.errors.values()):
        print(f"seed {plan.seed}, sweep interval {plan.sweep_seconds} s:", file=sys.stderr)
    for kind, errors in findings.errors.items():
        for error in errors[:SHOWN]:
            print(f"  {kind}: {error}", file=sys.stderr)
        if len(errors) > SHOWN:
            print(f"  and {len(errors) - SHOWN} more {kind}", file=sys.stderr)


def figures(totals: Totals) -> dict[str, Any]:
    """Return the figures of one store for `--json` and the table."""
    delays = [flag.delay / 1000 for flag, _ in totals.flags] or [0.0]
    own = [max(0, flag.delay - flag.lag) / 1000 / sweep for flag, sweep in totals.flags] or [0.0]
    return vars(totals) | {
        "flags": len(totals.flags),
        "delay_median_seconds": percentile(delays, 0.5),
        "delay_p99_seconds": percentile(delays, 0.99),
        "delay_in_sweeps_p99": percentile(own, 0.99),
    }


@click.command(help=verbatim(__doc__))
@click.option("--plans", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the first plan; the others follow it.")
@click.option("--agents", type=click.IntRange(1), default=200, show_default=True)
@click.option("--weeks", type=click.FloatRange(0.05), default=1.0, show_default=True)
@click.option("--database", type=click.Choice(list(KINDS)), default="none", show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the plans.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(  # noqa: PLR0913 - one argument for each option
    *, plans: int, seed: int, agents: int, weeks: float, database: str, jobs: int, as_json: bool
) -> None:
    """Try all plans, and print the findings."""
    end_in_order()
    seeds = range(seed, seed + plans)
    totals = {kind: run_in_jobs(kind, seeds, jobs, agents=agents, weeks=weeks) for kind in KINDS[database]}
    found = {kind: figures(each) for kind, each in totals.items()}
    if as_json:
        print_json("simulate", {"databases": found})
    else:
        rows = [(kind, *(shown(each[name]) for name in COLUMNS)) for kind, each in found.items()]
        title = f"{plans} plans of {weeks:g} weeks with {agents} agents, seeds {seeds[0]} to {seeds[-1]}"
        print_table(title, ("database", *COLUMNS.values()), rows)
        print_machine()
    failing = sorted({seed for each in totals.values() for seed in each.failing_seeds})
    if failing:
        print(f"Failing seeds: {', '.join(map(str, failing))}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

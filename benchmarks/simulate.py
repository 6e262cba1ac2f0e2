"""A fleet on a simulated clock, and an oracle that knows the truth: who is flagged in error, missed or late.

What is done: from each seed a plan is drawn. Agents with intervals of 10 minutes to a day, or with cron schedules in
zones whose clocks change, live, die, say goodbye and return; some fall silent for about as long as they may. Their
clocks are wrong by days; their heartbeats are slow, lost, doubled, or wait in a spool. Many say what they do, now this,
now that, and some of the time they go in circles. Redis, the workers, the sweeper and the database go away for seconds
to half a day, Redis stands still for up to half a minute, the machine sleeps, batches are slow, overtake each other,
are stored twice, or are left by a worker that dies; two sweeps run at once. Most of a fleet falls silent at one moment.
People pause agents, for a time or until they resume them, and there is maintenance, once or by a cron schedule. Then
everything runs through the real rules (`none`: with the fleet in memory), or through the real ingest and the real sweep
on SQLite and PostgreSQL. There, in one plan of three, Redis's clock is set back by seconds to hours, too.

Time jumps: most agents promise long intervals and beat in step, so that workers find many heartbeats at once; and on a
database, of a sweep that can find nothing, only the time and the watermark are written down.

  false    flags that the truth of the watermark doesn't bear out
  missed   silences that no sweep flagged when it had to, or later
  late     recoveries that weren't told when they had to be
  notices  what people were told wrongly (on a database): many silences singly that are one incident, or one as an
           incident, an incident's end too early or not at all, a flag, or who is stuck, of which nobody was told
  stuck    of who beats and says nothing new: found in error, missed or found late, not ended in time; found rightly
  flags    flags that were right
  took     seconds of work for all plans; with several jobs less time passes
  delay    seconds from the moment at which the rule was met to the flag; and of that, what the pipeline wasn't behind
           anyhow (the lag at the sweep before), in sweep intervals: at most one, but for sweeps that were away

How to read it: all that is false, missed or late must be 0; else the exit status is 1, and what was wrong is printed
with the seed, which replays with `--seed S --plans 1` and otherwise the same options.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import click
from sqlalchemy import Engine, event, text
from support import databases, end_in_order, percentile, print_json, print_machine, print_table, shown, verbatim

from fleetbeat_worker.database.engine import open_engine
from simulation.incident_oracle import find_false_notices
from simulation.memory_store import MemoryStore
from simulation.model import Plan
from simulation.oracle import Flag, Judgement, Oracle
from simulation.plan import draw_plan
from simulation.play import play
from simulation.sql_store import SqlStore
from simulation.stuck_oracle import judge

KINDS = {"none": ("none",), "sqlite": ("sqlite",), "postgresql": ("postgresql",), "both": ("sqlite", "postgresql")}
SHOWN = 5
"""How many of a plan's wrong verdicts are printed."""


@dataclass
class Totals:
    """What came of all plans on one store."""

    plans: int = 0
    false: int = 0
    missed: int = 0
    late: int = 0
    false_notices: int = 0
    false_stuck: int = 0
    missed_stuck: int = 0
    late_unstuck: int = 0
    stuck: int = 0
    seconds: float = 0.0
    failing_seeds: list[int] = field(default_factory=list)
    flags: list[tuple[Flag, float]] = field(default_factory=list)
    """Each with the plan's sweep interval in seconds."""

    def add(self, plan: Plan, judgement: Judgement) -> None:
        """Count a plan."""
        self.plans += 1
        self.false += len(judgement.false_flags)
        self.missed += len(judgement.missed_flags)
        self.late += len(judgement.late_recoveries)
        self.false_notices += len(judgement.false_notices)
        self.false_stuck += len(judgement.false_stuck)
        self.missed_stuck += len(judgement.missed_stuck)
        self.late_unstuck += len(judgement.late_unstuck)
        self.stuck += len(judgement.stuck)
        self.flags += [(flag, plan.sweep_seconds) for flag in judgement.flags]
        if not judgement.is_good:
            self.failing_seeds.append(plan.seed)

    def join(self, other: Totals) -> None:
        """Count what another process counted."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def figures(self) -> dict[str, Any]:
        """Return what is printed."""
        delays = [flag.delay / 1000 for flag, _ in self.flags] or [0.0]
        own = [max(0, flag.delay - flag.lag) / 1000 / sweep for flag, sweep in self.flags] or [0.0]
        return {
            "plans": self.plans,
            "false": self.false,
            "missed": self.missed,
            "late": self.late,
            "false_notices": self.false_notices,
            "false_stuck": self.false_stuck,
            "missed_stuck": self.missed_stuck,
            "late_unstuck": self.late_unstuck,
            "stuck": self.stuck,
            "flags": len(self.flags),
            "delay_median_seconds": percentile(delays, 0.5),
            "delay_p99_seconds": percentile(delays, 0.99),
            "delay_in_sweeps_p99": percentile(own, 0.99),
            "seconds": self.seconds,
            "failing_seeds": self.failing_seeds,
        }


def open_without_disk(url: str) -> Engine:
    """Return an engine on a database of ours that waits for no disk: what outlives a power cut is not the question."""
    engine = open_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    else:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ALTER SYSTEM SET fsync = off"))
            connection.execute(text("SELECT pg_reload_conf()"))
    return engine


def try_plan(plan: Plan, kind: str, new_database: Callable[[], str]) -> Judgement:
    """Run a plan, and judge what was said."""
    oracle = Oracle(plan)
    if kind == "none":
        return judge(plan, oracle, play(plan, MemoryStore(plan)))
    engine = open_without_disk(new_database())
    try:
        store = SqlStore(engine, plan)
        said = play(plan, store)
        judgement = judge(plan, oracle, said)
        if not plan.clock.steps:  # notices are of times that come twice
            judgement.false_notices = find_false_notices(plan, oracle, said, store.told())
        return judgement
    finally:
        engine.dispose()


def tell(plan: Plan, judgement: Judgement) -> None:
    """Print what was wrong."""
    print(f"seed {plan.seed}, a sweep each {plan.sweep_seconds} s:", file=sys.stderr)
    for title, found in judgement.faults.items():
        for line in found[:SHOWN]:
            print(f"  {title}: {line}", file=sys.stderr)
        if len(found) > SHOWN:
            print(f"  and {len(found) - SHOWN} more {title}", file=sys.stderr)


def run(kind: str, seeds: Sequence[int], *, agents: int, weeks: float) -> Totals:
    """Run the plans of some seeds on one store."""
    end_in_order()
    totals = Totals()
    with databases("sqlite" if kind == "none" else kind) as new_database:
        for seed in seeds:
            started = time.perf_counter()
            plan = draw_plan(seed, agents, weeks, sets_back=kind != "none")
            judgement = try_plan(plan, kind, new_database)
            totals.seconds += time.perf_counter() - started
            totals.add(plan, judgement)
            if not judgement.is_good:
                tell(plan, judgement)
    return totals


def run_in_jobs(kind: str, seeds: Sequence[int], jobs: int, *, agents: int, weeks: float) -> Totals:
    """Run plans in some processes at once, each with databases of its own."""
    shares = [share for share in (seeds[job::jobs] for job in range(jobs)) if share]
    if len(shares) == 1:
        return run(kind, seeds, agents=agents, weeks=weeks)
    with ProcessPoolExecutor(len(shares), get_context("spawn")) as pool:
        futures = [pool.submit(run, kind, share, agents=agents, weeks=weeks) for share in shares]
        totals = Totals()
        for future in futures:
            totals.join(future.result())
    return totals


@click.command(help=verbatim(__doc__))
@click.option("--plans", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the first plan; each next one has the next.")
@click.option("--agents", type=click.IntRange(1), default=200, show_default=True)
@click.option("--weeks", type=click.FloatRange(0.05), default=1.0, show_default=True)
@click.option("--database", type=click.Choice(list(KINDS)), default="none", show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the plans.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(  # noqa: PLR0913 - one argument for each option
    *, plans: int, seed: int, agents: int, weeks: float, database: str, jobs: int, as_json: bool
) -> None:
    """Simulate, judge, and print."""
    end_in_order()
    seeds = range(seed, seed + plans)
    found = {kind: run_in_jobs(kind, seeds, jobs, agents=agents, weeks=weeks) for kind in KINDS[database]}
    if as_json:
        print_json("simulate", {"databases": {kind: totals.figures() for kind, totals in found.items()}})
    else:
        headers = (
            "database",
            "plans",
            "false",
            "missed",
            "late",
            "notices",
            "stuck: false",
            "missed",
            "late",
            "right",
            "flags",
            "delay",
            "p99",
            "in sweeps, p99",
            "took s",
        )
        rows = [
            (kind, *(shown(value) for name, value in totals.figures().items() if name != "failing_seeds"))
            for kind, totals in found.items()
        ]
        print_table(
            f"{plans} plans of {weeks:g} weeks with {agents} agents, seeds {seeds[0]} to {seeds[-1]}", headers, rows
        )
        print_machine()
    failing = sorted({seed for totals in found.values() for seed in totals.failing_seeds})
    if failing:
        print(f"Failing seeds: {', '.join(map(str, failing))}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

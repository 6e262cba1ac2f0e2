"""Trial of a plan: plays it on a store, checks all verdicts, and adds up the findings of several plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Engine, event, text

from fleetbeat_worker.database.engine import open_engine
from simulation.incident_oracle import find_false_notices
from simulation.memory_store import MemoryStore
from simulation.model import Plan
from simulation.oracle import Oracle
from simulation.play import play
from simulation.sql_store import SqlStore
from simulation.stuck_oracle import check_verdicts
from simulation.verdicts import Findings, Flag


@dataclass
class Totals:
    """The findings of all plans on one store, counted."""

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
    """Correct verdicts, each with the plan's sweep interval in seconds."""

    def add(self, plan: Plan, findings: Findings) -> None:
        """Add the findings of a plan."""
        self.plans += 1
        self.false += len(findings.false_flags)
        self.missed += len(findings.missed_flags)
        self.late += len(findings.late_recoveries)
        self.false_notices += len(findings.false_notices)
        self.false_stuck += len(findings.false_stuck)
        self.missed_stuck += len(findings.missed_stuck)
        self.late_unstuck += len(findings.late_unstuck)
        self.stuck += len(findings.stuck)
        self.flags += [(flag, plan.sweep_seconds) for flag in findings.flags]
        if any(findings.errors.values()):
            self.failing_seeds.append(plan.seed)

    def join(self, other: Totals) -> None:
        """Add the totals of another process."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def try_plan(plan: Plan, new_database: Callable[[], str] | None) -> Findings:
    """Play a plan in memory, or on a new database, and check it."""
    oracle = Oracle(plan)
    if new_database is None:
        return check_verdicts(plan, oracle, play(plan, MemoryStore(plan)))
    engine = _open_without_flushing(new_database())
    try:
        store = SqlStore(engine, plan)
        verdicts = play(plan, store)
        findings = check_verdicts(plan, oracle, verdicts)
        if not plan.clock.steps:  # with such a clock, two notices can have the same time
            findings.false_notices = find_false_notices(plan, oracle, verdicts, store.notices())
        return findings
    finally:
        engine.dispose()


def _open_without_flushing(url: str) -> Engine:
    """Open a database that doesn't flush commits to disk, as surviving a power cut is not tested here."""
    engine = open_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    else:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ALTER SYSTEM SET fsync = off"))
            connection.execute(text("SELECT pg_reload_conf()"))
    return engine

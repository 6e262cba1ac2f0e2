"""What a sweep costs, by the size of the fleet and by how the silent agents are found.

What is measured: a database with so many live agents of 300 s, whose deadlines lie spread over the next 600 s. A sweep
is the transaction that decides, as `fleetbeat_worker.sweep` runs it, without the look at Redis. Beside what is shipped
stand the ways to find who is due, each with the least that a sweep must do around it:

  shipped      all of the real decision
  scan         every live agent's deadline is looked at
  deadline     an index on the deadline: each heartbeat must move its entry
  re-check     an index on a time of its own, which only the sweep moves on to the deadline, when it has come

  nothing      milliseconds of a sweep that finds nobody to flag (re-check: it moves on one in a hundred, as many as
               come due in 6 s)
  1%           milliseconds of one that flags one agent in a hundred
  stored/s     heartbeats stored by one process while nobody sweeps
  half, loss   what it loses of half of `scan`'s rate when sweeps run every 5 s, in percent
  meanwhile    milliseconds of these sweeps

How to read it: at a million agents, 150 ms with nothing and 1.5 s with 1% are needed, and a loss of at most 10%.
Figures are medians (lowest to highest).
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy import text
from support import (
    databases,
    end_in_order,
    heartbeat,
    in_new_process,
    print_json,
    print_machine,
    print_table,
    shown,
    spread,
    verbatim,
)

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.account import Account
from fleetbeat_worker.column_types import from_milliseconds, to_milliseconds
from fleetbeat_worker.database import open_engine, reading, writing
from fleetbeat_worker.inbox import Entry, Horizon
from fleetbeat_worker.store.pipeline import StoredPipeline, stored_pipeline, write_pipeline
from fleetbeat_worker.store.verdicts import find_due, flag
from fleetbeat_worker.sweep import decide
from fleetbeat_worker.tables import Liveness
from fleetbeat_worker.transactions import store_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine

INTERVAL = 300
SWEEP_SECONDS = 5.0
BATCH = 4000
SAMPLE = 50_000
"""How many agents beat, at most; more would only take longer to draw."""

MILLISECONDS = {"sqlite": "{}", "postgresql": "TIMESTAMPTZ 'epoch' + ({}) * INTERVAL '1 ms'"}
"""How a moment is written in SQL."""
NUMBERS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)",
    "postgresql": "WITH n(i) AS (SELECT generate_series(1, :count))",
}
KEY = {"sqlite": "randomblob(16)", "postgresql": "gen_random_uuid()"}
SHARE = {
    "sqlite": "hex(substr(session_id, 1, 2)) < '028F'",
    "postgresql": "get_byte(uuid_send(session_id), 0) * 256 + get_byte(uuid_send(session_id), 1) < 655",
}
"""One agent in a hundred."""
DRAW = {"sqlite": "abs(random() % 300000)", "postgresql": "floor(random() * 300000)"}


@dataclass
class Figures:
    """What was measured of one way, in milliseconds but for the rates."""

    nothing: list[float] = field(default_factory=list)
    some: list[float] = field(default_factory=list)
    per_second: float = 0.0
    loss: float = 0.0
    meanwhile: list[float] = field(default_factory=list)


def fill(engine: Engine, count: int, now: int) -> None:
    """Put live agents into an empty database."""
    kind = engine.dialect.name
    moment = MILLISECONDS[kind]
    with writing(engine) as connection:
        connection.execute(
            text(
                f"{NUMBERS[kind]} INSERT INTO agents (session_id, agent_name, parallel, lifecycle_entry) "  # noqa: S608 - our own text
                f"SELECT {KEY[kind]}, 'agent-' || i, false, 0 FROM n"
            ),
            {"count": count},
        )
        seen = f"{now} - {DRAW[kind]}"
        connection.execute(
            text(
                "INSERT INTO liveness (session_id, state, state_changed_at, last_seen_at, deadline_at,"  # noqa: S608 - as above
                " registered_at,"
                f" interval_seconds, grace_seconds)"
                f" SELECT session_id, 'ok', {moment.format(now)}, {moment.format('s')},"
                f" {moment.format(f's + {2000 * INTERVAL} + 15000')}, {moment.format(now - 86_400_000)}, {INTERVAL}, 15"
                f" FROM (SELECT session_id, {seen} AS s FROM agents) AS a"
            )
        )
    tidy(engine)


def tidy(engine: Engine) -> None:
    """Bring statistics up to date."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE" if engine.dialect.name == "postgresql" else "ANALYZE"))


# Each way: what makes it, and what finds who is due.


def no_preparation(_connection: Connection) -> None:
    """Leave the tables as they are."""


def index_deadlines(connection: Connection) -> None:
    """Index the deadline."""
    connection.execute(text("CREATE INDEX by_deadline ON liveness (deadline_at)"))


def make_rechecks(connection: Connection) -> None:
    """Keep when each agent must be looked at again, with an index, in a table that heartbeats never touch."""
    connection.execute(
        text(
            "CREATE TABLE rechecks AS SELECT session_id, deadline_at AS recheck_at FROM liveness"
        )  # as a sweep left it
    )
    connection.execute(text("CREATE UNIQUE INDEX rechecks_key ON rechecks (session_id)"))
    connection.execute(text("CREATE INDEX rechecks_due ON rechecks (recheck_at)"))


def find_by_recheck(connection: Connection, watermark: datetime) -> list[Any]:
    """Move on what is to be looked at again to its deadline; return whose has passed."""
    bound = {"watermark": to_milliseconds(watermark) if connection.dialect.name == "sqlite" else watermark}
    connection.execute(
        text(
            "UPDATE rechecks SET recheck_at = l.deadline_at FROM liveness l"
            " WHERE l.session_id = rechecks.session_id AND recheck_at < :watermark AND l.deadline_at >= :watermark"
        ),
        bound,
    )
    left = text("SELECT count(*) FROM rechecks WHERE recheck_at < :watermark")
    # Who is left is due; the shipped query reads their names.
    return list(find_due(connection, watermark)) if connection.execute(left, bound).scalar() else []


WAYS: dict[str, tuple[Callable[[Connection], None], Callable[[Connection, datetime], Sequence[Any]] | None]] = {
    "shipped": (no_preparation, None),
    "scan": (no_preparation, find_due),
    "deadline": (index_deadlines, find_due),
    "re-check": (make_rechecks, find_by_recheck),
}


def sweep_once(engine: Engine, way: str, now: datetime) -> tuple[float, int]:
    """Return how many milliseconds a sweep took, and how many agents it flagged."""
    find = WAYS[way][1]
    with writing(engine) as connection:  # somebody has just watched: an outage would move every deadline
        write_pipeline(connection, StoredPipeline(watermark=now, last_sweep_at=now, sweep_seconds=SWEEP_SECONDS))
    started = time.perf_counter()
    with writing(engine) as connection:
        if find is None:
            settings = Settings(sweep_seconds=SWEEP_SECONDS)
            report = decide(connection, Horizon(now, now, 0), Account(now, None, 0), settings, periodic=True)
            flagged = len(report.degraded)
        else:
            stored_pipeline(connection, lock=True)
            due = find(connection, now)
            flag(connection, due, now, now)
            write_pipeline(connection, StoredPipeline(watermark=now, last_sweep_at=now, sweep_seconds=SWEEP_SECONDS))
            flagged = len(due)
    return (time.perf_counter() - started) * 1000, flagged


def let_pass(engine: Engine, table: str, column: str, now: datetime) -> int:
    """Let a moment lie a second before now for one agent in a hundred; return for how many."""
    on_postgresql = engine.dialect.name == "postgresql"
    past = now - timedelta(seconds=1)
    statement = text(f"UPDATE {table} SET {column} = :past WHERE {SHARE[engine.dialect.name]}")  # noqa: S608 - our own text
    with writing(engine) as connection:
        return connection.execute(statement, {"past": past if on_postgresql else to_milliseconds(past)}).rowcount


def ingest_for(url: str, seconds: float, rate: float) -> float:
    """Store heartbeats for a time, at a rate at most (0: as many as can be); return how many were stored per second."""
    engine = open_engine(url)
    settings = Settings()
    draw = random.Random(3)  # noqa: S311 - the same mix in each run, no secret
    with reading(engine) as connection:
        sessions: list[UUID] = list(connection.execute(Liveness.__table__.select().limit(SAMPLE)).scalars())
    waiting = [heartbeat(draw.choice(sessions), progress=False, draw=draw).to_wire() for _ in range(BATCH)]
    started, spent, stored = time.monotonic(), 0.0, 0
    while (elapsed := time.monotonic() - started) - spent < seconds:
        if rate and stored > rate * (elapsed - spent):
            time.sleep(0.002)
            continue
        prepared_at = time.monotonic()  # making messages is no part of ingest
        now = datetime.now(UTC)
        head = to_milliseconds(now)
        entries = [Entry(f"{head}-{number}", wire) for number, wire in enumerate(waiting)]
        spent += time.monotonic() - prepared_at
        store_entries(engine, entries, now, settings)
        stored += len(entries)
        prepared_at = time.monotonic()
        waiting = [heartbeat(draw.choice(sessions), progress=False, draw=draw).to_wire() for _ in range(BATCH)]
        spent += time.monotonic() - prepared_at
    elapsed = time.monotonic() - started - spent
    engine.dispose()
    return stored / elapsed


@contextmanager
def sweeping(engine: Engine, way: str) -> Iterator[list[float]]:
    """Sweep every 5 s while the block lasts; yield what each took, in milliseconds."""
    taken: list[float] = []
    enough = threading.Event()

    def act() -> None:
        while not enough.wait(SWEEP_SECONDS):
            taken.append(sweep_once(engine, way, datetime.now(UTC))[0])

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield taken
    finally:
        enough.set()
        thread.join()


def measure(  # noqa: PLR0913 - what is measured, and how long
    url: str, way: str, agents: int, *, runs: int, seconds: float, rate: float
) -> Figures:
    """Measure one way on an empty database; `rate` is the half at which ingest runs beside it, 0 if not known yet."""
    engine = open_engine(url)
    now = to_milliseconds(datetime.now(UTC))
    fill(engine, agents, now)
    with writing(engine) as connection:
        WAYS[way][0](connection)
    tidy(engine)
    figures = Figures()
    moment = from_milliseconds(now)
    for _ in range(runs):
        if way == "re-check":
            let_pass(engine, "rechecks", "recheck_at", moment)
        took, flagged = sweep_once(engine, way, moment)
        insist(flagged == 0, "a sweep flagged somebody who wasn't due")
        figures.nothing.append(took)
    figures.per_second = in_new_process(ingest_for, url, seconds, 0.0)
    half = rate or figures.per_second / 2
    alone = in_new_process(ingest_for, url, seconds, half)
    with sweeping(engine, way) as figures.meanwhile:
        beside = in_new_process(ingest_for, url, seconds, half)
    figures.loss = max(0.0, 100 * (1 - beside / alone))
    for _ in range(runs):
        moment = datetime.now(UTC)
        expected = let_pass(engine, "liveness", "deadline_at", moment)
        if way == "re-check":
            let_pass(engine, "rechecks", "recheck_at", moment)
        took, flagged = sweep_once(engine, way, moment)
        insist(flagged == expected, f"a sweep flagged {flagged} instead of {expected} agents")
        figures.some.append(took)
        revive(engine)
    engine.dispose()
    return figures


def revive(engine: Engine) -> None:
    """Make all agents fine again."""
    with writing(engine) as connection:
        connection.execute(text("UPDATE liveness SET state = 'ok' WHERE state = 'degraded'"))


def insist(holds: bool, message: str) -> None:  # noqa: FBT001 - the condition is what it is about
    """End with a message unless something holds."""
    if not holds:
        raise click.ClickException(message)


@click.command(help=verbatim(__doc__))
@click.option("--agents", "sizes", type=click.IntRange(100), multiple=True, help="[default: 10000, 100000, 1000000]")
@click.option("--database", type=click.Choice(["sqlite", "postgresql", "both"]), default="both", show_default=True)
@click.option("--way", "ways", type=click.Choice(list(WAYS)), multiple=True, help="[default: all]")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=30.0, show_default=True, help="Of each phase of ingest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(  # noqa: PLR0913 - one argument for each option
    *, sizes: tuple[int, ...], database: str, ways: tuple[str, ...], runs: int, seconds: float, as_json: bool
) -> None:
    """Measure, and print."""
    end_in_order()
    found: dict[tuple[str, int, str], Figures] = {}
    for kind in ("sqlite", "postgresql") if database == "both" else (database,):
        for agents in sizes or (10_000, 100_000, 1_000_000):
            for way in ways or WAYS:
                scan = found.get((kind, agents, "scan"))
                with databases(kind) as new_database:  # anew, so that no way meets what another left
                    found[kind, agents, way] = measure(
                        new_database(),
                        way,
                        agents,
                        runs=runs,
                        seconds=seconds,
                        rate=scan.per_second / 2 if scan else 0.0,
                    )
    if as_json:
        print_json("sweep", {"sweeps": [dict(zip(NAMES, key, strict=True)) | vars(f) for key, f in found.items()]})
        return
    rows = [
        (
            kind,
            f"{agents:,}",
            way,
            spread(f.nothing),
            spread(f.some),
            shown(f.per_second),
            shown(f.loss),
            spread(f.meanwhile) if f.meanwhile else "-",
        )
        for (kind, agents, way), f in found.items()
    ]
    headers = (*NAMES, "nothing", "1%", "stored/s", "half, loss", "meanwhile")
    print_table("A sweep, in ms", headers, rows)
    print_machine()


NAMES = ("database", "agents", "way")

if __name__ == "__main__":
    main()

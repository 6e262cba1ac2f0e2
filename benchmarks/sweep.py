"""What a sweep costs, by the size of the fleet and by how the silent agents are found.

What is measured: a database with so many live agents of 300 s, whose deadlines lie spread over the next 600 s. A sweep
is the transaction that decides, as `fleetbeat_worker.sweep.job` runs it, without the look at Redis. Beside what is
shipped stand the ways to find who is due, each with the least that a sweep must do around it:

  shipped      all of the real decision; every live agent's deadline is looked at
  deadline     an index on the deadline: each heartbeat must move its entry
  re-check     an index on a time of its own, which only the sweep moves on to the deadline, when it has come

  nothing      milliseconds of a sweep that finds nobody to flag (re-check: it moves on one in a hundred, about as many
               as come due between two sweeps)
  1%           milliseconds of one that flags one agent in a hundred, each told of by itself
  incident     milliseconds of one that flags 99 in a hundred, told as one; up to 100,000 agents
  stored/s     heartbeats stored by one process while nobody sweeps
  at half      milliseconds of sweeps that flag nobody, each 5 s, beside heartbeats at half of `shipped`'s rate
  1% at half   as before, of sweeps that flag one agent in a hundred
  loss         what is stored less at half the rate because of sweeps that flag nobody, in percent

How to read it: of `shipped`, at a million agents, "at half" must be at most 150 ms, "1% at half" at most 1,500 ms, and
the loss at most 10%. Figures are medians (lowest to highest).
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any
from uuid import UUID

import click
from sqlalchemy import Connection, Engine, text
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

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.redis_keys import INBOX
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.accounting import Account
from fleetbeat_worker.broker.entries import RawEntry, decode
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.database.engine import open_engine, reading, writing
from fleetbeat_worker.database.tables import Liveness
from fleetbeat_worker.ingest.transaction import store_heartbeats
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from fleetbeat_worker.store.pipeline import PipelineState, read_pipeline_state, write_pipeline
from fleetbeat_worker.sweep.queries import find_overdue, flag
from fleetbeat_worker.sweep.transaction import judge_fleet

NOTHING_MILLISECONDS, SOME_MILLISECONDS, LOSS_PERCENT = 150, 1500, 10
"""What is needed of `shipped` at a million agents."""
NEEDED_AGENTS = 1_000_000
INCIDENT_AGENTS = 100_000

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
    incident: list[float] = field(default_factory=list)
    per_second: float = 0.0
    alone: float = 0.0
    """What was stored per second at half the rate, while nobody swept."""
    beside: float = 0.0
    """The same beside sweeps that flag nobody."""
    nothing_at_half: list[float] = field(default_factory=list)
    some_at_half: list[float] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """What is lost because of sweeps, in percent."""
        return max(0.0, 100 * (1 - self.beside / self.alone))


def fill(engine: Engine, count: int, now: int) -> None:
    """Put live agents into an empty database."""
    kind = engine.dialect.name
    moment = MILLISECONDS[kind]
    with writing(engine) as connection:
        connection.execute(
            text(
                f"{NUMBERS[kind]} INSERT INTO agents (session_id, agent_name, parallel) "  # noqa: S608 - our own text
                f"SELECT {KEY[kind]}, 'agent-' || i, false FROM n"
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
    kind = connection.dialect.name
    moment = MILLISECONDS[kind].format(f"{to_milliseconds(datetime.now(UTC))} + {DRAW[kind]} * 155 / 100")
    connection.execute(
        text(
            # An agent is looked at again once in 465 s, as its deadline was 315 to 615 s away when it was looked at.
            f"CREATE TABLE rechecks AS SELECT session_id, {moment} AS recheck_at FROM liveness"  # noqa: S608 - our own text
        )
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
    return list(find_overdue(connection, watermark)) if connection.execute(left, bound).scalar() else []


WAYS: dict[str, tuple[Callable[[Connection], None], Callable[[Connection, datetime], Sequence[Any]] | None]] = {
    "shipped": (no_preparation, None),
    "deadline": (index_deadlines, find_overdue),
    "re-check": (make_rechecks, find_by_recheck),
}


def sweep_once(engine: Engine, way: str, now: datetime) -> tuple[float, int]:
    """Return how many milliseconds a sweep took, and how many agents it flagged."""
    find = WAYS[way][1]
    with writing(engine) as connection:  # somebody has just watched: an outage would move every deadline
        write_pipeline(connection, PipelineState(watermark=now, last_sweep_at=now, sweep_seconds=SWEEP_SECONDS))
    started = time.perf_counter()
    with writing(engine) as connection:
        if find is None:
            settings = Settings(sweep_seconds=SWEEP_SECONDS)
            report = judge_fleet(connection, Horizon(now, now, 0), Account(now, None, 0), settings, periodic=True)
            flagged = len(report.degraded)
        else:
            read_pipeline_state(connection, lock=True)
            due = find(connection, now)
            flag(connection, due, now, now, backlog=0)
            write_pipeline(connection, PipelineState(watermark=now, last_sweep_at=now, sweep_seconds=SWEEP_SECONDS))
            flagged = len(due)
    return (time.perf_counter() - started) * 1000, flagged


def let_pass(engine: Engine, table: str, column: str, now: datetime, *, most: bool = False) -> int:
    """Let a moment lie a second before now for one agent in a hundred, or for all but these; return for how many."""
    on_postgresql = engine.dialect.name == "postgresql"
    past = now - timedelta(seconds=1)
    share = f"NOT ({SHARE[engine.dialect.name]})" if most else SHARE[engine.dialect.name]
    statement = text(f"UPDATE {table} SET {column} = :past WHERE {share}")  # noqa: S608 - our own text
    with writing(engine) as connection:
        return connection.execute(statement, {"past": past if on_postgresql else to_milliseconds(past)}).rowcount


def _beats_of(sessions: Sequence[UUID], draw: random.Random) -> list[bytes]:
    """Return a batch of heartbeats that say nothing: one that is made properly, with other ids in its bytes."""
    first = heartbeat(sessions[0], progress=False, draw=draw)
    wire, own_id, session = first.to_wire(), str(first.id).encode(), str(first.session_id).encode()
    return [
        wire.replace(own_id, str(new_message_id()).encode()).replace(session, str(draw.choice(sessions)).encode())
        for _ in range(BATCH)
    ]


def ingest_for(url: str, seconds: float, rate: float) -> float:
    """Store heartbeats for a time, at a rate at most (0: as many as can be); return how many were stored per second."""
    engine = open_engine(url)
    settings = Settings()
    draw = random.Random(3)  # noqa: S311 - the same mix in each run, no secret
    with reading(engine) as connection:
        sessions: list[UUID] = list(connection.execute(Liveness.__table__.select().limit(SAMPLE)).scalars())
    waiting = _beats_of(sessions, draw)
    started, spent, stored = time.monotonic(), 0.0, 0
    while (elapsed := time.monotonic() - started) - spent < seconds:
        if rate and stored + len(waiting) > rate * (elapsed - spent):
            time.sleep(0.002)
            continue
        prepared_at = time.monotonic()  # making messages is no part of ingest
        now = to_milliseconds(datetime.now(UTC))
        raw = [RawEntry(f"{now}-{number}", wire) for number, wire in enumerate(waiting)]
        spent += time.monotonic() - prepared_at
        store_heartbeats(engine, decode(raw, now, INBOX), now, settings)
        stored += len(raw)
        prepared_at = time.monotonic()
        waiting = _beats_of(sessions, draw)
        spent += time.monotonic() - prepared_at
    elapsed = time.monotonic() - started - spent
    engine.dispose()
    return stored / elapsed


@contextmanager
def sweeping(engine: Engine, way: str, *, some: bool = False) -> Iterator[list[float]]:
    """Sweep every 5 s while the block lasts; yield what each took, in milliseconds. `some`: one agent in 100 is due."""
    taken: list[float] = []
    enough = threading.Event()

    def act() -> None:
        wait_seconds = SWEEP_SECONDS / 2  # so that a block of any length has as many as it would have on average
        while not enough.wait(wait_seconds):
            wait_seconds = SWEEP_SECONDS
            now = datetime.now(UTC)
            if some:
                revive(engine)
                let_pass(engine, "liveness", "deadline_at", now)
            taken.append(sweep_once(engine, way, now)[0])

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield taken
    finally:
        enough.set()
        thread.join()


def measure(url: str, way: str, agents: int, *, runs: int, seconds: float, shipped: Figures | None) -> Figures:  # noqa: PLR0913 - what is measured, and how long
    """Measure one way on an empty database; `shipped` is what was found of that before, if it was."""
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
    half = (shipped or figures).per_second / 2
    figures.alone = shipped.alone if shipped else in_new_process(ingest_for, url, seconds, half)
    with sweeping(engine, way) as figures.nothing_at_half:
        figures.beside = in_new_process(ingest_for, url, seconds, half)
    if way == "shipped":
        with sweeping(engine, way, some=True) as figures.some_at_half:
            in_new_process(ingest_for, url, seconds, half)
    for _ in range(runs):
        figures.some.append(sweep_when_due(engine, way))
    if way == "shipped" and agents <= INCIDENT_AGENTS:
        figures.incident.append(sweep_when_due(engine, way, most=True))
    engine.dispose()
    return figures


def sweep_when_due(engine: Engine, way: str, *, most: bool = False) -> float:
    """Let one agent in a hundred fall silent, or all but these; return how many milliseconds the sweep took."""
    revive(engine)
    moment = datetime.now(UTC)
    expected = let_pass(engine, "liveness", "deadline_at", moment, most=most)
    if way == "re-check":
        let_pass(engine, "rechecks", "recheck_at", moment)
    took, flagged = sweep_once(engine, way, moment)
    insist(flagged == expected, f"a sweep flagged {flagged} instead of {expected} agents")
    return took


def revive(engine: Engine) -> None:
    """Make all agents fine again."""
    with writing(engine) as connection:
        later = datetime.now(UTC) + timedelta(days=1)
        connection.execute(
            text("UPDATE liveness SET state = 'ok', incident_id = NULL, deadline_at = :later WHERE state = 'degraded'"),
            {"later": later if engine.dialect.name == "postgresql" else to_milliseconds(later)},
        )
        connection.execute(text("DELETE FROM incidents"))


def insist(holds: bool, message: str) -> None:  # noqa: FBT001 - the condition is what it is about
    """End with a message unless something holds."""
    if not holds:
        raise click.ClickException(message)


@click.command(help=verbatim(__doc__))
@click.option("--agents", "sizes", type=click.IntRange(100), multiple=True, help="[default: 10000, 100000, 1000000]")
@click.option("--database", type=click.Choice(["sqlite", "postgresql", "both"]), default="both", show_default=True)
@click.option("--way", "ways", type=click.Choice(list(WAYS)), multiple=True, help="[default: all]")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(5), default=8.0, show_default=True, help="Of each phase of ingest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(  # noqa: PLR0913 - one argument for each option
    *, sizes: tuple[int, ...], database: str, ways: tuple[str, ...], runs: int, seconds: float, as_json: bool
) -> None:
    """Measure, and print."""
    end_in_order()
    found: dict[tuple[str, int, str], Figures] = {}
    for kind in ("sqlite", "postgresql") if database == "both" else (database,):
        for agents in sizes or (10_000, 100_000, 1_000_000):
            for way in [way for way in WAYS if not ways or way in ways]:
                shipped = found.get((kind, agents, "shipped"))
                with databases(kind) as new_database:  # anew, so that no way meets what another left
                    url = new_database()
                    found[kind, agents, way] = measure(url, way, agents, runs=runs, seconds=seconds, shipped=shipped)
                print(f"{kind}, {agents:,} agents, {way}: measured", file=sys.stderr)
    needed = {key: verdicts_of(key, figures) for key, figures in found.items()}
    if as_json:
        print_json("sweep", {"sweeps": [_as_json(key, figures, needed[key]) for key, figures in found.items()]})
        return
    headers = (*NAMES, "nothing", "1%", "incident", "stored/s", "at half", "1% at half", "loss")
    rows = [
        (
            kind,
            f"{agents:,}",
            way,
            spread(f.nothing),
            spread(f.some),
            spread(f.incident) if f.incident else "-",
            shown(f.per_second),
            spread(f.nothing_at_half),
            spread(f.some_at_half) if f.some_at_half else "-",
            shown(f.loss),
        )
        for (kind, agents, way), f in found.items()
    ]
    print_table("A sweep, in ms", headers, rows)
    for (kind, agents, _), verdicts in needed.items():
        for name, is_reached in verdicts.items():
            print(f"{kind}, {agents:,} agents, {name}: {'reached' if is_reached else 'NOT REACHED'}")
    print_machine()


def verdicts_of(key: tuple[str, int, str], figures: Figures) -> dict[str, bool]:
    """Return what is needed of one row of the table, by the names of its columns, and whether it was reached."""
    _, agents, way = key
    if way != "shipped" or agents < NEEDED_AGENTS:
        return {}
    return {
        "at half": median(figures.nothing_at_half) <= NOTHING_MILLISECONDS,
        "1% at half": median(figures.some_at_half) <= SOME_MILLISECONDS,
        "loss": figures.loss <= LOSS_PERCENT,
    }


def _as_json(key: tuple[str, int, str], figures: Figures, verdicts: dict[str, bool]) -> dict[str, Any]:
    return dict(zip(NAMES, key, strict=True)) | vars(figures) | {"loss": figures.loss, "reached": verdicts}


NAMES = ("database", "agents", "way")

if __name__ == "__main__":
    main()

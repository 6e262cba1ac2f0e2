"""`fleetbeat agents pause` and `resume`: exempt an agent from flagging for a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from uuid import UUID

import click
from sqlalchemy import Connection

from fleetbeat_shared.errors import FleetbeatError, SessionEnded, UnknownSession
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli.options import common_options, example, name_or_session, open_database, read_redis_time
from fleetbeat_worker.cli.output import counted, print_json, stamp
from fleetbeat_worker.cli.types import DurationType, LineType
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.downtime import pauses
from fleetbeat_worker.downtime.pauses import PausedAgent
from fleetbeat_worker.store.sessions import agent_is_known, read_session


@click.command(
    epilog=example(
        "fleetbeat agents pause hint",
        'fleetbeat agents pause hint --for 2h --reason "moves to another machine"',
        "fleetbeat agents pause --session 019c0d3e-0000-7000-8000-000000000000",
    )
)
@name_or_session
@click.option("--for", "length", type=DurationType(), help="How long: 30m, 2h, 1d; until `resume` if not given.")
@click.option("--reason", type=LineType("reason"), help="Why; shown with the agent and in its events.")
@common_options
def pause(
    *, settings: Settings, asked: str | UUID, length: timedelta | None, reason: str | None, as_json: bool
) -> None:
    """Pause an agent, so that it isn't flagged.

    Its heartbeats are stored, and its deadline restarts when the pause is over. All live sessions of the name are
    paused; one that is paused already gets the new end and reason. A pause also ends with its session.
    """
    now = read_redis_time(settings)
    until = now + length if length is not None else None
    with open_database(settings) as engine, writing(engine) as connection:
        paused = pauses.pause(connection, asked, now, until, reason)
        if not paused:
            raise _not_live(connection, asked)
    if as_json:
        print_json({"ok": True, "paused": [asdict(agent) for agent in paused], "until": until, "reason": reason})
    else:
        click.echo(f"Paused {_names(paused)} {f'until {stamp(until)} UTC' if until else 'until resumed'}.")


@click.command(
    epilog=example(
        "fleetbeat agents resume hint", "fleetbeat agents resume --session 019c0d3e-0000-7000-8000-000000000000"
    )
)
@name_or_session
@common_options
def resume(*, settings: Settings, asked: str | UUID, as_json: bool) -> None:
    """End an agent's pause. Its deadline restarts now, whatever it was before."""
    now = read_redis_time(settings)
    with open_database(settings) as engine, writing(engine) as connection:
        resumed = pauses.resume(connection, asked, now, settings.missed_intervals)
        if not resumed:
            raise _not_paused(connection, asked)
    if as_json:
        print_json({"ok": True, "resumed": [asdict(agent) for agent in resumed]})
    else:
        click.echo(f"Resumed {_names(resumed)}; the deadline restarts now.")


def _not_paused(connection: Connection, asked: str | UUID) -> FleetbeatError:
    if pauses.is_live(connection, asked):
        return FleetbeatError(f"{_title(asked)} is not paused. See: fleetbeat agents list --state paused")
    return _not_live(connection, asked)


def _not_live(connection: Connection, asked: str | UUID) -> FleetbeatError:
    known = agent_is_known(connection, asked) if isinstance(asked, str) else read_session(connection, asked) is not None
    if known:
        return SessionEnded(f"{_title(asked)} has ended, so it can't be paused or resumed. See: fleetbeat agents list")
    return UnknownSession(f"{_title(asked)} was never registered. See: fleetbeat agents list --all")


def _title(asked: str | UUID) -> str:
    return f"session {asked}" if isinstance(asked, UUID) else clean(asked)


def _names(agents: Sequence[PausedAgent]) -> str:
    name = clean(agents[0].agent_name)
    return name if len(agents) == 1 else f"{name} ({counted(len(agents), 'session')})"

"""`fleetbeat agents pause` and `resume`: silence an agent on purpose, and end that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import click
from sqlalchemy import Connection

from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.errors import FleetbeatError, SessionEnded, UnknownSession
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.cli.options import common_options, example, json_option, open_database, open_redis
from fleetbeat_worker.cli.output import counted, print_json, stamp
from fleetbeat_worker.cli.types import DurationType, NameType
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.downtime import pauses
from fleetbeat_worker.downtime.pauses import PausedAgent
from fleetbeat_worker.store.sessions import agent_is_known, read_session as find_session

MAX_REASON = 500
"""As long as a progress text may be."""


class Reason(click.ParamType[str]):
    """One line of text."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """Return the text without control characters."""
        reason = clean(str(value))
        if not 0 < len(reason) <= MAX_REASON:
            self.fail(f"a reason has 1 to {MAX_REASON} characters; this one has {len(reason)}.", param, ctx)
        return reason


def _whose(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--session", type=click.UUID, metavar="ID", help="Only the session with this id.")(command)
    return click.argument("name", type=NameType(), required=False)(command)


@click.command(
    epilog=example(
        "fleetbeat agents pause hint",
        'fleetbeat agents pause hint --for 2h --reason "moves to another machine"',
        "fleetbeat agents pause --session 019c0d3e-0000-7000-8000-000000000000",
    )
)
@_whose
@click.option("--for", "length", type=DurationType(), help="How long: 30m, 2h, 1d; until `resume` if not given.")
@click.option("--reason", type=Reason(), help="Why; shown with the agent and in its events.")
@json_option
@common_options
def pause(  # noqa: PLR0913 - one parameter per option
    *,
    settings: Settings,
    name: str | None,
    session: UUID | None,
    length: timedelta | None,
    reason: str | None,
    as_json: bool,
) -> None:
    """Silence an agent: its heartbeats are stored, and it is not judged until the pause is over.

    Its clock starts anew then. All live sessions of the name are paused; one that is paused already gets the new end
    and reason. A pause belongs to a session: it ends with it, too.
    """
    asked = _asked(name, session)
    now = _redis_time(settings)
    until = now + length if length is not None else None
    with open_database(settings) as engine, writing(engine) as connection:
        done = pauses.pause(connection, asked, now, until, reason)
        if not done:
            raise _none_live(connection, asked)
    if as_json:
        print_json({"ok": True, "paused": _sessions(done), "until": until, "reason": reason})
    else:
        end = f"until {stamp(until)} UTC" if until else "until somebody resumes it"
        click.echo(f"Paused {_told(done)} {end}.")


@click.command(
    epilog=example(
        "fleetbeat agents resume hint", "fleetbeat agents resume --session 019c0d3e-0000-7000-8000-000000000000"
    )
)
@_whose
@json_option
@common_options
def resume(*, settings: Settings, name: str | None, session: UUID | None, as_json: bool) -> None:
    """End an agent's pause: its clock starts anew now, whatever it was before."""
    asked = _asked(name, session)
    now = _redis_time(settings)
    with open_database(settings) as engine, writing(engine) as connection:
        done = pauses.resume(connection, asked, now, settings.missed_intervals)
        if not done:
            raise _none_paused(connection, asked)
    if as_json:
        print_json({"ok": True, "resumed": _sessions(done)})
    else:
        click.echo(f"Resumed {_told(done)}; the time of silence counts from now.")


def _asked(name: str | None, session: UUID | None) -> str | UUID:
    if (name is None) == (session is None):
        message = "Give either the agent's NAME or --session."
        raise click.UsageError(message)
    return session if session is not None else name or ""


def _redis_time(settings: Settings) -> datetime:
    with open_redis(settings) as client, redis_errors(settings.redis_url):
        return Inbox(client).horizon().now


def _who(asked: str | UUID) -> str:
    return f"session {asked}" if isinstance(asked, UUID) else clean(asked)


def _none_live(connection: Connection, asked: str | UUID) -> FleetbeatError:
    """Return the error for what has no live session."""
    known = agent_is_known(connection, asked) if isinstance(asked, str) else find_session(connection, asked) is not None
    if known:
        return SessionEnded(
            f"{_who(asked)} has ended, so there is nothing to pause or resume. See: fleetbeat agents list"
        )
    return UnknownSession(f"{_who(asked)} was never registered. See: fleetbeat agents list --all")


def _none_paused(connection: Connection, asked: str | UUID) -> FleetbeatError:
    if pauses.is_live(connection, asked):
        return FleetbeatError(f"{_who(asked)} is not paused. See: fleetbeat agents list --state paused")
    return _none_live(connection, asked)


def _sessions(done: Sequence[PausedAgent]) -> list[dict[str, Any]]:
    return [{"agent_name": a.agent_name, "session_id": a.session_id, "state": str(a.state)} for a in done]


def _told(done: Sequence[PausedAgent]) -> str:
    name = clean(done[0].agent_name)
    return name if len(done) == 1 else f"{name} ({counted(len(done), 'session')})"

"""`fleetbeat queue`: what stands in Redis and RQ now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Group
from rich.text import Text

from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.errors import FleetbeatError, SettingsError
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.options import common_options, example, json_option, open_database, open_redis
from fleetbeat_worker.cli.output import ago, console, counted, plain_table, print_json, safe
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.notifications.outbox import Outbox, read_outbox
from fleetbeat_worker.workers.status import QueueState, read_queue

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


@click.command(epilog=example("fleetbeat queue", "fleetbeat queue --json | jq .backlog"))
@json_option
@common_options
def queue(*, settings: Settings, as_json: bool) -> None:
    """Show the backlog, its oldest message, who holds how much of it, how fast it grows or shrinks, and who works.

    Notifications that wait or are dead are in the database; without it they are not shown.
    """
    with open_redis(settings) as client, redis_errors(settings.redis_url):
        state = read_queue(client)
    outbox = _outbox(settings)
    if as_json:
        counts = None if outbox is None else {"waiting": outbox.waiting, "dead": outbox.dead}
        print_json({**state.to_json(), "notifications": counts})
    else:
        console().print(_text(state, outbox))


def _outbox(settings: Settings) -> Outbox | None:
    """Return how full the outbox is; None if the database isn't there to tell."""
    try:
        with open_database(settings) as engine, reading(engine) as connection:
            return read_outbox(connection)
    except SettingsError:
        raise
    except FleetbeatError:
        return None


def _text(state: QueueState, outbox: Outbox | None) -> RenderableType:
    horizon = state.horizon
    lag = "unknown" if state.lag_seconds is None else format_duration(state.lag_seconds)
    parts: list[RenderableType] = [
        Text.assemble(("Inbox    ", "bold"), f"{counted(horizon.backlog, 'message')} not yet in SQL, lag {lag}"),
        Text.assemble(
            ("RQ jobs  ", "bold"),
            f"{state.jobs_waiting:,} waiting, {state.jobs_started:,} started, ",
            (f"{state.jobs_failed:,} failed", "bold yellow" if state.jobs_failed else ""),
        ),
    ]
    if state.oldest_id:
        age = "of an unknown age" if state.lag_seconds is None else f"{format_duration(state.lag_seconds)} old"
        parts.insert(1, Text.assemble(("Oldest   ", "bold"), safe(state.oldest_id), f", {age}"))
    parts.insert(-1, Text.assemble(("Flow     ", "bold"), _flow_text(state)))
    if state.lost:
        removed = f"{counted(state.lost, 'message')} removed unread; some agent trims the inbox: "
        hint = "fleetbeat events --type inbox_trimmed"
        parts.append(Text.assemble(("Lost     ", "bold"), (f"{removed}{hint}", "bold yellow")))
    if outbox is not None and (outbox.waiting or outbox.dead):
        dead = f"{outbox.dead:,} dead: fleetbeat notifications list --state dead" if outbox.dead else "none dead"
        told = (f"{outbox.waiting:,} waiting, ", (dead, "bold yellow" if outbox.dead else ""))
        parts.append(Text.assemble(("Notices  ", "bold"), *told))
    if not state.workers:
        hint = "fleetbeat workers scale 1" if state.pools else "fleetbeat worker"
        parts.append(Text.assemble(("Workers  ", "bold"), (f"none is running: {hint}", "bold yellow")))
    else:
        parts += [Text.assemble(("Workers  ", "bold"), f"{len(state.workers):,}"), Text(), _workers_table(state)]
    holders = {name: number for name, number in state.pending.items() if name not in _names(state)}
    parts += [
        safe(f"{counted(number, 'message')} in the hands of {name}, which is no worker here; others take them over.")
        for name, number in holders.items()
    ]
    return Group(*parts)


def _flow_text(state: QueueState) -> str:
    arrival, drain = state.flow.arrival_rate, state.flow.drain_rate
    if arrival is None or drain is None:
        return "unknown; a pool of workers measures it"
    if state.seconds_to_empty is None:
        outlook = "; it will not be empty"
    else:
        outlook = f"; empty in {format_duration(round(state.seconds_to_empty))}" if state.horizon.backlog else ""
    return f"{arrival:,.0f}/s come, {drain:,.0f}/s are stored{outlook}"


def _names(state: QueueState) -> set[str]:
    return {worker.name for worker in state.workers}


def _workers_table(state: QueueState) -> Table:
    table = plain_table()
    table.add_column("Worker", overflow="fold")
    table.add_column("State", no_wrap=True)
    table.add_column("Holds", justify="right", no_wrap=True)
    table.add_column("Job", overflow="fold")
    table.add_column("Process", overflow="fold")
    table.add_column("Last sign", no_wrap=True)
    for worker in state.workers:
        seen = worker.last_heartbeat_at
        table.add_row(
            safe(worker.name, "bold"),
            safe(worker.state),
            Text(f"{state.pending.get(worker.name, 0):,}"),
            safe(worker.job_id),
            safe(f"{worker.hostname or '?'}:{worker.pid or '?'}"),
            Text(ago(seen, state.horizon.now) if seen is not None else "?"),
        )
    return table

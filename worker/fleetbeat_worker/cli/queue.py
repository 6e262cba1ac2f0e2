"""`fleetbeat queue`: the inbox, the RQ jobs and the workers, as Redis has them now."""

from __future__ import annotations

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.errors import FleetbeatError, SettingsError
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.options import common_options, example, open_database, open_redis
from fleetbeat_worker.cli.output import ago, counted, print_json
from fleetbeat_worker.cli.rendering import console, numeric, plain_table, safe, wrapped
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.notifications.outbox import Outbox, read_outbox
from fleetbeat_worker.workers.status import QueueState, read_queue


@click.command(epilog=example("fleetbeat queue", "fleetbeat queue --json | jq .backlog"))
@common_options
def queue(*, settings: Settings, as_json: bool) -> None:
    """Show the backlog and its oldest message, the rates, how much each worker has claimed, and the workers.

    Waiting and dead notifications are stored in the database; while it is unavailable they are not shown.
    """
    with open_redis(settings) as client, redis_errors(settings.redis_url):
        state = read_queue(client)
    outbox = _read_outbox(settings)
    if as_json:
        counts = None if outbox is None else {"waiting": outbox.waiting, "dead": outbox.dead}
        print_json({**state.to_json(), "notifications": counts})
    else:
        console().print(_queue_text(state, outbox))


def _read_outbox(settings: Settings) -> Outbox | None:
    """Count the notifications in the outbox; None while the database is unavailable."""
    try:
        with open_database(settings) as engine, reading(engine) as connection:
            return read_outbox(connection)
    except SettingsError:
        raise
    except FleetbeatError:
        return None


def _queue_text(state: QueueState, outbox: Outbox | None) -> RenderableType:
    lag = "unknown" if state.lag_seconds is None else format_duration(state.lag_seconds)
    parts: list[RenderableType] = [
        _line("Inbox", f"{counted(state.horizon.backlog, 'message')} not yet in SQL, lag {lag}")
    ]
    if state.horizon.oldest_id:
        age = "of unknown age" if state.lag_seconds is None else f"{format_duration(state.lag_seconds)} old"
        parts.append(_line("Oldest", safe(state.horizon.oldest_id), f", {age}"))
    parts.append(_line("Rates", _rates_text(state)))
    failed = (f"{state.jobs_failed:,} failed", "bold yellow" if state.jobs_failed else "")
    parts.append(_line("RQ jobs", f"{state.jobs_waiting:,} waiting, {state.jobs_started:,} started, ", failed))
    if state.lost:
        lost = f"{counted(state.lost, 'message')} removed unread: an agent trims the inbox. "
        parts.append(_line("Lost", (f"{lost}See: fleetbeat events --type inbox_trimmed", "bold yellow")))
    if outbox is not None and (outbox.waiting or outbox.dead):
        dead = f"{outbox.dead:,} dead: fleetbeat notifications list --state dead" if outbox.dead else "none dead"
        parts.append(_line("Outbox", f"{outbox.waiting:,} waiting, ", (dead, "bold yellow" if outbox.dead else "")))
    if state.workers:
        parts += [_line("Workers", f"{len(state.workers):,}"), Text(), _workers_table(state)]
    else:
        hint = "fleetbeat workers scale 1" if state.pools else "fleetbeat worker"
        parts.append(_line("Workers", (f"none is running. Start one: {hint}", "bold yellow")))
    running = {worker.name for worker in state.workers}
    parts += [
        safe(f"{counted(number, 'message')} claimed by {name}, which isn't running; other workers will take over.")
        for name, number in state.pending.items()
        if name not in running
    ]
    return Group(*parts)


def _line(title: str, *parts: str | Text | tuple[str, str]) -> Text:
    return Text.assemble((f"{title:9}", "bold"), *parts)


def _rates_text(state: QueueState) -> str:
    arrival, drain = state.flow.arrival_rate, state.flow.drain_rate
    if arrival is None or drain is None:
        return "unknown; they are measured while workers run"
    if state.seconds_to_empty is None:
        outlook = "; the backlog does not shrink"
    else:
        outlook = f"; empty in {format_duration(round(state.seconds_to_empty))}" if state.horizon.backlog else ""
    return f"{arrival:,.0f}/s arrive, {drain:,.0f}/s are stored{outlook}"


def _workers_table(state: QueueState) -> Table:
    table = plain_table(wrapped("Worker"), "State", numeric("Claimed"), wrapped("Job"), wrapped("Process"), "Last seen")
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

"""`fleetbeat notifications`: what people were told, what couldn't be told, and whether telling works."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text
from sqlalchemy import Row

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.exit_codes import REFUSED
from fleetbeat_worker.cli.options import common_options, example, json_option, open_database, open_redis
from fleetbeat_worker.cli.output import clock, console, counted, plain_table, print_json, safe
from fleetbeat_worker.cli.types import LIMIT, ROW_ID, NameType, unknown_name
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.notifications.delivery import Outcome
from fleetbeat_worker.notifications.outbox import (
    find_dead,
    read_latest,
    read_outbox,
    read_states,
    request_retry,
)
from fleetbeat_worker.notifications.targets import VARIABLE, parse_targets
from fleetbeat_worker.rules.enums import NoticeState

if TYPE_CHECKING:
    from rich.table import Table


@click.group()
def notifications() -> None:
    """Look at what people were told, send it again, and try whether telling works.

    FLEETBEAT_NOTIFY_URLS says whom to tell; docs/notifications.md has examples.
    """


@notifications.command(
    "list", epilog=example("fleetbeat notifications list", "fleetbeat notifications list --state dead")
)
@click.option("--state", type=click.Choice([state.value for state in NoticeState]), help="Only those in this state.")
@click.option("--agent", "agent_name", type=NameType(), help="Only those about the agent of this name.")
@click.option("--limit", type=LIMIT, default=50, show_default=True, help="At most this many.")
@json_option
@common_options
def list_notifications(
    *, settings: Settings, state: str | None, agent_name: str | None, limit: int, as_json: bool
) -> None:
    """List the latest notifications, the newest last. Exit status 1 if no agent of that name was ever registered."""
    chosen = NoticeState(state) if state else None
    with open_database(settings) as engine, reading(engine) as connection:
        found, outbox = read_latest(connection, limit, state=chosen, agent_name=agent_name), read_outbox(connection)
        unknown = unknown_name(connection, agent_name, found)
    if as_json:
        counts = {"waiting": outbox.waiting, "dead": outbox.dead, "oldest_at": outbox.oldest_at}
        print_json({"outbox": counts, "notifications": [_row_json(row) for row in found]})
    elif found:
        console().print(_table(found))
    elif unknown is None:
        click.echo("No notifications.")
    if unknown is not None:
        raise unknown
    if not as_json and outbox.dead and chosen is not NoticeState.DEAD:
        click.echo(
            f"{counted(outbox.dead, 'notification')} could not be sent: fleetbeat notifications list --state dead"
        )


def _table(found: Sequence[Row[Any]]) -> Table:
    now = datetime.now(UTC)
    table = plain_table()
    table.add_column("Id", justify="right", no_wrap=True)
    table.add_column("Written (UTC)", no_wrap=True)
    table.add_column("Kind", no_wrap=True)
    table.add_column("Agent", overflow="fold")
    table.add_column("State", no_wrap=True)
    table.add_column("Tries", justify="right", no_wrap=True)
    table.add_column("What came of it", overflow="fold")
    for row in found:
        table.add_row(
            Text(str(row.id)),
            Text(clock(row.created_at, now)),
            safe(row.kind),
            safe(row.agent_name or "the fleet"),
            safe(row.state, "bold yellow" if row.state == NoticeState.DEAD else ""),
            Text(f"{row.attempts:,}"),
            _outcome(row, now),
        )
    return table


def _outcome(row: Row[Any], now: datetime) -> Text:
    match row.state:
        case NoticeState.SENT:
            return Text(f"sent {clock(row.sent_at, now)}")
        case NoticeState.UNROUTED:
            return Text(f"no target of {VARIABLE} is for it")
        case NoticeState.WAITING:
            wait = (row.due_at - now).total_seconds()
            when = f"tried again in {format_duration(round(wait))}" if wait > 1 else "to be sent now"
            return safe(f"{when}. {row.failure or ''}")
        case _:
            return safe(row.failure)


def _row_json(row: Row[Any]) -> dict[str, Any]:
    return {name: value for name, value in row._mapping.items() if name != "delivered"} | {  # noqa: SLF001 - SQLAlchemy's public name
        "delivered_to": len(row.delivered or {})
    }


@notifications.command(epilog=example("fleetbeat notifications retry 12 13", "fleetbeat notifications retry --dead"))
@click.argument("ids", metavar="[ID]...", type=ROW_ID, nargs=-1)
@click.option("--dead", "take_dead", is_flag=True, help="All that could not be sent.")
@json_option
@common_options
def retry(*, settings: Settings, ids: tuple[int, ...], take_dead: bool, as_json: bool) -> None:
    """Let workers send notifications once more: at once, and for a day if that fails.

    Who has one already doesn't get it again. Exit status 1 if there is no such notification, or it was sent.
    """
    if bool(ids) == take_dead:
        message = "Give ids, or --dead."
        raise click.UsageError(message)
    with open_redis(settings) as client, open_database(settings) as engine:
        from fleetbeat_shared.connection import redis_errors
        from fleetbeat_worker.broker.server import redis_now
        from fleetbeat_worker.notifications.due import announce_next_due

        with redis_errors(settings.redis_url), writing(engine) as connection:
            chosen = list(dict.fromkeys(ids)) if ids else find_dead(connection)
            _refuse_unfit(chosen, read_states(connection, chosen))
            number = request_retry(connection, chosen, redis_now(client))
        announce_next_due(client, engine)
    if as_json:
        print_json({"retried": number})
    else:
        click.echo(f"{counted(number, 'notification')} will be sent again by the workers.")


def _refuse_unfit(ids: Sequence[int], states: dict[int, NoticeState]) -> None:
    missing = [number for number in ids if number not in states]
    if missing:
        listed = ", ".join(map(str, missing))
        message = f"There is no notification {listed}; nothing was done. See: fleetbeat notifications list"
        raise FleetbeatError(message)
    sent = [number for number in ids if states[number] is NoticeState.SENT]
    if sent:
        listed = ", ".join(map(str, sent))
        message = f"Everybody has notification {listed} already; nothing was done."
        raise FleetbeatError(message)


@notifications.command(epilog=example("fleetbeat notifications test"))
@json_option
@common_options
def test(*, settings: Settings, as_json: bool) -> None:
    """Send a test message to each target of FLEETBEAT_NOTIFY_URLS, and say what came of it.

    It needs neither Redis nor the database. Exit status 1 if any target didn't take it.
    """
    outcomes = _try_all(settings.notify_urls)
    if as_json:
        print_json({"targets": [_outcome_json(outcome) for outcome in outcomes]})
    else:
        for outcome in outcomes:
            result = "took it." if outcome.failure is None else f"did not take it. {outcome.failure}"
            console().print(safe(f"{outcome.target.title} {result}"))
    if any(outcome.failure for outcome in outcomes):
        raise SystemExit(REFUSED)


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    target = outcome.target
    return {"target": target.number, "title": target.title, "taken": outcome.failure is None, "why": outcome.failure}


def _try_all(notify_urls: str) -> list[Outcome]:
    """Send a test message to all targets; return what came of it, in their order. Raises SettingsError."""
    from fleetbeat_worker.notifications.apprise_sender import Sender
    from fleetbeat_worker.notifications.delivery import Delivery, deliver
    from fleetbeat_worker.notifications.messages import compose_test

    targets = parse_targets(notify_urls)
    if not targets:
        error = f"Nobody is told of anything: {VARIABLE} is not set. docs/notifications.md has examples."
        raise FleetbeatError(error)
    message = compose_test(datetime.now(UTC))
    deliveries = [Delivery(Sender(target), [(0, message)]) for target in targets]
    return sorted(deliver(deliveries, lambda: False), key=lambda outcome: outcome.target.number)

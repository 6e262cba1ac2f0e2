"""`fleetbeat notifications`: which were sent, which failed, sending them again, and a test message."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.table import Table
from rich.text import Text
from sqlalchemy import Row

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.exit_codes import REFUSED
from fleetbeat_worker.cli.options import (
    common_options,
    example,
    limit_option,
    open_database,
    open_redis,
    unknown_name,
)
from fleetbeat_worker.cli.output import clock, counted, print_json
from fleetbeat_worker.cli.rendering import console, numeric, plain_table, safe, wrapped
from fleetbeat_worker.cli.types import ROW_ID, NameType
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.notifications.delivery import Outcome
from fleetbeat_worker.notifications.outbox import find_dead, read_latest, read_outbox, read_states, request_retry
from fleetbeat_worker.notifications.targets import VARIABLE, parse_targets
from fleetbeat_worker.rules.enums import NoticeState


@click.group()
def notifications() -> None:
    """Inspect and retry notifications, and send a test message.

    FLEETBEAT_NOTIFY_URLS holds the targets; docs/notifications.md has examples.
    """


@notifications.command(
    "list", epilog=example("fleetbeat notifications list", "fleetbeat notifications list --state dead")
)
@click.option("--state", type=click.Choice([state.value for state in NoticeState]), help="Only those in this state.")
@click.option("--agent", "agent_name", type=NameType(), help="Only those about the agent of this name.")
@limit_option
@common_options
def list_notifications(
    *, settings: Settings, state: str | None, agent_name: str | None, limit: int, as_json: bool
) -> None:
    """List the latest notifications, newest last. Exit status 1 if no agent of the given name was ever registered."""
    chosen = NoticeState(state) if state else None
    with open_database(settings) as engine, reading(engine) as connection:
        found, outbox = read_latest(connection, limit, state=chosen, agent_name=agent_name), read_outbox(connection)
        unknown = unknown_name(connection, agent_name, found)
    if as_json:
        counts = {"waiting": outbox.waiting, "dead": outbox.dead, "oldest_at": outbox.oldest_at}
        print_json({"outbox": counts, "notifications": [_row_json(row) for row in found]})
    elif found:
        console().print(_notifications_table(found))
    elif unknown is None:
        click.echo("No notifications.")
    if unknown is not None:
        raise unknown
    if not as_json and outbox.dead and chosen is not NoticeState.DEAD:
        hint = "See: fleetbeat notifications list --state dead"
        click.echo(f"{counted(outbox.dead, 'notification')} could not be delivered. {hint}")


def _notifications_table(found: Sequence[Row[Any]]) -> Table:
    now = datetime.now(UTC)
    table = plain_table(
        numeric("ID"),
        "Created (UTC)",
        "Kind",
        wrapped("Agent"),
        "State",
        numeric("Attempts"),
        wrapped("Result"),
    )
    for row in found:
        table.add_row(
            Text(str(row.id)),
            Text(clock(row.created_at, now)),
            safe(row.kind),
            safe(row.agent_name or "the fleet"),
            safe(row.state, "bold yellow" if row.state == NoticeState.DEAD else ""),
            Text(f"{row.attempts:,}"),
            _result_text(row, now),
        )
    return table


def _result_text(row: Row[Any], now: datetime) -> Text:
    match row.state:
        case NoticeState.SENT:
            return Text(f"sent {clock(row.sent_at, now)}")
        case NoticeState.UNROUTED:
            return Text(f"no target in {VARIABLE} takes it")
        case NoticeState.WAITING:
            wait = (row.due_at - now).total_seconds()
            when = f"next attempt in {format_duration(round(wait))}" if wait > 1 else "due now"
            return safe(f"{when}. {row.failure or ''}")
        case _:
            return safe(row.failure)


def _row_json(row: Row[Any]) -> dict[str, Any]:
    columns = {name: value for name, value in row._mapping.items() if name != "delivered"}  # noqa: SLF001 - public
    return columns | {"delivered_to": len(row.delivered or {})}


@notifications.command(epilog=example("fleetbeat notifications retry 12 13", "fleetbeat notifications retry --dead"))
@click.argument("ids", metavar="[ID]...", type=ROW_ID, nargs=-1)
@click.option("--dead", "take_dead", is_flag=True, help="All that could not be delivered.")
@common_options
def retry(*, settings: Settings, ids: tuple[int, ...], take_dead: bool, as_json: bool) -> None:
    """Have the workers send notifications again.

    They try for up to a day. Targets that already have one are left out. Exit status 1 if a notification doesn't exist,
    or was sent.
    """
    if bool(ids) == take_dead:
        message = "Give IDs, or --dead."
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
        click.echo(f"The workers will send {counted(number, 'notification')} again.")


def _refuse_unfit(ids: Sequence[int], states: dict[int, NoticeState]) -> None:
    missing = ", ".join(str(number) for number in ids if number not in states)
    if missing:
        message = f"There is no notification {missing}; nothing was done. See: fleetbeat notifications list"
        raise FleetbeatError(message)
    sent = ", ".join(str(number) for number in ids if states[number] is NoticeState.SENT)
    if sent:
        message = f"All targets already have notification {sent}; nothing was done."
        raise FleetbeatError(message)


@notifications.command(epilog=example("fleetbeat notifications test"))
@common_options
def test(*, settings: Settings, as_json: bool) -> None:
    """Send a test message to each target.

    The targets are those of FLEETBEAT_NOTIFY_URLS. It needs neither Redis nor the database. Exit status
    1 if a target could not be reached.
    """
    outcomes = _send_test(settings.notify_urls)
    if as_json:
        print_json({"targets": [_outcome_json(outcome) for outcome in outcomes]})
    else:
        for outcome in outcomes:
            result = "delivered." if outcome.failure is None else f"failed. {outcome.failure}"
            console().print(safe(f"{outcome.target.title}: {result}"))
    if any(outcome.failure for outcome in outcomes):
        raise SystemExit(REFUSED)


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    target, failure = outcome.target, outcome.failure
    return {"target": target.number, "title": target.title, "delivered": failure is None, "failure": failure}


def _send_test(notify_urls: str) -> list[Outcome]:
    """Send a test message to all targets; return the outcomes in the targets' order. Raises SettingsError."""
    from fleetbeat_worker.notifications.apprise_sender import Sender
    from fleetbeat_worker.notifications.delivery import Delivery, deliver
    from fleetbeat_worker.notifications.messages import compose_test

    targets = parse_targets(notify_urls)
    if not targets:
        error = f"No notification can be sent: {VARIABLE} is not set. docs/notifications.md has examples."
        raise FleetbeatError(error)
    message = compose_test(datetime.now(UTC))
    deliveries = [Delivery(Sender(target), [(0, message)]) for target in targets]
    return sorted(deliver(deliveries, lambda: False), key=lambda outcome: outcome.target.number)

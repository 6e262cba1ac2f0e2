"""`fleetbeat rejected`: messages that were set aside with a reason."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group
from rich.text import Text

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.messages import Reason
from fleetbeat_worker.cli.exit_codes import REFUSED
from fleetbeat_worker.cli.options import LIMIT, ROW_ID, common_options, example, json_option, open_database, open_redis
from fleetbeat_worker.cli.output import clock, console, counted, facts_table, plain_table, print_json, safe, stamp
from fleetbeat_worker.database import reading
from fleetbeat_worker.rejected import STORED, apply_again
from fleetbeat_worker.store.rejected import count_rejected, latest_rejected, rejected_ids, rejected_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from sqlalchemy import Engine, Row

    from fleetbeat_shared.settings import Settings

_REASON = click.Choice([reason.value for reason in Reason])


@click.group()
def rejected() -> None:
    """Look at messages that were set aside, and requeue them."""


@rejected.command(
    "list", epilog=example("fleetbeat rejected list", "fleetbeat rejected list --reason unknown_session --limit 200")
)
@click.option("--reason", type=_REASON, help="Only those set aside for this.")
@click.option("--limit", type=LIMIT, default=50, show_default=True, help="At most this many.")
@json_option
@common_options
def list_rejected(*, settings: Settings, reason: str | None, limit: int, as_json: bool) -> None:
    """List the latest rejected messages, the newest last, and count them by reason."""
    with open_database(settings) as engine, reading(engine) as connection:
        counts = count_rejected(connection)
        found = latest_rejected(connection, limit, Reason(reason) if reason else None)
    if as_json:
        print_json({"counts": counts, "rejected": [_row_json(row) for row in found]})
    elif found:
        console().print(_list_text(found, counts))
    else:
        click.echo("No rejected messages.")


def _list_text(found: Sequence[Row[Any]], counts: dict[str, int]) -> RenderableType:
    now = datetime.now(UTC)
    table = plain_table()
    table.add_column("Id", justify="right", no_wrap=True)
    table.add_column("Received (UTC)", no_wrap=True)
    table.add_column("Reason", no_wrap=True)
    table.add_column("Bytes", justify="right", no_wrap=True)
    table.add_column("Detail", overflow="fold")
    for row in found:
        table.add_row(
            Text(str(row.id)),
            Text(clock(row.received_at, now)),
            safe(row.reason),
            Text(f"{row.size:,}"),
            safe(row.detail),
        )
    by_reason = ", ".join(f"{number:,} {reason}" for reason, number in counts.items())
    return Group(table, Text(), safe(f"{counted(sum(counts.values()), 'message')}: {by_reason}"))


@rejected.command(epilog=example("fleetbeat rejected show 12"))
@click.argument("rejected_id", metavar="ID", type=ROW_ID)
@json_option
@common_options
def show(*, settings: Settings, rejected_id: int, as_json: bool) -> None:
    r"""Show one rejected message; bytes that a terminal shouldn't see are written as \x1b and the like."""
    with open_database(settings) as engine, reading(engine) as connection:
        row = rejected_message(connection, rejected_id)
    if row is None:
        message = f"There is no rejected message {rejected_id}; see: fleetbeat rejected list"
        raise FleetbeatError(message)
    if as_json:
        raw = {"raw": visible(row.raw), "raw_base64": base64.b64encode(row.raw).decode()}
        print_json({**_row_json(row), **raw})
        return
    facts = {
        "id": Text(str(row.id)),
        "received": Text(f"{stamp(row.received_at)} UTC"),
        "inbox entry": safe(row.entry_id),
        "reason": safe(row.reason, "bold"),
        "detail": safe(row.detail),
        "session": Text(str(row.session_id or "not known")),
        f"{len(row.raw):,} bytes": Text(visible(row.raw)),
    }
    console().print(facts_table(facts))


@rejected.command(
    epilog=example("fleetbeat rejected requeue 12 13", "fleetbeat rejected requeue --all --reason unknown_session")
)
@click.argument("ids", metavar="[ID]...", type=ROW_ID, nargs=-1)
@click.option("--all", "take_all", is_flag=True, help="All of them, or all with --reason.")
@click.option("--reason", type=_REASON, help="With --all: only those set aside for this.")
@json_option
@common_options
def requeue(*, settings: Settings, ids: tuple[int, ...], take_all: bool, reason: str | None, as_json: bool) -> None:
    """Take rejected messages up once more, with the time at which they were received.

    What is accepted now leaves the list; the rest stays. Exit status 1 if any stays.
    """
    if bool(ids) == take_all or (reason and not take_all):
        message = "Give ids, or --all, or --all with --reason."
        raise click.UsageError(message)
    outcomes = []
    with open_database(settings) as engine, open_redis(settings) as client:
        chosen = _choose(engine, list(dict.fromkeys(ids)), Reason(reason) if reason else None)
        for number, outcome in apply_again(settings, engine, client, chosen):
            outcomes.append((number, outcome))
            if not as_json:
                click.echo(f"{number}: {outcome}")  # at once: if the database goes away, what was done is told
    stored = sum(outcome == STORED for _, outcome in outcomes)
    if as_json:
        print_json({"results": [{"id": number, "outcome": outcome} for number, outcome in outcomes]})
    else:
        click.echo(f"{counted(stored, 'message')} stored, {len(outcomes) - stored:,} still rejected.")
    if stored < len(outcomes):
        raise SystemExit(REFUSED)


def _choose(engine: Engine, ids: list[int], reason: Reason | None) -> list[int]:
    """Return which rejected messages are meant: those with the ids, which must be there, or all with the reason."""
    with reading(engine) as connection:
        known = rejected_ids(connection, reason)
    missing = sorted(set(ids) - set(known))
    if missing:
        listed = ", ".join(str(number) for number in missing)
        message = f"There is no rejected message {listed}; nothing was done. See: fleetbeat rejected list"
        raise FleetbeatError(message)
    return ids or known


def visible(raw: bytes) -> str:
    r"""Return bytes as text that hides nothing and does nothing: what can't be printed becomes `\x1b` and the like."""
    text = raw.decode("utf-8", errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _row_json(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "entry_id": row.entry_id,
        "received_at": row.received_at,
        "reason": row.reason,
        "detail": row.detail,
        "session_id": row.session_id,
        "size": row.size if hasattr(row, "size") else len(row.raw),
    }

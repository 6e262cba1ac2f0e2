"""`fleetbeat rejected`: messages that were set aside with a reason."""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Group
from rich.text import Text
from sqlalchemy import Engine, Row

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.messages import Reason
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import parse_duration
from fleetbeat_worker.cli.exit_codes import REFUSED
from fleetbeat_worker.cli.options import common_options, example, json_option, open_database, open_redis
from fleetbeat_worker.cli.output import clock, console, counted, facts_table, plain_table, print_json, safe, stamp
from fleetbeat_worker.cli.types import LIMIT, ROW_ID, NameType
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.ingest.rejected import PURGED_AT_ONCE, STORED, apply_again, purge as purge_rejected
from fleetbeat_worker.ingest.rejected_rows import (
    Choice,
    count_rejected,
    latest_rejected,
    rejected_ids,
    rejected_message,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

LINES_SHOWN = 20
"""Of more messages than these, only counts and a progress bar are shown."""

_C = TypeVar("_C")


def _seconds(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _choosing(command: Callable[..., _C]) -> Callable[..., _C]:
    """Give a command the options that choose rejected messages, and call it with `choice`."""

    @click.option("--reason", type=click.Choice([one.value for one in Reason]), help="Only those set aside for this.")
    @click.option("--agent", "agent_name", type=NameType(), help="Only those of the agent of this name.")
    @click.option("--older-than", metavar="DURATION", callback=_seconds, help="Only those received before: 7d, 12h.")
    @click.option("--younger-than", metavar="DURATION", callback=_seconds, help="Only those received since: 10m, 1d.")
    @wraps(command)
    def with_choice(
        *args: Any,  # noqa: ANN401 - the command's own
        reason: str | None,
        agent_name: str | None,
        older_than: float | None,
        younger_than: float | None,
        **kwargs: Any,  # noqa: ANN401 - the command's own
    ) -> _C:
        choice = Choice(
            Reason(reason) if reason else None,
            agent_name,
            before=_ago(older_than),
            after=_ago(younger_than),
        )
        return command(*args, choice=choice, **kwargs)

    return with_choice


def _ago(seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds)
    except OverflowError:
        message = "A duration is too long; write for example 30d."
        raise click.UsageError(message) from None


@click.group()
def rejected() -> None:
    """Look at messages that were set aside, requeue them, and purge them."""


@rejected.command(
    "list", epilog=example("fleetbeat rejected list", "fleetbeat rejected list --reason unknown_session --limit 200")
)
@_choosing
@click.option("--limit", type=LIMIT, default=50, show_default=True, help="At most this many.")
@json_option
@common_options
def list_rejected(*, settings: Settings, choice: Choice, limit: int, as_json: bool) -> None:
    """List the latest rejected messages, the newest last, and count them by reason."""
    with open_database(settings) as engine, reading(engine) as connection:
        counts = count_rejected(connection)
        found = latest_rejected(connection, limit, choice)
    if as_json:
        print_json({"counts": counts, "rejected": [_row_json(row) for row in found]})
    elif found:
        console().print(_list_text(found, counts))
    else:
        others = f" fit, of {_by_reason(counts)}" if counts else ""
        click.echo(f"No rejected messages{others}.")


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
    return Group(table, Text(), safe(f"In all {_by_reason(counts)}"))


def _by_reason(counts: dict[str, int]) -> str:
    by_reason = ", ".join(f"{number:,} {reason}" for reason, number in counts.items())
    return f"{counted(sum(counts.values()), 'message')}: {by_reason}"


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
    epilog=example(
        "fleetbeat rejected requeue 12 13", "fleetbeat rejected requeue --reason unknown_session --younger-than 1d"
    )
)
@click.argument("ids", metavar="[ID]...", type=ROW_ID, nargs=-1)
@click.option("--all", "take_all", is_flag=True, help="All of them, or all that the other options choose.")
@_choosing
@json_option
@common_options
def requeue(*, settings: Settings, ids: tuple[int, ...], take_all: bool, choice: Choice, as_json: bool) -> None:
    """Take rejected messages up once more, with the time at which they were received.

    What is accepted now leaves the list, in the transaction that stores it; the rest stays. Exit status 1 if any stays.
    It may be stopped at any time and given again.
    """
    chosen: list[int] = []
    outcomes: list[tuple[int, str]] = []
    try:
        with open_database(settings) as engine, open_redis(settings) as client:
            chosen = _choose(engine, ids, choice, take_all=take_all)
            for number, outcome in _with_bar(apply_again(settings, engine, client, chosen), len(chosen), "Requeueing"):
                outcomes.append((number, outcome))
                if not as_json and len(chosen) <= LINES_SHOWN:
                    click.echo(f"{number}: {outcome}")  # at once: if the database goes away, what was done is told
    finally:
        counts = Counter(outcome for _, outcome in outcomes)
        if not as_json and (outcomes or not sys.exc_info()[0]):
            left = ", ".join(f"{number:,} {name}" for name, number in counts.items() if name != STORED)
            still = f"{len(outcomes) - counts[STORED]:,} still rejected"
            listed = f" ({left})" if left and len(outcomes) > LINES_SHOWN else ""
            untried = len(chosen) - len(outcomes)
            rest = f", {untried:,} not tried" if untried else ""
            click.echo(f"{counted(counts[STORED], 'message')} stored, {still}{listed}{rest}.")
    if as_json:
        print_json({"results": [{"id": number, "outcome": outcome} for number, outcome in outcomes]})
    if counts[STORED] < len(outcomes):
        raise SystemExit(REFUSED)


@rejected.command(
    epilog=example(
        "fleetbeat rejected purge 12 13", "fleetbeat rejected purge --reason not_json --older-than 30d --yes"
    )
)
@click.argument("ids", metavar="[ID]...", type=ROW_ID, nargs=-1)
@click.option("--all", "take_all", is_flag=True, help="All of them, or all that the other options choose.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@_choosing
@json_option
@common_options
def purge(  # noqa: PLR0913 - one argument for each option
    *, settings: Settings, ids: tuple[int, ...], take_all: bool, yes: bool, choice: Choice, as_json: bool
) -> None:
    """Throw rejected messages away for good. Asks before; exit status 1 if the answer is no."""
    with open_database(settings) as engine:
        chosen = _choose(engine, ids, choice, take_all=take_all)
        what = counted(len(chosen), "rejected message")
        if chosen and not yes and not _agreed(f"Throw {what} away for good?"):
            click.echo("Nothing was purged.", err=True)
            raise SystemExit(REFUSED)
        slices = -(-len(chosen) // PURGED_AT_ONCE)
        purged = sum(_with_bar(purge_rejected(engine, chosen), slices, "Purging"))
    if as_json:
        print_json({"purged": purged})
    else:
        click.echo(f"{counted(purged, 'rejected message')} purged.")


def _agreed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:  # Ctrl-C, or no answer to be had
        click.echo(err=True)
        return False


def _with_bar(steps: Iterable[_C], total: int, title: str) -> Iterator[_C]:
    """Yield the steps; if there are many, show on a terminal how far they are."""
    from rich.console import Console
    from rich.progress import track

    bar = Console(stderr=True)
    hidden = not bar.is_terminal or total <= 1
    yield from track(steps, title, total=total, console=bar, disable=hidden, transient=True)


def _choose(engine: Engine, ids: tuple[int, ...], choice: Choice, *, take_all: bool) -> list[int]:
    """Return which rejected messages are meant: those with the ids, which must be there, or all that are chosen."""
    by_options = take_all or choice != Choice()
    if bool(ids) == by_options:
        message = "Give ids, or options that choose, or --all."
        raise click.UsageError(message)
    with reading(engine) as connection:
        known = rejected_ids(connection, choice)
    missing = sorted(set(ids) - set(known))
    if missing:
        listed = ", ".join(str(number) for number in missing)
        message = f"There is no rejected message {listed}; nothing was done. See: fleetbeat rejected list"
        raise FleetbeatError(message)
    return list(dict.fromkeys(ids)) or known


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

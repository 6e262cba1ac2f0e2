"""`fleetbeat rejected`: messages that could not be stored, each with the reason."""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, TypeVar

import click
from rich.console import Group, RenderableType
from rich.text import Text
from sqlalchemy import Engine, Row

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.messages import Reason
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli.exit_codes import REFUSED
from fleetbeat_worker.cli.options import common_options, example, limit_option, open_database, open_redis
from fleetbeat_worker.cli.output import clock, counted, print_json, stamp
from fleetbeat_worker.cli.rendering import console, facts_table, numeric, plain_table, progress_bar, safe, wrapped
from fleetbeat_worker.cli.types import ROW_ID, DurationType, NameType
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.ingest.rejected import (
    PURGED_AT_ONCE,
    STORED,
    Choice,
    count_rejected,
    latest_rejected,
    purge as purge_rejected,
    rejected_ids,
    rejected_message,
)

LINES_SHOWN = 20
"""Of more messages than these, only counts and a progress bar are shown."""

_T = TypeVar("_T")


def _filter_options(command: Callable[..., _T]) -> Callable[..., _T]:
    """Give a command the options that choose rejected messages, and call it with `choice`."""

    @click.option("--reason", type=click.Choice([one.value for one in Reason]), help="Only those with this reason.")
    @click.option("--agent", "agent_name", type=NameType(), help="Only those of the agent of this name.")
    @click.option("--older-than", type=DurationType(zero=True), help="Only those received before: 7d, 12h.")
    @click.option("--younger-than", type=DurationType(zero=True), help="Only those received since: 10m, 1d.")
    @wraps(command)
    def with_choice(
        *args: Any,  # noqa: ANN401 - the command's own
        reason: str | None,
        agent_name: str | None,
        older_than: timedelta | None,
        younger_than: timedelta | None,
        **kwargs: Any,  # noqa: ANN401 - the command's own
    ) -> _T:
        now = datetime.now(UTC)
        choice = Choice(
            Reason(reason) if reason else None,
            agent_name,
            before=None if older_than is None else now - older_than,
            after=None if younger_than is None else now - younger_than,
        )
        return command(*args, choice=choice, **kwargs)

    return with_choice


def _choice_options(command: Callable[..., _T]) -> Callable[..., _T]:
    """Give a command IDs, `--all` and the filters, and call it with `ids`, `take_all` and `choice`."""
    command = click.option("--all", "take_all", is_flag=True, help="All, or all that the other options choose.")(
        _filter_options(command)
    )
    return click.argument("ids", metavar="[ID]...", type=ROW_ID, nargs=-1)(command)


@click.group()
def rejected() -> None:
    """Inspect, requeue and purge rejected messages."""


@rejected.command(
    "list", epilog=example("fleetbeat rejected list", "fleetbeat rejected list --reason unknown_session --limit 200")
)
@_filter_options
@limit_option
@common_options
def list_rejected(*, settings: Settings, choice: Choice, limit: int, as_json: bool) -> None:
    """List the latest rejected messages, newest last, then the number of all by reason."""
    with open_database(settings) as engine, reading(engine) as connection:
        counts = count_rejected(connection)
        found = latest_rejected(connection, limit, choice)
    if as_json:
        print_json({"counts": counts, "rejected": [_row_json(row) for row in found]})
    elif found:
        console().print(_list_text(found, counts))
    elif counts:
        click.echo(f"None of the rejected messages matches. There are {_by_reason(counts)}.")
    else:
        click.echo("No rejected messages.")


def _list_text(found: Sequence[Row[Any]], counts: dict[str, int]) -> RenderableType:
    now = datetime.now(UTC)
    table = plain_table(numeric("ID"), "Received (UTC)", "Reason", numeric("Bytes"), wrapped("Detail"))
    for row in found:
        table.add_row(
            Text(str(row.id)),
            Text(clock(row.received_at, now)),
            safe(row.reason),
            Text(f"{row.size:,}"),
            safe(row.detail),
        )
    return Group(table, Text(), safe(f"In total {_by_reason(counts)}"))


def _by_reason(counts: dict[str, int]) -> str:
    by_reason = ", ".join(f"{number:,} {reason}" for reason, number in counts.items())
    return f"{counted(sum(counts.values()), 'message')}: {by_reason}"


@rejected.command(epilog=example("fleetbeat rejected show 12"))
@click.argument("rejected_id", metavar="ID", type=ROW_ID)
@common_options
def show(*, settings: Settings, rejected_id: int, as_json: bool) -> None:
    r"""Show one rejected message. Bytes that can't be printed are written as \x1b and the like."""
    with open_database(settings) as engine, reading(engine) as connection:
        row = rejected_message(connection, rejected_id)
    if row is None:
        message = f"There is no rejected message {rejected_id}. See: fleetbeat rejected list"
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
        "session": Text(str(row.session_id or "unknown")),
        f"{len(row.raw):,} bytes": Text(visible(row.raw)),
    }
    console().print(facts_table(facts))


def visible(raw: bytes) -> str:
    r"""Convert bytes to text that hides nothing and does nothing: what can't be printed becomes `\x1b` and the like."""
    text = raw.decode("utf-8", errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _row_json(row: Row[Any]) -> dict[str, Any]:
    names = ("id", "entry_id", "received_at", "reason", "detail", "session_id")
    size = row.size if hasattr(row, "size") else len(row.raw)
    return {name: getattr(row, name) for name in names} | {"size": size}


@rejected.command(
    epilog=example(
        "fleetbeat rejected requeue 12 13", "fleetbeat rejected requeue --reason unknown_session --younger-than 1d"
    )
)
@_choice_options
@common_options
def requeue(*, settings: Settings, ids: tuple[int, ...], take_all: bool, choice: Choice, as_json: bool) -> None:
    """Try to store rejected messages again.

    They count as of the time at which they were first received. A message that is accepted now leaves the list in the
    transaction that stores it; the others stay. Exit status 1 if any stays. It can be stopped at any time and run
    again.
    """
    from fleetbeat_worker.ingest.requeue import apply_again  # it brings RQ

    chosen: list[int] = []
    outcomes: list[tuple[int, str]] = []
    try:
        with open_database(settings) as engine, open_redis(settings) as client:
            chosen = _choose(engine, ids, choice, take_all=take_all)
            steps = apply_again(settings, engine, client, chosen)
            for number, outcome in _with_progress(steps, len(chosen), "Requeueing"):
                outcomes.append((number, outcome))
                if not as_json and len(chosen) <= LINES_SHOWN:
                    click.echo(f"{number}: {outcome}")  # at once: it is known even if the database then goes away
    finally:
        if not as_json and (outcomes or not sys.exc_info()[0]):
            click.echo(_requeue_summary(outcomes, len(chosen)))
    if as_json:
        print_json({"results": [{"id": number, "outcome": outcome} for number, outcome in outcomes]})
    if any(outcome != STORED for _, outcome in outcomes):
        raise SystemExit(REFUSED)


def _requeue_summary(outcomes: Sequence[tuple[int, str]], chosen: int) -> str:
    counts = Counter(outcome for _, outcome in outcomes)
    reasons = ", ".join(f"{number:,} {name}" for name, number in counts.items() if name != STORED)
    listed = f" ({reasons})" if reasons and len(outcomes) > LINES_SHOWN else ""
    untried = chosen - len(outcomes)
    rest = f", {untried:,} not tried" if untried else ""
    stored, still = counts[STORED], len(outcomes) - counts[STORED]
    return f"{counted(stored, 'message')} stored, {still:,} still rejected{listed}{rest}."


@rejected.command(
    epilog=example(
        "fleetbeat rejected purge 12 13", "fleetbeat rejected purge --reason not_json --older-than 30d --yes"
    )
)
@_choice_options
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@common_options
def purge(  # noqa: PLR0913 - one argument for each option
    *, settings: Settings, ids: tuple[int, ...], take_all: bool, yes: bool, choice: Choice, as_json: bool
) -> None:
    """Delete rejected messages for good, after asking. Exit status 1 if the answer is no."""
    with open_database(settings) as engine:
        chosen = _choose(engine, ids, choice, take_all=take_all)
        what = counted(len(chosen), "rejected message")
        if chosen and not yes and not _confirm(f"Delete {what} for good?"):
            click.echo("Nothing was purged.", err=True)
            raise SystemExit(REFUSED)
        slices = -(-len(chosen) // PURGED_AT_ONCE)
        purged = sum(_with_progress(purge_rejected(engine, chosen), slices, "Purging"))
    if as_json:
        print_json({"purged": purged})
    else:
        click.echo(f"{counted(purged, 'rejected message')} purged.")


def _confirm(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:  # Ctrl-C, or the end of the input
        click.echo(err=True)
        return False


def _with_progress(steps: Iterable[_T], total: int, title: str) -> Iterator[_T]:
    """Yield the steps, with a progress bar on a terminal if there are several."""
    with progress_bar(title, shown=total > 1, total=lambda: total) as update:
        for step in steps:
            yield step
            update(advance=1)


def _choose(engine: Engine, ids: tuple[int, ...], choice: Choice, *, take_all: bool) -> list[int]:
    """Find the rejected messages with the IDs, all of which must exist, or all that the options choose."""
    by_options = take_all or choice != Choice()
    if bool(ids) == by_options:
        message = "Give IDs, or options that choose, or --all."
        raise click.UsageError(message)
    with reading(engine) as connection:
        known = rejected_ids(connection, choice)
    missing = ", ".join(map(str, sorted(set(ids) - set(known))))
    if missing:
        message = f"There is no rejected message {missing}; nothing was done. See: fleetbeat rejected list"
        raise FleetbeatError(message)
    return list(dict.fromkeys(ids)) or known

"""`fleetbeat maintenance`: times in which nobody is flagged."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.schedules import check_schedule, find_time_zone, slots_after
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.cli.options import common_options, example, json_option, open_database, open_redis
from fleetbeat_worker.cli.output import console, plain_table, print_json, safe, stamp
from fleetbeat_worker.cli.pauses import Reason
from fleetbeat_worker.cli.types import ROW_ID, DurationType, MomentType
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.downtime.maintenance import add_rule, end_rules, end_running_windows, read_rules
from fleetbeat_worker.rules.maintenance_windows import Window, WindowRule, find_fault, next_start, running, windows_of

if TYPE_CHECKING:
    from rich.table import Table

SLOTS_COMPARED = 100
"""How many of a schedule's times are looked at to tell whether its windows would leave no time between them."""


@click.group()
def maintenance() -> None:
    """Have nobody flagged for a time. At its end every agent's clock starts anew.

    Of windows that come again and again the first one starts it anew; the others move its deadline by their time.
    """


@maintenance.command(
    epilog=example(
        'fleetbeat maintenance start --for 2h --reason "database upgrade"',
        "fleetbeat maintenance start --at 2026-01-31T22:00 --for 1h",
        'fleetbeat maintenance start --cron "0 3 * * 0" --time-zone Europe/Berlin --for 1h',
    )
)
@click.option("--for", "length", type=DurationType(), help="How long: 30m, 2h; until `end` if not given.")
@click.option(
    "--at",
    "start_at",
    type=MomentType("2h for in two hours"),
    help="When it begins: ISO 8601, or 2h for in two hours; now if not given.",
)
@click.option("--cron", metavar="EXPRESSION", help="Again and again, at the times of a cron expression of five fields.")
@click.option("--time-zone", metavar="ZONE", help="IANA name of the zone that --cron means; UTC if not given.")
@click.option("--reason", type=Reason(), help="Why; shown on the dashboard and in events.")
@json_option
@common_options
def start(  # noqa: PLR0913 - one parameter per option
    *,
    settings: Settings,
    length: timedelta | None,
    start_at: datetime | timedelta | None,
    cron: str | None,
    time_zone: str | None,
    reason: str | None,
    as_json: bool,
) -> None:
    """Begin maintenance, now or later, once or again and again."""
    schedule, zone = _checked(cron, time_zone, length)
    now = _redis_time(settings)
    rule = WindowRule(_start_of(start_at, now), reason=reason)
    if schedule is not None and length is not None:
        _refuse_without_gaps(schedule, zone, rule.starts_at, length)
        rule = WindowRule(
            rule.starts_at,
            schedule=schedule,
            time_zone=zone,
            duration_seconds=length.total_seconds(),
            reason=reason,
        )
    elif length is not None:
        rule = WindowRule(rule.starts_at, rule.starts_at + length, reason=reason)
    with open_database(settings) as engine, writing(engine) as connection:
        number = add_rule(connection, rule, now)
    if as_json:
        print_json({"ok": True, **_json(number, rule, now)})
    else:
        click.echo(f"Maintenance {number}: {_span(rule)}. End it with: fleetbeat maintenance end {number}")


@maintenance.command("list", epilog=example("fleetbeat maintenance list", "fleetbeat maintenance list --all"))
@click.option("--all", "show_all", is_flag=True, help="What is over, too.")
@json_option
@common_options
def list_maintenance(*, settings: Settings, show_all: bool, as_json: bool) -> None:
    """List what runs, what is to come, and with --all what is over."""
    now = _redis_time(settings)
    with open_database(settings) as engine, reading(engine) as connection:
        rules = read_rules(connection, None if show_all else now)
    if as_json:
        print_json({"maintenance": [_json(number, rule, now) for number, rule in rules.items()]})
    elif rules:
        console().print(_table(rules, now))
    else:
        click.echo("No maintenance. Begin some: fleetbeat maintenance start --for 2h")


@maintenance.command(epilog=example("fleetbeat maintenance end", "fleetbeat maintenance end 3"))
@click.argument("number", type=ROW_ID, required=False, metavar="[ID]")
@json_option
@common_options
def end(*, settings: Settings, number: int | None, as_json: bool) -> None:
    """End what runs now; with an ID that maintenance, for good, whether it runs or not.

    Without an ID, recurring maintenance comes again at its next time.
    """
    now = _redis_time(settings)
    with open_database(settings) as engine, writing(engine) as connection:
        rules = read_rules(connection, now)
        if number is not None:
            if number not in rules:
                message = f"There is no maintenance {number} that isn't over. See: fleetbeat maintenance list --all"
                raise FleetbeatError(message)
            ended = {number: rules[number]}
            end_rules(connection, [number], now)
        else:
            ended = {key: rule for key, rule in rules.items() if _running(rule, now)}
            if not ended:
                message = "No maintenance runs now. See: fleetbeat maintenance list"
                raise FleetbeatError(message)
            end_rules(connection, [key for key, rule in ended.items() if rule.schedule is None], now)
            end_running_windows(connection, [key for key, rule in ended.items() if rule.schedule is not None], now)
        rules = read_rules(connection)
    if as_json:
        print_json({"ok": True, "ended": [_json(key, rules[key], now) for key in ended]})
        return
    for key in ended:
        again = _next(rules[key], now)
        to_come = f" It comes again at {stamp(again)} UTC, unless: fleetbeat maintenance end {key}" if again else ""
        click.echo(f"Ended maintenance {key}.{to_come}")


def _checked(cron: str | None, time_zone: str | None, length: timedelta | None) -> tuple[str | None, str]:
    if cron is None:
        if time_zone is not None:
            message = "--time-zone goes with --cron; --at takes a zone in the time itself (2026-01-31T22:00+01:00)."
            raise click.UsageError(message)
        return None, "UTC"
    if length is None:
        message = "--cron needs --for: how long each of its times lasts."
        raise click.UsageError(message)
    try:
        return check_schedule(cron), find_time_zone(time_zone or "UTC").key
    except ValueError as error:
        message = f"{error}."
        raise click.UsageError(message) from error


def _start_of(start_at: datetime | timedelta | None, now: datetime) -> datetime:
    moment = now + start_at if isinstance(start_at, timedelta) else start_at or now
    if moment < now:
        message = f"{stamp(moment)} UTC is over: what was flagged then stays so. Leave --at out to begin now."
        raise click.UsageError(message)
    return moment


def _refuse_without_gaps(schedule: str, zone: str, since: datetime, length: timedelta) -> None:
    slots = islice(slots_after(schedule, zone, since), SLOTS_COMPARED)
    shortest = min(later - earlier for earlier, later in pairwise(slots))
    if length >= shortest:
        message = (
            f"Each of its times would last {format_duration(length.total_seconds())}, but they come "
            f"{format_duration(shortest.total_seconds())} apart: nobody would ever be flagged. Give a shorter --for."
        )
        raise click.UsageError(message)


def _redis_time(settings: Settings) -> datetime:
    with open_redis(settings) as client, redis_errors(settings.redis_url):
        return Inbox(client).horizon().now


def _running(rule: WindowRule, now: datetime) -> Window | None:
    return None if find_fault(rule) else running(windows_of([rule], now, now), now)


def _state(rule: WindowRule, now: datetime) -> str:
    if find_fault(rule):
        return "unusable"
    if _running(rule, now):
        return "running"
    return "planned" if _next(rule, now) else "over"


def _next(rule: WindowRule, now: datetime) -> datetime | None:
    return None if find_fault(rule) else next_start(rule, now)


def _json(number: int, rule: WindowRule, now: datetime) -> dict[str, Any]:
    window = _running(rule, now)
    return {
        "id": number,
        "state": _state(rule, now),
        "starts_at": rule.starts_at,
        "ends_at": rule.ends_at,
        "schedule": rule.schedule,
        "time_zone": rule.time_zone,
        "duration_seconds": rule.duration_seconds,
        "reason": rule.reason,
        "ended_at": rule.ended_at,
        "running_until": window.ends_at if window else None,
        "next_start": _next(rule, now),
        "fault": find_fault(rule),
    }


def _span(rule: WindowRule) -> str:
    ended = f", ended at {stamp(rule.ended_at)} UTC" if rule.ended_at else ""
    if rule.schedule is not None:
        length = format_duration(rule.duration_seconds or 0)
        return f"{length} each time at {rule.schedule} ({rule.time_zone}), from {stamp(rule.starts_at)} UTC on{ended}"
    end_at = f" until {stamp(rule.ends_at)} UTC" if rule.ends_at else "" if ended else " until somebody ends it"
    return f"from {stamp(rule.starts_at)} UTC{end_at}{ended}"


def _table(rules: Mapping[int, WindowRule], now: datetime) -> Table:
    table = plain_table()
    table.add_column("ID", no_wrap=True)
    table.add_column("State", no_wrap=True)
    table.add_column("When", overflow="fold")
    table.add_column("Next (UTC)", no_wrap=True)
    table.add_column("Reason", overflow="fold")
    for number, rule in rules.items():
        again, state, fault = _next(rule, now), _state(rule, now), find_fault(rule)
        table.add_row(
            Text(str(number)),
            Text(state, style="bold magenta" if state == "running" else ""),
            safe(_span(rule)),
            Text(stamp(again) if again else ""),
            safe(f"{fault}. End it, and start it anew.", "bold yellow") if fault else safe(rule.reason),
        )
    return table

"""`fleetbeat maintenance`: windows in which no agent is flagged."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import islice, pairwise
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.schedules import check_schedule, find_time_zone, slots_after
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.options import common_options, example, open_database, read_redis_time
from fleetbeat_worker.cli.output import print_json, stamp
from fleetbeat_worker.cli.rendering import console, plain_table, safe, wrapped
from fleetbeat_worker.cli.types import ROW_ID, DurationType, LineType, MomentType
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.downtime.maintenance import add_rule, end_rules, end_running_windows, read_rules
from fleetbeat_worker.rules.maintenance_windows import Window, WindowRule, find_fault, next_start, running, windows_of

SLOTS_COMPARED = 100
"""How many times of a schedule are compared to find out whether its windows would leave no gap."""


@click.group()
def maintenance() -> None:
    """Manage maintenance windows, one-off or recurring.

    No agent is flagged in a window, and at its end every agent's deadline restarts. Of recurring windows only the first
    restarts deadlines; each later one extends them by its length.
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
    help="When it starts: ISO 8601, or 2h for in two hours; now if not given.",
)
@click.option("--cron", metavar="EXPRESSION", help="Make it recurring, at the times of a five-field cron expression.")
@click.option("--time-zone", metavar="ZONE", help="IANA time zone of --cron; UTC if not given.")
@click.option("--reason", type=LineType("reason"), help="Why; shown on the dashboard and in events.")
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
    """Start maintenance, now or later, once or recurring."""
    schedule, zone = _check_schedule(cron, time_zone, length)
    now = read_redis_time(settings)
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
        print_json({"ok": True, **_rule_json(number, rule, now)})
    else:
        click.echo(f"Maintenance {number}: {_times_text(rule)}. End it with: fleetbeat maintenance end {number}")


@maintenance.command("list", epilog=example("fleetbeat maintenance list", "fleetbeat maintenance list --all"))
@click.option("--all", "show_all", is_flag=True, help="Include past maintenance.")
@common_options
def list_maintenance(*, settings: Settings, show_all: bool, as_json: bool) -> None:
    """List running and planned maintenance."""
    now = read_redis_time(settings)
    with open_database(settings) as engine, reading(engine) as connection:
        rules = read_rules(connection, None if show_all else now)
    if as_json:
        print_json({"maintenance": [_rule_json(number, rule, now) for number, rule in rules.items()]})
    elif rules:
        console().print(_rules_table(rules, now))
    else:
        click.echo("No maintenance. Start some: fleetbeat maintenance start --for 2h")


@maintenance.command(epilog=example("fleetbeat maintenance end", "fleetbeat maintenance end 3"))
@click.argument("number", type=ROW_ID, required=False, metavar="[ID]")
@common_options
def end(*, settings: Settings, number: int | None, as_json: bool) -> None:
    """End the running maintenance, or that with an ID.

    With an ID it ends for good, running or planned. Without one, recurring maintenance runs again at its next time.
    """
    now = read_redis_time(settings)
    with open_database(settings) as engine, writing(engine) as connection:
        rules = read_rules(connection, now)
        if number is not None:
            if number not in rules:
                message = f"No maintenance {number} is running or planned. See: fleetbeat maintenance list --all"
                raise FleetbeatError(message)
            ended = [number]
            end_rules(connection, ended, now)
        else:
            ended = [key for key, rule in rules.items() if _running_window(rule, now)]
            if not ended:
                message = "No maintenance is running. See: fleetbeat maintenance list"
                raise FleetbeatError(message)
            end_rules(connection, [key for key in ended if rules[key].schedule is None], now)
            end_running_windows(connection, [key for key in ended if rules[key].schedule is not None], now)
        rules = read_rules(connection)
    if as_json:
        print_json({"ok": True, "ended": [_rule_json(key, rules[key], now) for key in ended]})
        return
    for key in ended:
        again = _next_start(rules[key], now)
        click.echo(f"Ended maintenance {key}.")
        if again:
            click.echo(f"It runs again at {stamp(again)} UTC. To prevent that: fleetbeat maintenance end {key}")


def _check_schedule(cron: str | None, time_zone: str | None, length: timedelta | None) -> tuple[str | None, str]:
    if cron is None:
        if time_zone is not None:
            message = "--time-zone goes with --cron; --at takes a zone in the time itself (2026-01-31T22:00+01:00)."
            raise click.UsageError(message)
        return None, "UTC"
    if length is None:
        message = "--cron needs --for: the length of each window."
        raise click.UsageError(message)
    try:
        return check_schedule(cron), find_time_zone(time_zone or "UTC").key
    except ValueError as error:
        message = f"{error}."
        raise click.UsageError(message) from error


def _start_of(start_at: datetime | timedelta | None, now: datetime) -> datetime:
    moment = now + start_at if isinstance(start_at, timedelta) else start_at or now
    if moment < now:
        message = f"{stamp(moment)} UTC is past, and maintenance undoes no earlier flag. Omit --at to start now."
        raise click.UsageError(message)
    return moment


def _refuse_without_gaps(schedule: str, zone: str, since: datetime, length: timedelta) -> None:
    slots = islice(slots_after(schedule, zone, since), SLOTS_COMPARED)
    shortest = min(later - earlier for earlier, later in pairwise(slots))
    if length >= shortest:
        message = (
            f"Each window would last {format_duration(length.total_seconds())}, but the next starts after "
            f"{format_duration(shortest.total_seconds())}: no agent would ever be flagged. Give a shorter --for."
        )
        raise click.UsageError(message)


def _running_window(rule: WindowRule, now: datetime) -> Window | None:
    return None if find_fault(rule) else running(windows_of([rule], now, now), now)


def _next_start(rule: WindowRule, now: datetime) -> datetime | None:
    return None if find_fault(rule) else next_start(rule, now)


def _state_of(rule: WindowRule, now: datetime) -> str:
    if find_fault(rule):
        return "unusable"
    if _running_window(rule, now):
        return "running"
    return "planned" if _next_start(rule, now) else "over"


def _rule_json(number: int, rule: WindowRule, now: datetime) -> dict[str, Any]:
    window = _running_window(rule, now)
    return {
        "id": number,
        "state": _state_of(rule, now),
        "starts_at": rule.starts_at,
        "ends_at": rule.ends_at,
        "schedule": rule.schedule,
        "time_zone": rule.time_zone,
        "duration_seconds": rule.duration_seconds,
        "reason": rule.reason,
        "ended_at": rule.ended_at,
        "running_until": window.ends_at if window else None,
        "next_start": _next_start(rule, now),
        "fault": find_fault(rule),
    }


def _times_text(rule: WindowRule) -> str:
    ended = f", ended at {stamp(rule.ended_at)} UTC" if rule.ended_at else ""
    if rule.schedule is not None:
        length = format_duration(rule.duration_seconds or 0)
        return f"{length} each time at {rule.schedule} ({rule.time_zone}), from {stamp(rule.starts_at)} UTC on{ended}"
    until = f" until {stamp(rule.ends_at)} UTC" if rule.ends_at else "" if ended else " until ended"
    return f"from {stamp(rule.starts_at)} UTC{until}{ended}"


def _rules_table(rules: Mapping[int, WindowRule], now: datetime) -> Table:
    table = plain_table("ID", "State", wrapped("When"), "Next (UTC)", wrapped("Reason"))
    for number, rule in rules.items():
        again, state, fault = _next_start(rule, now), _state_of(rule, now), find_fault(rule)
        table.add_row(
            Text(str(number)),
            Text(state, style="bold magenta" if state == "running" else ""),
            safe(_times_text(rule)),
            Text(stamp(again) if again else ""),
            safe(f"{fault}. End it, and start another.", "bold yellow") if fault else safe(rule.reason),
        )
    return table

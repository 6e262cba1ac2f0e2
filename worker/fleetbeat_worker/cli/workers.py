"""`fleetbeat workers`: the pools and their workers on all machines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource
from redis import Redis
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleetbeat_shared.click_types import WholeNumber
from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli.options import common_options, example, open_redis
from fleetbeat_worker.cli.output import ago, counted, print_json
from fleetbeat_worker.cli.rendering import console, numeric, plain_table, safe, wrapped
from fleetbeat_worker.cli.types import BoundsType
from fleetbeat_worker.workers.autoscale import MAX_WORKERS, Bounds
from fleetbeat_worker.workers.registry import PoolState, read_pools, spread, write_wanted
from fleetbeat_worker.workers.status import PoolWorker, WorkerOverview, read_worker_overview

CONFIRM_SECONDS = 15.0
"""How long pools may take to confirm a new worker count; they read it once a second."""

POLL_SECONDS = 0.2


@click.group(
    invoke_without_command=True,
    epilog=example("fleetbeat workers", "fleetbeat workers scale 8", "fleetbeat workers --json | jq .workers"),
)
@common_options
@click.pass_context
def workers(context: click.Context, *, settings: Settings, as_json: bool) -> None:
    """List the pools of workers on all machines, and scale them."""
    if context.invoked_subcommand is not None:
        _refuse_options_before(context, context.invoked_subcommand)
        return
    with open_redis(settings) as client, redis_errors(settings.redis_url):
        found = read_worker_overview(client)
    if as_json:
        print_json(found.to_json())
    else:
        console().print(_overview_text(found))


def _refuse_options_before(context: click.Context, command: str) -> None:
    """Refuse options before the subcommand: they would have no effect, and another Redis would be asked."""
    for parameter in context.command.params:
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            option = parameter.opts[0]
            message = f"Write {option} after the command: fleetbeat workers {command} … {option} …"
            raise click.UsageError(message)


@workers.command(
    epilog=example(
        "fleetbeat workers scale 8", "fleetbeat workers scale 2 --host w1", "fleetbeat workers scale --auto 1:4"
    )
)
@click.argument("number", type=WholeNumber(0), metavar="[N]", required=False)
@click.option("--auto", "bounds", type=BoundsType(), help="Instead of N: adjust each pool to the lag, in this range.")
@click.option("--host", help="Only the pools on this host.")
@click.option("--pool", "pool_id", metavar="ID", help="Only this pool.")
@common_options
def scale(  # noqa: PLR0913 - one parameter per option
    *,
    settings: Settings,
    number: int | None,
    bounds: Bounds | None,
    host: str | None,
    pool_id: str | None,
    as_json: bool,
) -> None:
    """Change the number of workers without a restart.

    N is the total of all chosen pools, spread evenly over them; each can have at most 64. A surplus worker finishes its
    batch first. With 0 nothing is stored, but the pools stay and can be scaled up again. A pool that is started later
    begins with its own -n.
    """
    if (number is None) == (bounds is None):
        message = "Give the number of workers: either N, or --auto MIN:MAX."
        raise click.UsageError(message)
    with open_redis(settings) as client, redis_errors(settings.redis_url):
        wanted = _spread_over(_choose_pools(client, host, pool_id), number, bounds)
        write_wanted(client, wanted)
        confirmed = _wait_until_confirmed(client, wanted)
    if as_json:
        pools = [{"id": key, "wanted": str(each), "confirmed": key in confirmed} for key, each in wanted.items()]
        print_json({"pools": pools})
    else:
        for key in confirmed:
            console().print(Text.assemble("Pool ", safe(key, "bold"), f" will have {_bounds_text(wanted[key])}."))
    missing = [key for key in wanted if key not in confirmed]
    if missing:
        message = (
            f"{counted(len(missing), 'pool')} did not confirm within {CONFIRM_SECONDS:g} s: {', '.join(missing)}. "
            "See: fleetbeat workers"
        )
        raise FleetbeatError(message)


def _choose_pools(client: Redis, host: str | None, pool_id: str | None) -> list[PoolState]:
    pools = read_pools(client)
    if not pools:
        message = "No pool of workers is running. Start one: fleetbeat worker"
        raise FleetbeatError(message)
    chosen = [pool for pool in pools if host in {None, pool.hostname} and pool_id in {None, pool.id}]
    if not chosen:
        where = [f"on the host {host}"] if host is not None else []
        where += [f"with the ID {pool_id}"] if pool_id is not None else []
        message = f"No pool is running {' '.join(where)}. See: fleetbeat workers"
        raise FleetbeatError(message)
    return chosen


def _spread_over(pools: list[PoolState], number: int | None, bounds: Bounds | None) -> dict[str, Bounds]:
    if number is None:
        return {pool.id: bounds for pool in pools if bounds is not None}
    most = MAX_WORKERS * len(pools)
    if number > most:
        message = f"{counted(len(pools), 'pool')} can have {most} workers at most. Start more pools."
        raise click.UsageError(message)
    return {key: Bounds(each, each) for key, each in spread(number, pools).items()}


def _wait_until_confirmed(client: Redis, wanted: Mapping[str, Bounds]) -> list[str]:
    """Wait for the pools to report what was requested; return those that did in time."""
    ends_at = time.monotonic() + CONFIRM_SECONDS
    while True:
        reported = {pool.id: pool.wanted for pool in read_pools(client)}
        confirmed = [key for key, bounds in wanted.items() if reported.get(key) == bounds]
        if len(confirmed) == len(wanted) or time.monotonic() >= ends_at:
            return confirmed
        time.sleep(POLL_SECONDS)


def _bounds_text(bounds: Bounds) -> str:
    if bounds.are_fixed:
        return counted(bounds.maximum, "worker")
    return f"{bounds.minimum} to {bounds.maximum} workers, depending on the lag"


def _overview_text(found: WorkerOverview) -> RenderableType:
    if not found.pools and not found.workers:
        return Text("No worker is running. Start some: fleetbeat worker", style="bold yellow")
    parts: list[RenderableType] = [_pools_table(found)]
    parts += [Text(), _workers_table(found)] if found.workers else []
    return Group(*parts)


def _pools_table(found: WorkerOverview) -> Table:
    table = plain_table(wrapped("Pool"), "Wanted", numeric("Running"), "Started", "Last seen")
    for pool in found.pools:
        table.add_row(
            safe(pool.id, "bold"),
            Text(str(pool.wanted) if pool.wanted.are_fixed else f"{pool.count} of {pool.wanted}"),
            Text(f"{len(pool.worker_pids):,}"),
            Text(ago(pool.started_at, found.now)),
            Text(ago(pool.last_seen_at, found.now)),
        )
    return table


def _workers_table(found: WorkerOverview) -> Table:
    table = plain_table(wrapped("Host"), numeric("PID"), "State", wrapped("Job"), numeric("Rate"), "Last seen")
    for member in found.workers:
        table.add_row(*_member_cells(member, found))
    return table


def _member_cells(member: PoolWorker, found: WorkerOverview) -> tuple[Any, ...]:
    worker = member.worker
    seen = worker.last_heartbeat_at
    return (
        safe(worker.hostname or "?"),
        Text(str(worker.pid or "?")),
        safe(worker.state),
        safe(worker.job_id),
        Text("?" if member.rate is None else f"{member.rate:,.0f}/s"),
        Text(ago(seen, found.now) if seen is not None else "?"),
    )

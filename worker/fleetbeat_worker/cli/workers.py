"""`fleetbeat workers`: the pools and their workers, over all machines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from redis import Redis
from rich.console import Group
from rich.text import Text

from fleetbeat_shared.click_types import WholeNumber
from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli.options import common_options, example, json_option, open_redis
from fleetbeat_worker.cli.output import ago, console, counted, plain_table, print_json, safe
from fleetbeat_worker.cli.types import BoundsType
from fleetbeat_worker.workers.autoscale import MOST_WORKERS, Bounds
from fleetbeat_worker.workers.registry import PoolState, read_pools, spread, want
from fleetbeat_worker.workers.status import Member, Workforce, read_workforce

if TYPE_CHECKING:
    from rich.console import RenderableType

HEARD_SECONDS = 15.0
"""How long pools may take to hear what is wanted of them; they listen once a second."""
LOOK_SECONDS = 0.2


@click.group(
    invoke_without_command=True,
    epilog=example("fleetbeat workers", "fleetbeat workers scale 8", "fleetbeat workers --json | jq .workers"),
)
@json_option
@common_options
@click.pass_context
def workers(context: click.Context, *, settings: Settings, as_json: bool) -> None:
    """List the pools of workers on all machines, and change how many workers they have."""
    if context.invoked_subcommand is not None:
        _refuse_options_before(context, context.invoked_subcommand)
        return
    with open_redis(settings) as client, redis_errors(settings.redis_url):
        found = read_workforce(client)
    if as_json:
        print_json(found.to_json())
    else:
        console().print(_text(found))


def _refuse_options_before(context: click.Context, command: str) -> None:
    """Refuse options that stand before the subcommand, where they would do nothing: it would ask another Redis."""
    for parameter in context.command.params:
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            message = (
                f"Write {parameter.opts[0]} behind the command: fleetbeat workers {command} … {parameter.opts[0]} …"
            )
            raise click.UsageError(message)


@workers.command(
    epilog=example(
        "fleetbeat workers scale 8", "fleetbeat workers scale 2 --host w1", "fleetbeat workers scale --auto 1:4"
    )
)
@click.argument("number", type=WholeNumber(0), metavar="[N]", required=False)
@click.option("--auto", "bounds", type=BoundsType(), metavar="MIN:MAX", help="Let each pool follow the lag instead.")
@click.option("--host", help="Only the pools on this host.")
@click.option("--pool", "pool_id", metavar="ID", help="Only this pool.")
@json_option
@common_options
def scale(  # noqa: PLR0913 - each is an option of the command
    *,
    settings: Settings,
    number: int | None,
    bounds: Bounds | None,
    host: str | None,
    pool_id: str | None,
    as_json: bool,
) -> None:
    """Change how many workers run, without restarting anything.

    N is the total of all chosen pools; it is spread evenly over them, and each has at most 64. A surplus worker
    finishes its batch first. With 0 nothing is stored, but the pools stay and can be scaled up again. A pool that is
    started later begins with its own -n.
    """
    if (number is None) == (bounds is None):
        message = "Say how many workers there should be: either N, or --auto MIN:MAX."
        raise click.UsageError(message)
    with open_redis(settings) as client, redis_errors(settings.redis_url):
        wanted = _wanted(_chosen(client, host, pool_id), number, bounds)
        want(client, wanted)
        heard = _wait_until_heard(client, wanted)
    late = [key for key in wanted if key not in heard]
    if as_json:
        pools = [{"id": key, "wanted": str(each), "heard": key in heard} for key, each in wanted.items()]
        print_json({"pools": pools})
    else:
        for key in heard:
            console().print(Text.assemble("Pool ", safe(key, "bold"), f" will have {_told(wanted[key])}."))
    if late:
        message = (
            f"{counted(len(late), 'pool')} didn't hear it within {HEARD_SECONDS:g} s: {', '.join(late)}. "
            "Look at them with: fleetbeat workers"
        )
        raise FleetbeatError(message)


def _chosen(client: Redis, host: str | None, pool_id: str | None) -> list[PoolState]:
    pools = read_pools(client)
    if not pools:
        message = "No pool of workers runs. Start one with: fleetbeat worker"
        raise FleetbeatError(message)
    chosen = [pool for pool in pools if host in {None, pool.hostname} and pool_id in {None, pool.id}]
    if not chosen:
        where = [f"on the host {host}"] if host is not None else []
        where += [f"with the id {pool_id}"] if pool_id is not None else []
        message = f"No pool runs {' '.join(where)}. List them with: fleetbeat workers"
        raise FleetbeatError(message)
    return chosen


def _wanted(pools: list[PoolState], number: int | None, bounds: Bounds | None) -> dict[str, Bounds]:
    if number is None:
        return {pool.id: bounds for pool in pools if bounds is not None}
    if number > MOST_WORKERS * len(pools):
        message = (
            f"{counted(len(pools), 'pool')} can have {MOST_WORKERS * len(pools)} workers at most; start more pools."
        )
        raise click.UsageError(message)
    return {key: Bounds(each, each) for key, each in spread(number, pools).items()}


def _wait_until_heard(client: Redis, wanted: Mapping[str, Bounds]) -> list[str]:
    """Return the pools that say that they heard it; wait for them for a time."""
    ends_at = time.monotonic() + HEARD_SECONDS
    while True:
        said = {pool.id: pool.bounds for pool in read_pools(client)}
        heard = [key for key, bounds in wanted.items() if said.get(key) == bounds]
        if len(heard) == len(wanted) or time.monotonic() >= ends_at:
            return heard
        time.sleep(LOOK_SECONDS)


def _told(bounds: Bounds) -> str:
    if bounds.are_fixed:
        return counted(bounds.most, "worker")
    return f"{bounds.least} to {bounds.most} workers, as the lag asks for"


def _text(found: Workforce) -> RenderableType:
    if not found.pools and not found.members:
        return Text("No worker runs. Start some with: fleetbeat worker", style="bold yellow")
    parts: list[RenderableType] = [_pools_table(found)]
    parts += [Text(), _members_table(found)] if found.members else []
    return Group(*parts)


def _pools_table(found: Workforce) -> RenderableType:
    table = plain_table()
    table.add_column("Pool", overflow="fold")
    table.add_column("Wanted", no_wrap=True)
    table.add_column("Running", justify="right", no_wrap=True)
    table.add_column("Started", no_wrap=True)
    table.add_column("Last seen", no_wrap=True)
    for pool in found.pools:
        table.add_row(
            safe(pool.id, "bold"),
            Text(str(pool.bounds) if pool.bounds.are_fixed else f"{pool.count} of {pool.bounds}"),
            Text(f"{len(pool.worker_pids):,}"),
            Text(ago(pool.started_at, found.now)),
            Text(ago(pool.seen_at, found.now)),
        )
    return table


def _members_table(found: Workforce) -> RenderableType:
    table = plain_table()
    table.add_column("Host", overflow="fold")
    table.add_column("Pid", justify="right", no_wrap=True)
    table.add_column("State", no_wrap=True)
    table.add_column("Job", overflow="fold")
    table.add_column("Rate", justify="right", no_wrap=True)
    table.add_column("Last seen", no_wrap=True)
    for member in found.members:
        table.add_row(*_row(member, found))
    return table


def _row(member: Member, found: Workforce) -> tuple[Any, ...]:
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

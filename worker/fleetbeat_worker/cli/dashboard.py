"""`fleetbeat dashboard`: every agent, and the pipeline below."""

from __future__ import annotations

import click

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli.options import common_options, example, json_option, open_database, open_redis
from fleetbeat_worker.cli.output import console, print_json
from fleetbeat_worker.cli.rendering import render
from fleetbeat_worker.cli.types import LIMIT, NameType, States, unknown_name
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.fleet.agents import LIVE_STATES, Selection, read_fleet
from fleetbeat_worker.rules.liveness import State


@click.command(
    epilog=example(
        "fleetbeat dashboard",
        "fleetbeat dashboard --state late,degraded",
        "fleetbeat dashboard --json | jq '.agents[] | select(.degraded) | .agent_name'",
    )
)
@click.option("--state", "states", type=States(), help="Only these: pending, ok, late, degraded, paused, ended.")
@click.option("--agent", "agent_name", type=NameType(), help="Only the agent of this name.")
@click.option("--limit", type=LIMIT, help="At most this many agents, the most urgent first.")
@click.option("--all", "show_all", is_flag=True, help="Ended sessions too.")
@json_option
@common_options
def dashboard(  # noqa: PLR0913 - one parameter per option
    *,
    settings: Settings,
    states: frozenset[State] | None,
    agent_name: str | None,
    limit: int | None,
    show_all: bool,
    as_json: bool,
) -> None:
    """Show every live agent, the most urgent first, and the pipeline.

    With Redis away it shows what the database knows, as of the last watermark. Exit status 1 if no agent of the name
    that was asked for was ever registered.
    """
    selection = Selection(
        states=states or (frozenset(State) if show_all else LIVE_STATES),
        agent_name=agent_name,
        limit=limit,
    )
    with open_database(settings) as engine, open_redis(settings) as client:
        view = read_fleet(settings, engine, client, selection)
        with reading(engine) as connection:
            unknown = unknown_name(connection, selection.agent_name, view.agents)
    if as_json:
        print_json(view.to_json())
    elif unknown is None:
        console().print(render(view, filtered=bool(states or agent_name)))
    if unknown is not None:
        raise unknown

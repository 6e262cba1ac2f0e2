"""`fleetbeat-agent register`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fleetbeat_producer.cli.compose import choose_session_id, compose
from fleetbeat_producer.cli.options import delivery_options, duration, metadata_option, promise_options
from fleetbeat_producer.cli.output import describe_message, print_json, print_result
from fleetbeat_shared.messages import Register

if TYPE_CHECKING:
    from fleetbeat_producer.cli.delivery import Delivery


@click.command(
    epilog="\b\nExamples:\n  fleetbeat-agent register --name hint --every 30s\n"
    '  fleetbeat-agent register --name nightly --cron "15 8 * * *" --time-zone Europe/Berlin --stable\n'
    "  fleetbeat-agent register --from agents.toml"
)
@click.option("--name", metavar="NAME", help="The agent's name: 1 to 64 printable characters.")
@click.option("--every", metavar="DURATION", callback=duration, help="The promised interval: 30s, 5m, 6h, 1d.")
@click.option(
    "--cron",
    metavar="EXPRESSION",
    help="The promised times: a cron expression of five fields, or @daily and the like.",
)
@click.option("--time-zone", metavar="ZONE", help="IANA name of the time zone of --cron. Default: UTC.")
@promise_options
@click.option("--project", metavar="TEXT", help="The project that the agent belongs to.")
@click.option("--work", metavar="TEXT", help="What it is going to do.")
@click.option("--parent", metavar="ID", help="Id of the session that it works for.")
@metadata_option
@click.option("--session", metavar="ID", help="The session id to use (a UUID) instead of a random one.")
@click.option("--stable", is_flag=True, help="Derive the session id from the name, so that --agent finds it.")
@click.option("--parallel", is_flag=True, help="Keep other live sessions of this name; otherwise they end.")
@click.option(
    "--from",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Register all agents of this file, with --stable.",
)
@delivery_options
@click.pass_context
def register(  # noqa: PLR0913 - one for each option
    context: click.Context,
    *,
    name: str | None,
    every: float | None,
    cron: str | None,
    time_zone: str | None,
    grace: float | None,
    missed: int | None,
    stuck_after: int | None,
    project: str | None,
    work: str | None,
    parent: str | None,
    metadata: dict[str, Any] | None,
    session: str | None,
    stable: bool,
    parallel: bool,
    file: Path | None,
    delivery: Delivery,
) -> None:
    """Register an agent, and the interval or schedule of its heartbeats; print its session id."""
    if file is not None:
        _register_all(context, file, delivery)
        return
    if name is None:
        text = "Give either --name or --from."
        raise click.UsageError(text)
    with delivery.logged(name):
        if (every is None) == (cron is None):
            text = "Give either --every or --cron."
            raise click.UsageError(text)
        if cron is not None and stuck_after:
            text = "--stuck-after goes with --every: an agent on a schedule is never stuck."
            raise click.UsageError(text)
        message = compose(
            Register,
            choose_session_id(name, stable=stable, parallel=parallel, session_id=session),
            agent_name=name,
            interval_seconds=every,
            schedule=cron,
            time_zone=time_zone,
            grace_seconds=grace,
            missed_intervals=missed,
            stuck_after=stuck_after,
            project=project,
            work=work,
            parent_id=parent,
            metadata=metadata,
            parallel=parallel,
        )
        delivery.send(message)
    sentence = f"Registered {message.agent_name} as session {message.session_id}."
    print_result(describe_message(message, message.agent_name), sentence, as_json=delivery.as_json)


def _register_all(context: click.Context, file: Path, delivery: Delivery) -> None:
    from fleetbeat_producer.cron.fleet_file import read_fleet_file

    given = {option for option in context.params if _is_given(context, option)}
    if others := sorted(given - {"file", "redis_url", "timeout", "log_file", "as_json"}):
        named = ", ".join(f"--{option.replace('_', '-')}" for option in others)
        text = f"--from takes everything from the file. Leave out {named}."
        raise click.UsageError(text)
    fleet = read_fleet_file(file)
    if fleet.redis_url_file is not None and "redis_url" not in given:
        delivery.use_url_file(fleet.redis_url_file)  # as the crontab lines of this file do
    for agent in fleet.agents:
        with delivery.logged(agent.name):
            delivery.send(agent.registration)
        if not delivery.as_json:
            click.echo(f"Registered {agent.name} as session {agent.registration.session_id}.")
    if delivery.as_json:
        print_json({"ok": True, "agents": [describe_message(agent.registration, agent.name) for agent in fleet.agents]})


def _is_given(context: click.Context, option: str) -> bool:
    return context.get_parameter_source(option) is ParameterSource.COMMANDLINE

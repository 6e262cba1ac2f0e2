"""`fleetbeat-agent register`."""

from __future__ import annotations

from typing import Any

import click

from fleetbeat_producer.cli.options import common_options, duration, metadata_option, transport_to
from fleetbeat_producer.cli.output import sent, tell
from fleetbeat_producer.outgoing import compose, session_to_register
from fleetbeat_shared.messages import Register


@click.command(
    epilog="\b\nExamples:\n  fleetbeat-agent register --name hint --every 30s\n"
    '  fleetbeat-agent register --name nightly --cron "15 8 * * *" --time-zone Europe/Berlin --stable'
)
@click.option("--name", required=True, metavar="NAME", help="1 to 64 printable characters.")
@click.option("--every", metavar="DURATION", callback=duration, help="The promised interval: 30s, 5m, 6h, 1d.")
@click.option("--cron", metavar="EXPRESSION", help="The promised times, as a cron expression of five fields.")
@click.option("--time-zone", metavar="ZONE", help="IANA name of the zone that --cron means; UTC if not given.")
@click.option("--grace", metavar="DURATION", callback=duration, help="How much later a heartbeat may come.")
@click.option("--project", metavar="TEXT", help="What the agent belongs to.")
@click.option("--work", metavar="TEXT", help="What it is about to do.")
@click.option("--parent", metavar="ID", help="The session that it works for.")
@metadata_option
@click.option("--session", metavar="ID", help="The session id to use (a UUID) instead of a new one.")
@click.option("--stable", is_flag=True, help="Derive the session id from the name, for use with --agent.")
@click.option("--parallel", is_flag=True, help="Let other live sessions of this name go on.")
@common_options
def register(  # noqa: PLR0913 - one for each option
    *,
    name: str,
    every: float | None,
    cron: str | None,
    time_zone: str | None,
    grace: float | None,
    project: str | None,
    work: str | None,
    parent: str | None,
    metadata: dict[str, Any] | None,
    session: str | None,
    stable: bool,
    parallel: bool,
    redis_url: str | None,
    as_json: bool,
) -> None:
    """Make an agent known, with how often it promises to beat; prints its session id."""
    if (every is None) == (cron is None):
        text = "Give either --every or --cron."
        raise click.UsageError(text)
    message = compose(
        Register,
        session_to_register(name, stable=stable, parallel=parallel, session_id=session),
        agent_name=name,
        interval_seconds=every,
        schedule=cron,
        time_zone=time_zone,
        grace_seconds=grace,
        project=project,
        work=work,
        parent_id=parent,
        metadata=metadata,
        parallel=parallel,
    )
    transport_to(redis_url).send(message)
    sentence = f"Registered {message.agent_name} as session {message.session_id}."
    tell(sent(message, message.agent_name), sentence, as_json=as_json)

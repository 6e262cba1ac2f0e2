"""`fleetbeat-agent`: the producer for shells, cron lines and programs in other languages."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from fleetbeat_producer.options import common_options, duration, metadata_option, session_options
from fleetbeat_producer.outgoing import compose, session_to_register, stable_session
from fleetbeat_producer.run import run
from fleetbeat_producer.transport import Transport
from fleetbeat_shared.errors import FleetbeatError, InvalidMessage, NotConfirmed, RedisUnavailable, SettingsError
from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_shared.settings import Settings

if TYPE_CHECKING:
    from uuid import UUID

    from fleetbeat_shared.messages import Message

# Exit codes. 0: done.
REFUSED = 1  # refused or failed: the session is unknown or has ended, the workers set the message aside
USAGE = 2  # a bad option, argument or setting; nothing was sent
TRY_AGAIN = 75  # Redis is away, or no worker confirmed in time (EX_TEMPFAIL of sysexits.h)


class _Script(click.Group):
    """Tells errors as one sentence on stderr, or with `--json` as an object on stdout."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Looked up here, as a command whose options can't be parsed never sees its own --json.
        ctx.obj = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as in the class above
        try:
            return super().invoke(ctx)
        except FleetbeatError as error:
            if ctx.obj:
                _print_json({"ok": False, "error": str(error), "code": error.code})
            else:
                click.echo(f"Error: {error}", err=True)
            ctx.exit(_exit_code(error))
        except click.UsageError as error:
            if not ctx.obj:
                raise
            _print_json({"ok": False, "error": error.format_message(), "code": "usage"})
            ctx.exit(USAGE)


def _exit_code(error: FleetbeatError) -> int:
    if isinstance(error, InvalidMessage | SettingsError):
        return USAGE
    return TRY_AGAIN if isinstance(error, RedisUnavailable | NotConfirmed) else REFUSED


@click.group(cls=_Script, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fleetbeat")
def main() -> None:
    """Tell Fleetbeat that an agent is alive."""


main.add_command(run)


@main.command(
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
    _transport(redis_url).send(message)
    sentence = f"Registered {message.agent_name} as session {message.session_id}."
    _tell(_sent(message, message.agent_name), sentence, as_json=as_json)


@main.command(
    epilog="\b\nExamples:\n"
    '  fleetbeat-agent heartbeat --agent hint --progress "reading the inbox" --open-tasks 3\n'
    "  fleetbeat-agent heartbeat --session 0198c5a0-6b1e-4e0e-9d53-5d0f4f1a7c11 --wait 5 --json"
)
@session_options
@click.option("--progress", metavar="TEXT", help="What the agent just did or does now.")
@click.option("--work-item", metavar="ID", help="The work item that it works on.")
@click.option("--status", metavar="WORD", help="Its own word for how it is: ok, busy, blocked, error.")
@click.option("--summary", metavar="TEXT", help="One line about the whole of its work.")
@click.option("--error", metavar="TEXT", help="What went wrong; an empty text says that it is over.")
@click.option("--open-tasks", type=int, metavar="N", help="How many tasks are open.")
@click.option("--stale-tasks", type=int, metavar="N", help="How many of them nobody has touched for long.")
@metadata_option
@click.option("--wait", type=float, metavar="SECONDS", help="Wait until it is stored, and print what SQL says.")
@common_options
def heartbeat(  # noqa: PLR0913 - one for each option
    *,
    session: str | None,
    agent: str | None,
    progress: str | None,
    work_item: str | None,
    status: str | None,
    summary: str | None,
    error: str | None,
    open_tasks: int | None,
    stale_tasks: int | None,
    metadata: dict[str, Any] | None,
    wait: float | None,
    redis_url: str | None,
    as_json: bool,
) -> None:
    """Say that an agent is alive, and what it does. What isn't given stays as it was."""
    agent_name, session_id = _chosen_session(session, agent)
    message = compose(
        Heartbeat,
        session_id,
        progress=progress,
        work_item_id=work_item,
        status=status,
        summary=summary,
        error=error,
        open_tasks=open_tasks,
        stale_tasks=stale_tasks,
        metadata=metadata,
        reply=wait is not None,
    )
    told = _sent(message, agent_name)
    transport = _transport(redis_url)
    if wait is None:
        transport.send(message)
        sentence = f"Sent a heartbeat of {agent_name or f'session {message.session_id}'}."
    else:
        reply = transport.ask(message, wait)
        told |= {"session_id": str(reply.session_id), "agent_name": reply.agent_name, "progress": reply.progress}
        told |= {"timestamp": _iso(reply.timestamp or message.sent_at)}
        progress_told = f": {reply.progress}" if reply.progress else ""
        sentence = f"{reply.agent_name} was seen at {told['timestamp']}{progress_told}."
    _tell(told, sentence, as_json=as_json)


@main.command(epilog="\b\nExample:\n  fleetbeat-agent deregister --agent hint --exit-status 0")
@session_options
@click.option("--error", metavar="TEXT", help="Why the agent ends, if something went wrong.")
@click.option("--exit-status", type=int, metavar="N", help="The exit status of its process.")
@common_options
def deregister(  # noqa: PLR0913 - one for each option
    *,
    session: str | None,
    agent: str | None,
    error: str | None,
    exit_status: int | None,
    redis_url: str | None,
    as_json: bool,
) -> None:
    """Say goodbye: no more heartbeats are expected of this session."""
    agent_name, session_id = _chosen_session(session, agent)
    message = compose(Deregister, session_id, error=error, exit_status=exit_status)
    _transport(redis_url).send(message)
    sentence = f"Deregistered {agent_name or f'session {message.session_id}'}."
    _tell(_sent(message, agent_name), sentence, as_json=as_json)


def _chosen_session(session: str | None, agent: str | None) -> tuple[str | None, UUID | str]:
    """Return the agent's name, if that is how the session was named, and the session's id."""
    if agent is not None and session is None:
        return stable_session(agent)
    if session is not None and agent is None:
        return None, session
    message = "Give either --session or --agent."
    raise click.UsageError(message)


def _transport(redis_url: str | None) -> Transport:
    settings = Settings.from_environment(os.environ)
    return Transport(settings if redis_url is None else settings.model_copy(update={"redis_url": redis_url}))


def _sent(message: Message, agent_name: str | None) -> dict[str, Any]:
    """Return what was sent, under the names that every answer has, and the rest."""
    rest = message.model_dump(mode="json", exclude_none=True, exclude={"version", "kind", "id", "reply"})
    first = {
        "ok": True,
        "message_id": str(message.id),
        "session_id": str(message.session_id),
        "agent_name": agent_name,
        "timestamp": _iso(message.sent_at),
        "progress": None,
    }
    return first | rest


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _tell(told: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    if as_json:
        _print_json(told)
    else:
        click.echo(sentence)


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value))

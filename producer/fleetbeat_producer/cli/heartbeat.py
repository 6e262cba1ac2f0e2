"""`fleetbeat-agent heartbeat` and `fleetbeat-agent deregister`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from fleetbeat_producer.cli.compose import compose, stable_session
from fleetbeat_producer.cli.options import delivery_options, metadata_option, session_options, wait_option
from fleetbeat_producer.cli.output import iso, sent, tell
from fleetbeat_shared.messages import Deregister, Heartbeat

if TYPE_CHECKING:
    from uuid import UUID

    from fleetbeat_producer.cli.delivery import Delivery


@click.command(
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
@click.option(
    "--only-at", metavar="EXPRESSION", help="Do nothing unless this cron expression means the current minute."
)
@click.option("--time-zone", metavar="ZONE", help="IANA name of the zone that --only-at means; UTC if not given.")
@wait_option
@click.option("--strict", is_flag=True, help="Exit with 75, not 0, when it could only be kept on disk.")
@delivery_options
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
    only_at: str | None,
    time_zone: str | None,
    wait: float | None,
    strict: bool,
    delivery: Delivery,
) -> None:
    """Say that an agent is alive, and what it does. What isn't given stays as it was.

    While Redis is away the heartbeat is kept on disk, and the next call that gets through sends it.
    """
    if not is_time(only_at, time_zone):  # most often, for some crontab lines: not worth a line of the log
        tell({"ok": True, "sent": False}, "It isn't the time; nothing was sent.", as_json=delivery.as_json)
        return
    with delivery.logged(agent or session):
        agent_name, session_id = chosen_session(session, agent)
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
        reply, spooled = delivery.send_or_keep(message, wait_seconds=wait, strict=strict)
    told = sent(message, agent_name) | {"spooled": spooled}
    who = agent_name or f"session {message.session_id}"
    sentence = f"Kept a heartbeat of {who} in the spool." if spooled else f"Sent a heartbeat of {who}."
    if reply is not None:
        told |= {"session_id": str(reply.session_id), "agent_name": reply.agent_name, "progress": reply.progress}
        told |= {"timestamp": iso(reply.timestamp or message.sent_at)}
        progress_told = f": {reply.progress}" if reply.progress else ""
        sentence = f"{reply.agent_name} was seen at {told['timestamp']}{progress_told}."
    tell(told, sentence, as_json=delivery.as_json)


@click.command(epilog="\b\nExample:\n  fleetbeat-agent deregister --agent hint --exit-status 0")
@session_options
@click.option("--error", metavar="TEXT", help="Why the agent ends, if something went wrong.")
@click.option("--exit-status", type=int, metavar="N", help="The exit status of its process.")
@delivery_options
def deregister(
    *,
    session: str | None,
    agent: str | None,
    error: str | None,
    exit_status: int | None,
    delivery: Delivery,
) -> None:
    """Say goodbye: no more heartbeats are expected of this session."""
    with delivery.logged(agent or session):
        agent_name, session_id = chosen_session(session, agent)
        message = compose(Deregister, session_id, error=error, exit_status=exit_status)
        delivery.send(message)
    # Whether there is such a session only the workers know.
    sentence = f"Sent a goodbye of {agent_name or f'session {message.session_id}'}."
    tell(sent(message, agent_name), sentence, as_json=delivery.as_json)


def is_time(only_at: str | None, time_zone: str | None) -> bool:
    """Return whether `--only-at`, if it was given, means the current minute."""
    if only_at is None:
        if time_zone is not None:
            text = "--time-zone goes with --only-at."
            raise click.UsageError(text)
        return True
    from fleetbeat_shared.schedules import check_schedule, find_time_zone, is_slot

    try:
        schedule, zone = check_schedule(only_at), find_time_zone(time_zone or "UTC")
    except ValueError as error:
        text = f"{error}."
        raise click.UsageError(text) from error
    return is_slot(schedule, zone.key, datetime.now(UTC))


def chosen_session(session: str | None, agent: str | None) -> tuple[str | None, UUID | str]:
    """Return the agent's name, if that is how the session was named, and the session's id."""
    if agent is not None and session is None:
        return stable_session(agent)
    if session is not None and agent is None:
        return None, session
    message = "Give either --session or --agent."
    raise click.UsageError(message)

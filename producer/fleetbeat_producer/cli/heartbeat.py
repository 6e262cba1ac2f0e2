"""`fleetbeat-agent heartbeat` and `fleetbeat-agent deregister`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from fleetbeat_producer.cli.compose import compose, stable_session
from fleetbeat_producer.cli.options import delivery_options, metadata_option, session_options, wait_option
from fleetbeat_producer.cli.output import describe_message, format_time, print_result
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
@click.option("--progress", metavar="TEXT", help="What the agent has just done or is doing.")
@click.option("--work-item", metavar="ID", help="The work item that it works on.")
@click.option("--status", metavar="WORD", help="A word of its own for its status: ok, busy, blocked, error.")
@click.option("--summary", metavar="TEXT", help="One line about all of its work.")
@click.option("--error", metavar="TEXT", help="What went wrong. An empty text clears it.")
@click.option("--open-tasks", type=int, metavar="N", help="The number of open tasks.")
@click.option("--stale-tasks", type=int, metavar="N", help="How many of them haven't changed for long.")
@metadata_option
@click.option("--only-at", metavar="EXPRESSION", help="Do nothing unless this cron expression matches this minute.")
@click.option("--time-zone", metavar="ZONE", help="IANA name of the time zone of --only-at. Default: UTC.")
@wait_option
@click.option("--strict", is_flag=True, help="Exit with 75 instead of 0 when it was only kept on disk.")
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
    """Send a heartbeat: the agent is alive, and what it does. Options left out keep their earlier values.

    While Redis is away the heartbeat is kept on disk; the next call that reaches Redis sends it.
    """
    if not _is_due(only_at, time_zone):  # for some crontab lines this is the usual case: not worth a line of the log
        result = {"ok": True, "sent": False}
        print_result(result, "--only-at doesn't match this minute; nothing was sent.", as_json=delivery.as_json)
        return
    with delivery.logged(agent or session):
        agent_name, session_id = _choose_session(session, agent)
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
        reply, spooled = delivery.send_or_spool(message, wait_seconds=wait, strict=strict)
    described = describe_message(message, agent_name) | {"spooled": spooled}
    who = agent_name or f"session {message.session_id}"
    sentence = f"Kept a heartbeat for {who} in the spool." if spooled else f"Sent a heartbeat for {who}."
    if reply is not None:
        described |= {"session_id": str(reply.session_id), "agent_name": reply.agent_name, "progress": reply.progress}
        described |= {"timestamp": format_time(reply.timestamp or message.sent_at)}
        progress_shown = f": {reply.progress}" if reply.progress else ""
        sentence = f"{reply.agent_name} was seen at {described['timestamp']}{progress_shown}."
    print_result(described, sentence, as_json=delivery.as_json)


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
    """End a session: no more heartbeats are expected."""
    with delivery.logged(agent or session):
        agent_name, session_id = _choose_session(session, agent)
        message = compose(Deregister, session_id, error=error, exit_status=exit_status)
        delivery.send(message)
    # Only the workers know whether there is such a session.
    sentence = f"Sent a deregistration for {agent_name or f'session {message.session_id}'}."
    print_result(describe_message(message, agent_name), sentence, as_json=delivery.as_json)


def _is_due(only_at: str | None, time_zone: str | None) -> bool:
    """Tell whether `--only-at`, if it was given, matches the current minute."""
    if only_at is None:
        if time_zone is not None:
            text = "--time-zone needs --only-at."
            raise click.UsageError(text)
        return True
    from fleetbeat_shared.schedules import check_schedule, find_time_zone, is_slot

    try:
        schedule, zone = check_schedule(only_at), find_time_zone(time_zone or "UTC")
    except ValueError as error:
        text = f"{error}."
        raise click.UsageError(text) from error
    return is_slot(schedule, zone.key, datetime.now(UTC))


def _choose_session(session: str | None, agent: str | None) -> tuple[str | None, UUID | str]:
    """Find the session id from --session or --agent; the agent's name is None if only the id was given."""
    if agent is not None and session is None:
        return stable_session(agent)
    if session is not None and agent is None:
        return None, session
    message = "Give either --session or --agent."
    raise click.UsageError(message)

"""`fleetbeat tasks`: the work items of agents. They belong to the agent's name, so they outlive its sessions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.table import Table
from rich.text import Text
from sqlalchemy import Row

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.options import common_options, example, open_database
from fleetbeat_worker.cli.output import ago, print_json
from fleetbeat_worker.cli.rendering import console, numeric, plain_table, safe, wrapped
from fleetbeat_worker.cli.types import ROW_ID, LineType, NameType
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.rules.enums import TaskState
from fleetbeat_worker.store.sessions import agent_is_known
from fleetbeat_worker.store.tasks import TaskCounts, add_task, count_tasks, read_tasks, update_task

_STATE = click.Choice([state.value for state in TaskState])
_TITLE = LineType("title")


@click.group()
def tasks() -> None:
    """Manage the work items of agents; the dashboard shows how many are open, and how many stale."""


@tasks.command(epilog=example('fleetbeat tasks add hint "Sort the inbox"'))
@click.argument("agent", type=NameType())
@click.argument("title", type=_TITLE)
@common_options
def add(*, settings: Settings, agent: str, title: str, as_json: bool) -> None:
    """Add an open task for an agent."""
    with open_database(settings) as engine, writing(engine) as connection:
        task = add_task(connection, agent, title, datetime.now(UTC))
        known = agent_is_known(connection, agent)
    if not known:
        click.echo(f"Note: no agent named {agent} has registered yet.", err=True)
    _print_task(task, as_json=as_json)


@tasks.command(
    epilog=example("fleetbeat tasks update 7 --state in_progress", 'fleetbeat tasks update 7 --title "Sort all of it"')
)
@click.argument("task_id", type=ROW_ID)
@click.option("--state", type=_STATE, help="Its new state.")
@click.option("--title", type=_TITLE, help="Its new title.")
@common_options
def update(*, settings: Settings, task_id: int, state: str | None, title: str | None, as_json: bool) -> None:
    """Change a task's state or title."""
    if state is None and title is None:
        message = "Nothing to change: give --state or --title."
        raise click.UsageError(message)
    _change(settings, task_id, TaskState(state) if state else None, title, as_json=as_json)


@tasks.command(epilog=example("fleetbeat tasks done 7"))
@click.argument("task_id", type=ROW_ID)
@common_options
def done(*, settings: Settings, task_id: int, as_json: bool) -> None:
    """Mark a task as done."""
    _change(settings, task_id, TaskState.DONE, None, as_json=as_json)


@tasks.command("list", epilog=example("fleetbeat tasks list hint", "fleetbeat tasks list hint --state open"))
@click.argument("agent", type=NameType())
@click.option("--state", type=_STATE, help="Only those in this state.")
@common_options
def list_tasks(*, settings: Settings, agent: str, state: str | None, as_json: bool) -> None:
    """List an agent's tasks, oldest first; stale ones are marked."""
    with open_database(settings) as engine, reading(engine) as connection:
        found = read_tasks(connection, agent, TaskState(state) if state else None)
    if as_json:
        print_json({"tasks": [_task_json(task) for task in found]})
    elif found:
        console().print(_tasks_table(found, settings, datetime.now(UTC)))
    else:
        click.echo(f"{agent} has no tasks{' in this state' if state else ''}.")


@tasks.command(epilog=example("fleetbeat tasks counts hint"))
@click.argument("agent", type=NameType())
@common_options
def counts(*, settings: Settings, agent: str, as_json: bool) -> None:
    """Count an agent's tasks. Open ones aren't done; of these, stale ones were not updated for long."""
    before = datetime.now(UTC) - timedelta(seconds=settings.stale_task_seconds)
    with open_database(settings) as engine, reading(engine) as connection:
        found = count_tasks(connection, before, agent).get(agent, TaskCounts())
    if as_json:
        print_json({"agent_name": agent, "open": found.open, "stale": found.stale})
    else:
        age = format_duration(settings.stale_task_seconds)
        click.echo(f"{agent}: {found.open} open, {found.stale} stale (not updated for {age})")


def _change(settings: Settings, task_id: int, state: TaskState | None, title: str | None, *, as_json: bool) -> None:
    with open_database(settings) as engine, writing(engine) as connection:
        task = update_task(connection, task_id, datetime.now(UTC), state=state, title=title)
    if task is None:
        message = f"There is no task {task_id}. See: fleetbeat tasks list AGENT"
        raise FleetbeatError(message)
    _print_task(task, as_json=as_json)


def _print_task(task: Row[Any], *, as_json: bool) -> None:
    if as_json:
        print_json(_task_json(task))
    else:
        click.echo(f"Task {task.id} of {clean(task.agent_name)} is {task.state}: {clean(task.title)}")


def _task_json(task: Row[Any]) -> dict[str, Any]:
    names = ("id", "agent_name", "title", "state", "created_at", "updated_at")
    return {name: getattr(task, name) for name in names}


def _tasks_table(found: Sequence[Row[Any]], settings: Settings, now: datetime) -> Table:
    table = plain_table(numeric("Task"), "State", "Updated", wrapped("Title"))
    for task in found:
        age_seconds = (now - task.updated_at).total_seconds()
        stale = task.state != TaskState.DONE and age_seconds > settings.stale_task_seconds
        state = Text.assemble(str(task.state), (" (stale)", "yellow")) if stale else safe(task.state)
        table.add_row(Text(str(task.id)), state, Text(ago(task.updated_at, now)), safe(task.title))
    return table

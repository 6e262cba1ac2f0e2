"""Tasks: the work items of agents, by the agent's name."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, func, insert, select, text, update

from fleetbeat_worker.database.column_types import Instant
from fleetbeat_worker.database.tables import Task
from fleetbeat_worker.rules.enums import TaskState

_NOT_DONE = tuple(state.value for state in TaskState if state is not TaskState.DONE)
_NAMES = {"sqlite": "json_each(:names) AS n", "postgresql": "json_array_elements_text(CAST(:names AS json)) AS n"}
_COUNT_TASKS_OF = {
    # By equality with each state, so that the index on name and state is used.
    dialect: text(
        f"SELECT n.value, count(t.id), count(CASE WHEN t.updated_at < :stale_before THEN 1 END) FROM {names} "  # noqa: S608 - our own
        f"LEFT JOIN tasks AS t ON t.agent_name = n.value AND t.state IN {_NOT_DONE} "
        "WHERE EXISTS (SELECT 1 FROM tasks AS any_task WHERE any_task.agent_name = n.value) GROUP BY n.value"
    ).bindparams(bindparam("stale_before", type_=Instant))
    for dialect, names in _NAMES.items()
}


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """How many tasks an agent has."""

    open: int = 0
    """Tasks that aren't done."""
    stale: int = 0
    """Those of them that were not updated for long."""


def add_task(connection: Connection, agent_name: str, title: str, now: datetime) -> Row[Any]:
    """Add an open task and return it."""
    values = {"agent_name": agent_name, "title": title, "state": TaskState.OPEN, "created_at": now, "updated_at": now}
    return connection.execute(insert(Task).values(values).returning(Task.__table__)).one()


def update_task(
    connection: Connection, task_id: int, now: datetime, *, state: TaskState | None = None, title: str | None = None
) -> Row[Any] | None:
    """Change what is given and the time of the update, and return the task; None when there is no such task."""
    values: dict[str, Any] = {"updated_at": now}
    if state is not None:
        values["state"] = state
    if title is not None:
        values["title"] = title
    query = update(Task).where(Task.id == task_id).values(values).returning(Task.__table__)
    return connection.execute(query).one_or_none()


def read_tasks(connection: Connection, agent_name: str, state: TaskState | None = None) -> Sequence[Row[Any]]:
    """Read an agent's tasks, the oldest first: all columns of `tasks`."""
    query = select(Task.__table__).where(Task.agent_name == agent_name).order_by(Task.id)
    if state is not None:
        query = query.where(Task.state == state)
    return connection.execute(query).all()


def count_tasks(connection: Connection, stale_before: datetime, agent_name: str | None = None) -> dict[str, TaskCounts]:
    """Count the tasks of each agent, by name; an agent without any open task is absent.

    A task is stale when it isn't done and was last updated before `stale_before`.
    """
    stale = func.sum(case((Task.updated_at < stale_before, 1), else_=0))
    query = select(Task.agent_name, func.count(), stale).where(Task.state != TaskState.DONE).group_by(Task.agent_name)
    if agent_name is not None:
        query = query.where(Task.agent_name == agent_name)
    return {name: TaskCounts(open=number, stale=int(old)) for name, number, old in connection.execute(query)}


def count_tasks_by_name(
    connection: Connection, names: Collection[str], stale_before: datetime
) -> dict[str, TaskCounts]:
    """Count the tasks of some agents, by name; one that never had a task is absent, unlike one whose tasks are done.

    For batches: done tasks, of which there are ever more, are only tested for existence.
    """
    query = _COUNT_TASKS_OF[connection.dialect.name]
    found = connection.execute(query, {"names": json.dumps(list(names)), "stale_before": stale_before})
    return {name: TaskCounts(open=number, stale=old) for name, number, old in found}

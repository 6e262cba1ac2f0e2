from __future__ import annotations

from typing import Any

import pytest
from command_line import answer, run
from ops_fixtures import put_agent
from sqlalchemy import Engine


@pytest.mark.usefixtures("engine")
def test_task_from_open_to_done() -> None:
    """A task is added, started, renamed and done; a done one isn't counted."""
    task = answer("tasks", "add", "hint", "Sort\tthe inbox")
    assert (task["agent_name"], task["title"], task["state"]) == ("hint", "Sort the inbox", "open")
    number = str(task["id"])
    assert answer("tasks", "counts", "hint") == {"agent_name": "hint", "open": 1, "stale": 0}
    changed = answer("tasks", "update", number, "--state", "in_progress", "--title", "Sort all of it")
    assert (changed["state"], changed["title"]) == ("in_progress", "Sort all of it")
    assert changed["updated_at"] >= task["updated_at"]
    assert answer("tasks", "counts", "hint")["open"] == 1
    assert answer("tasks", "done", number)["state"] == "done"
    assert answer("tasks", "counts", "hint")["open"] == 0
    assert [found["id"] for found in answer("tasks", "list", "hint")["tasks"]] == [task["id"]]
    assert answer("tasks", "list", "hint", "--state", "open") == {"tasks": []}
    assert answer("tasks", "list", "torv") == {"tasks": []}


@pytest.mark.usefixtures("engine")
def test_task_becomes_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfinished task that wasn't updated for longer than the setting is stale until its next change."""
    number = str(answer("tasks", "add", "hint", "Old")["id"])
    later = "fleetbeat_worker.cli.tasks.datetime"
    from datetime import UTC, datetime, timedelta

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz or UTC) + timedelta(days=1, seconds=1)

    monkeypatch.setattr(later, Tomorrow)
    assert answer("tasks", "counts", "hint") == {"agent_name": "hint", "open": 1, "stale": 1}
    assert "open (stale)" in run("tasks", "list", "hint").output
    answer("tasks", "update", number, "--state", "in_progress")
    assert answer("tasks", "counts", "hint")["stale"] == 0


def test_task_for_an_unregistered_name_prints_a_note(engine: Engine) -> None:
    """A mistyped agent's name causes a note on stderr; the task is added all the same."""
    put_agent(engine, "hint")
    assert run("tasks", "add", "hint", "A").stderr == ""
    result = run("tasks", "add", "hnit", "A")
    assert result.exit_code == 0
    assert "no agent named hnit has registered yet" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["add", "hint", " \x1b[31m "], 2, "a title has 1 to 500 characters"),
        (["add", "x" * 65, "A"], 2, "not an agent's name"),
        (["update", "7", "--state", "done"], 1, "There is no task 7"),
        (["done", "7"], 1, "There is no task 7"),
        (["done", str(2**70)], 2, "is too large; 1 to 9223372036854775807 is allowed"),
        (["update", "7"], 2, "give --state or --title"),
        (["update", "7", "--state", "lost"], 2, "'lost' is not one of"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_task_errors(args: list[str], code: int, says: str) -> None:
    """Wrong usage exits with 2, an unknown task with 1, each with one sentence on stderr."""
    result = run("tasks", *args)
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stdout == ""

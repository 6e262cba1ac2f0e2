from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from ops_fixtures import put_agent
from sqlalchemy import Engine

from fleetbeat_worker.cli import main


def tasks(*args: str) -> Any:
    result = CliRunner().invoke(main, ["tasks", *args, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.usefixtures("engine")
def test_a_task_goes_from_open_to_done() -> None:
    """A task is added, worked on, renamed and done; done ones count no more."""
    task = tasks("add", "hint", "Sort\tthe inbox")
    assert (task["agent_name"], task["title"], task["state"]) == ("hint", "Sort the inbox", "open")
    number = str(task["id"])
    assert tasks("counts", "hint") == {"agent_name": "hint", "open": 1, "stale": 0}
    changed = tasks("update", number, "--state", "in_progress", "--title", "Sort all of it")
    assert (changed["state"], changed["title"]) == ("in_progress", "Sort all of it")
    assert changed["updated_at"] >= task["updated_at"]
    assert tasks("counts", "hint")["open"] == 1
    assert tasks("done", number)["state"] == "done"
    assert tasks("counts", "hint")["open"] == 0
    assert [found["id"] for found in tasks("list", "hint")["tasks"]] == [task["id"]]
    assert tasks("list", "hint", "--state", "open") == {"tasks": []}
    assert tasks("list", "torv") == {"tasks": []}


@pytest.mark.usefixtures("engine")
def test_an_untouched_task_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that isn't done and older than the setting is stale; any change mends that."""
    number = str(tasks("add", "hint", "Old")["id"])
    later = "fleetbeat_worker.cli.tasks.datetime"
    from datetime import UTC, datetime, timedelta

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz or UTC) + timedelta(days=1, seconds=1)

    monkeypatch.setattr(later, Tomorrow)
    assert tasks("counts", "hint") == {"agent_name": "hint", "open": 1, "stale": 1}
    assert "open (stale)" in CliRunner().invoke(main, ["tasks", "list", "hint"]).output
    tasks("update", number, "--state", "in_progress")
    assert tasks("counts", "hint")["stale"] == 0


def test_a_name_that_never_registered_is_noted(engine: Engine) -> None:
    """A slip in the agent's name is said on stderr, and stops nothing."""
    put_agent(engine, "hint")
    assert CliRunner().invoke(main, ["tasks", "add", "hint", "A"]).stderr == ""
    result = CliRunner().invoke(main, ["tasks", "add", "hnit", "A"])
    assert result.exit_code == 0
    assert "no agent named hnit has registered yet" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["add", "hint", " \x1b[31m "], 2, "a title has 1 to 500 characters"),
        (["add", "x" * 65, "A"], 2, "not an agent's name"),
        (["update", "7", "--state", "done"], 1, "There is no task 7"),
        (["done", "7"], 1, "There is no task 7"),
        (["done", str(2**70)], 2, "is too much; 1 to 9223372036854775807 is allowed"),
        (["update", "7"], 2, "give --state or --title"),
        (["update", "7", "--state", "lost"], 2, "'lost' is not one of"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_what_is_wrong_is_said(args: list[str], code: int, says: str) -> None:
    """Wrong usage exits 2, a task that isn't there exits 1, each with a sentence on stderr."""
    result = CliRunner().invoke(main, ["tasks", *args])
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stdout == ""

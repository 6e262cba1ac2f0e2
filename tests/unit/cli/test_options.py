from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import click
import pytest
from command_line import answer, run
from ops_fixtures import put_agent
from sqlalchemy import Engine

from fleetbeat_worker.cli import COMMANDS, main

READERS = [
    *("agents", "backtest", "check", "dashboard", "db", "events", "explain", "maintenance", "notifications", "queue"),
    *("rejected", "tasks"),
]


def leaves() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    context = click.Context(main)
    for name in READERS:
        command = main.get_command(context, name)
        assert command is not None
        subcommands = sorted(command.commands) if isinstance(command, click.Group) else []
        found += [(name, below) for below in subcommands] or [(name,)]
    return found


@pytest.mark.parametrize("path", leaves(), ids=" ".join)
def test_every_command_has_an_example_and_json(path: tuple[str, ...]) -> None:
    """`--help` of each command shows how it is used, its variables and `--json`."""
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert f"  fleetbeat {' '.join(path)}" in result.output
    assert "Example" in result.output
    assert "--json" in result.output
    assert "FLEETBEAT_DATABASE_URL" in result.output


def test_help_lists_all_commands_without_importing_them() -> None:
    """The list of commands, the dashboard and ingest import no library that only other commands need."""
    code = (
        "import sys; from click.testing import CliRunner; from fleetbeat_worker.cli import main\n"
        "print(CliRunner().invoke(main, ['--help']).output)\n"
        "assert not {'rq', 'alembic', 'sqlalchemy', 'rich'} & set(sys.modules)\n"
        "import fleetbeat_worker.cli.dashboard\n"
        "assert not {'rq', 'alembic', 'croniter'} & set(sys.modules)\n"
        "import fleetbeat_worker.jobs\n"
        "assert not {'apprise', 'requests'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert text in done.stdout


@pytest.mark.parametrize(
    ("command", "kept"),
    [(("events",), "events"), (("notifications", "list"), "notifications"), (("dashboard",), "agents")],
)
def test_unregistered_name_exits_with_1(engine: Engine, now: datetime, command: tuple[str, ...], kept: str) -> None:
    """A mistyped --agent exits with 1 and leaves the JSON valid; a known name without results exits with 0."""
    put_agent(engine, "hint", at=now, state="ended", ended_at=now)
    plain = run(*command, "--agent", "himt")
    assert (plain.exit_code, plain.stdout) == (1, "")
    assert plain.stderr == "Error: No agent 'himt' was ever registered. See: fleetbeat agents list --all\n"
    told = run(*command, "--agent", "himt", "--json")
    assert (told.exit_code, json.loads(told.stdout)[kept]) == (1, [])
    assert run(*command, "--agent", "hint").exit_code == 0


@pytest.mark.parametrize(
    "args",
    [
        *(("check", "--agent"), ("dashboard", "--agent"), ("events", "--agent"), ("notifications", "list", "--agent")),
        *(("agents", "show"), ("agents", "pause"), ("agents", "resume"), ("explain",), ("backtest", "--agent")),
        *(("rejected", "list", "--agent"), ("rejected", "purge", "--yes", "--agent")),
    ],
)
@pytest.mark.usefixtures("engine")
def test_invalid_name_is_a_usage_error(args: tuple[str, ...]) -> None:
    """A name that isn't UTF-8 or has escape codes is refused before the database is queried."""
    for name, found in (("b\udcfccher", "U+DCFC"), ("no\x1b(body", "U+001B")):
        result = run(*args, name)
        assert result.exit_code == 2, result.output
        assert f"not an agent's name: it has characters that can't be printed ({found}" in result.stderr
        assert "\x1b" not in result.output
        assert result.stdout == ""


@pytest.mark.parametrize("command", ["dashboard", "events", "tasks list hint", "db check", "rejected list"])
def test_missing_database_is_not_created(command: str, tmp_path: Path) -> None:
    """Reading a missing database prints how to start, and creates no file."""
    result = run(*command.split(), "--database-url", f"sqlite:///{tmp_path / 'below' / 'fleet.db'}")
    assert result.exit_code == 1
    assert "There is no data yet" in result.stderr
    assert "fleetbeat up" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_database_without_schema_is_refused(tmp_path: Path) -> None:
    """A database without this schema is refused with one sentence; `check` reports pipeline trouble."""
    (tmp_path / "empty.db").touch()
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    result = run("dashboard", "--database-url", url)
    assert result.exit_code == 1
    assert "has schema none" in result.stderr
    assert run("check", "--database-url", url).exit_code == 3
    assert run("db", "check", "--database-url", url).exit_code == 1
    assert answer("db", "upgrade", "--database-url", url)["changed"] is True
    assert answer("db", "upgrade", "--database-url", url)["changed"] is False
    assert run("db", "check", "--database-url", url).exit_code == 0


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["dashboard", "--database-url", "mysql://u:secret@h/x"], 2, "FLEETBEAT_DATABASE_URL is not a database URL"),
        (["queue", "--redis-url", "http://u:secret@h"], 2, "FLEETBEAT_REDIS_URL is not a Redis URL"),
        (
            ["queue", "--redis-url", "redis://u:secret@127.0.0.1:1/0"],
            75,
            "Redis at redis://127.0.0.1:1/0 can't be used",
        ),
        (["events", "--database-url", "postgresql://u:secret@127.0.0.1:1/x"], 75, "postgresql://127.0.0.1:1/x"),
        (["check", "--database-url", "mysql://u:secret@h/x"], 2, "FLEETBEAT_DATABASE_URL is not a database URL"),
    ],
)
def test_errors_are_one_sentence_without_secrets(args: list[str], code: int, says: str) -> None:
    """An invalid setting exits with 2, an unavailable server with 75; stderr shows no password."""
    result = run(*args)
    assert result.exit_code == code
    assert says in result.stderr
    assert "secret" not in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["dashboard", "check", "db upgrade", "db check", "events", "sweep"])
def test_unknown_driver_option_is_a_setting_error(command: str) -> None:
    """A URL with a misspelt option exits with 2 and names it; it is neither a traceback nor a temporary failure."""
    result = run(*command.split(), "--database-url", "postgresql://u:secret@127.0.0.1:1/x?nonsense=x")
    assert result.exit_code == 2, result.output
    assert 'invalid connection option "nonsense"' in result.stderr
    assert "FLEETBEAT_DATABASE_URL" in result.stderr
    assert "secret" not in result.output


def test_folder_that_cant_be_created_is_a_setting_error(tmp_path: Path) -> None:
    """A database path below a file exits with 2, and the error has the path and the reason."""
    (tmp_path / "file").touch()
    result = run("db", "upgrade", "--database-url", f"sqlite:///{tmp_path / 'file' / 'below' / 'fleet.db'}")
    assert result.exit_code == 2, result.output
    assert f"The folder {tmp_path / 'file' / 'below'} in FLEETBEAT_DATABASE_URL can't be made (" in result.stderr


def test_invalid_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid variable stops every command with an error that names it."""
    monkeypatch.setenv("FLEETBEAT_SWEEP_SECONDS", "soon")
    result = run("check")
    assert result.exit_code == 2
    assert "FLEETBEAT_SWEEP_SECONDS" in result.stderr

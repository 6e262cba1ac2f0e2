from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from fakeredis import FakeRedis
from ops_fixtures import put_agent, put_event, put_rejected, put_sweep, seconds
from rq import Queue, SimpleWorker
from rq.utils import utcformat
from sqlalchemy import Engine, update

from fleetbeat_shared import connection
from fleetbeat_shared.redis_keys import FIELD, GROUP, INBOX, QUEUE
from fleetbeat_worker.cli import COMMANDS, main
from fleetbeat_worker.database import schema
from fleetbeat_worker.database.engine import open_engine, writing
from fleetbeat_worker.database.tables import Liveness
from fleetbeat_worker.fleet import current_state as judging
from fleetbeat_worker.sweep.incidents import begin_incident

READERS = [
    *("agents", "backtest", "check", "dashboard", "db", "events", "explain", "maintenance", "notifications", "queue"),
    *("rejected", "tasks"),
]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis: FakeRedis) -> Iterator[Engine]:
    """Return the database that the commands use; the Redis that they use is `redis`."""
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    monkeypatch.setenv("FLEETBEAT_DATABASE_URL", url)
    monkeypatch.setenv("FLEETBEAT_REDIS_URL", "redis://user:secret@127.0.0.1:1/0")
    monkeypatch.setattr(connection, "connect", lambda *_, **__: redis)
    made = open_engine(url)
    schema.upgrade(made)
    yield made
    made.dispose()


@pytest.fixture
def now() -> datetime:
    """Return the time, which fakeredis has from this machine."""
    return datetime.now(UTC)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def answer(*args: str, code: int = 0) -> Any:
    result = run(*args, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


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


def test_help_lists_everything_and_imports_nothing() -> None:
    """The list of commands, the dashboard and ingest come without the libraries that only others need."""
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


def test_the_dashboard_has_the_keys_that_programs_rely_on(engine: Engine, now: datetime) -> None:
    """`dashboard --json` is one object with the documented keys, times in UTC, and ASCII only."""
    session_id = put_agent(engine, "hinß", at=now, metadata={"model": "m-1"}, project="p", summary="fine")
    put_sweep(engine, now)
    view = answer("dashboard")
    assert run("dashboard", "--json").stdout.isascii()
    assert set(view) >= {"as_of", "pipeline", "agents"}
    assert set(view["pipeline"]) >= {"backlog", "lag_seconds", "workers", "last_sweep_at", "rejected", "held"}
    assert set(view["agents"][0]) >= {
        *("agent_name", "session_id", "state", "degraded", "missed_intervals", "last_seen_at", "interval_seconds"),
        *("deadline_at", "current_work", "work_item_id", "progress", "status", "summary", "error", "open_tasks"),
        *("stale_tasks", "metadata", "project", "parent_id", "schedule", "time_zone", "grace_seconds"),
        *("registered_at", "ended_at", "state_changed_at"),
    }
    agent = view["agents"][0]
    assert agent["session_id"] == str(session_id)
    assert agent["metadata"] == {"model": "m-1"}
    assert agent["last_seen_at"].endswith("Z")
    assert datetime.fromisoformat(view["as_of"]).tzinfo is not None


def test_plain_output_has_no_escape_codes(engine: Engine, now: datetime) -> None:
    """What goes into a pipe is text alone, also when an agent's words are not."""
    put_agent(engine, "hint", at=now - seconds(500), state="degraded", error="\x1b[31mred")
    put_event(engine, "degraded", "hint", now, detail={"why": "\x1b]0;x\x07silent"})
    put_sweep(engine, now)
    for args in (["dashboard"], ["agents", "list"], ["agents", "show", "hint"], ["events"], ["queue"], ["check"]):
        output = run(*args).output
        assert "\x1b" not in output, args
        assert "secret" not in output, args
    assert "DEGRADED" in run("dashboard").output


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize("command", [("dashboard",), ("agents", "list")])
def test_a_narrow_terminal_shows_who_it_is(
    engine: Engine, now: datetime, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], columns: int
) -> None:
    """However narrow the terminal is, an agent's name stands there, and nine letters of it on one line."""
    monkeypatch.setenv("COLUMNS", str(columns))
    long = {"schedule": "*/5 9-17 * * mon-fri", "time_zone": "America/New_York", "interval_seconds": None}
    put_agent(engine, "crawler-1", at=now, current_work="reading the handbook", project="billing", **long)
    printed = run(*command).stdout
    assert "crawler-1" in printed
    assert max(map(len, printed.splitlines())) <= columns


def test_agents_are_listed_by_their_latest_heartbeat(engine: Engine, now: datetime) -> None:
    """`agents list` has the live ones, the newest heartbeat first; states and ended ones as asked."""
    put_agent(engine, "torv", at=now - seconds(20))
    put_agent(engine, "hint", at=now - seconds(5))
    put_agent(engine, "rams", at=now - seconds(300), state="degraded")
    put_agent(engine, "gone", at=now - seconds(10), state="ended", ended_at=now)
    put_sweep(engine, now)

    def names(*args: str) -> list[str]:
        return [agent["agent_name"] for agent in answer("agents", "list", *args)["agents"]]

    assert names() == ["hint", "torv", "rams"]
    assert names("--all") == ["hint", "gone", "torv", "rams"]
    assert names("--state", "OK, degraded") == ["hint", "torv", "rams"]
    assert names("--state", "ended") == ["gone"]
    assert run("agents", "list", "--state", "fine").exit_code == 2


def test_an_agent_is_shown_in_full(engine: Engine, now: datetime) -> None:
    """`agents show` takes a name or a session, and has what the agent said, its tasks and its last events."""
    session_id = put_agent(engine, "hint", at=now, error="e" * 300, metadata={"model": "m-1"})
    for number in range(12):
        put_event(engine, "heartbeat", "hint", now, text=f"step {number}", session_id=session_id)
    put_sweep(engine, now)
    run("tasks", "add", "hint", "Sort")
    report = answer("agents", "show", "hint")
    assert report == answer("agents", "show", str(session_id)) | {name: report[name] for name in ("as_of", "uptime")}
    assert report["tasks"] == {"open": 1, "stale": 0}
    assert [event["text"] for event in report["events"]] == [f"step {number}" for number in range(2, 12)]
    text = run("agents", "show", "hint").output
    assert text.count("e") > 300
    assert '{"model": "m-1"}' in text


def test_an_agent_that_never_was_is_an_error(engine: Engine) -> None:
    """An unknown name or session exits 1 with a sentence."""
    for asked in ("nobody", "019c0d3e-0000-7000-8000-000000000000"):
        result = run("agents", "show", asked)
        assert result.exit_code == 1
        assert "was ever registered. See: fleetbeat agents list --all" in result.stderr
    assert engine is not None


@pytest.mark.parametrize(
    ("command", "kept"),
    [(("events",), "events"), (("notifications", "list"), "notifications"), (("dashboard",), "agents")],
)
def test_a_name_that_nobody_ever_had_is_no_good_news(
    engine: Engine, now: datetime, command: tuple[str, ...], kept: str
) -> None:
    """A typo in --agent ends with 1 and a sentence, JSON stays valid; a known name that has nothing ends with 0."""
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
def test_a_name_that_nobody_can_have_is_wrong_usage(args: tuple[str, ...]) -> None:
    """A name that isn't UTF-8 or has escape sequences is refused with a sentence, before a database is asked for it."""
    for name, found in (("b\udcfccher", "U+DCFC"), ("no\x1b(body", "U+001B")):
        result = run(*args, name)
        assert result.exit_code == 2, result.output
        assert f"not an agent's name: it has characters that can't be printed ({found}" in result.stderr
        assert "\x1b" not in result.output
        assert result.stdout == ""


def test_events_come_newest_last(engine: Engine, now: datetime) -> None:
    """`events` shows the latest ones in their order, of one agent or of some types."""
    for kind, name in (("registered", "hint"), ("registered", "torv"), ("degraded", "hint"), ("recovered", "hint")):
        put_event(engine, kind, name, now)

    def kinds(*args: str) -> list[str]:
        return [event["type"] for event in answer("events", *args)["events"]]

    assert kinds() == ["registered", "registered", "degraded", "recovered"]
    assert kinds("--limit", "2") == ["degraded", "recovered"]
    assert kinds("--agent", "torv") == ["registered"]
    assert kinds("--type", "registered", "--type", "recovered", "--agent", "hint") == ["registered", "recovered"]
    lines = run("events").output.splitlines()
    assert "recovered" in lines[-1]


def test_an_events_detail_reads_as_people_speak(engine: Engine, now: datetime) -> None:
    """Moments are shown as times, durations with their units; whatever else is there is shown as it is."""
    detail = {
        "deadline_at": "2026-01-31T12:00:00.000+00:00",
        "silent_seconds": 20.853,
        "missed": 2,
        "why": "31",
        "x": None,
    }
    put_event(engine, "degraded", "hint", now, detail=detail)
    assert "deadline 2026-01-31 12:00:00, silent 20s, missed 2, why 31" in " ".join(run("events").output.split())


def test_a_rejected_message_is_shown_and_does_nothing(engine: Engine) -> None:
    """Bytes that would act on a terminal are written out; the exact ones are in the JSON."""
    raw = b"\x1b[31mred\x9b\xff\n\xe2\x80\xae"
    number = put_rejected(engine, "1-1", raw, detail="no JSON\x1b[0m")
    put_rejected(engine, "1-2", b"{}", "unknown_session")
    output = run("rejected", "show", str(number)).output
    assert r"\x1b[31mred\x9b\xff\n\u202e" in output.replace("\\u009b", "\\x9b")
    assert "\x1b" not in output
    shown = answer("rejected", "show", str(number))
    assert shown["raw_base64"] == "G1szMW1yZWSb/wrigK4="
    listed = answer("rejected", "list")
    assert listed["counts"] == {"not_json": 1, "unknown_session": 1}
    assert [row["size"] for row in listed["rejected"]] == [len(raw), 2]
    assert [row["reason"] for row in answer("rejected", "list", "--reason", "unknown_session")["rejected"]] == [
        "unknown_session"
    ]
    assert run("rejected", "show", "99").exit_code == 1
    none = run("rejected", "list", "--reason", "poison").output
    assert none == "None of the rejected messages matches. There are 2 messages: 1 not_json, 1 unknown_session.\n"


def test_requeue_tells_what_became_of_each(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requeue takes ids or all of a reason, tells each outcome, and exits 1 when any stays rejected."""
    first, second = put_rejected(engine, "1-1", b"x"), put_rejected(engine, "1-2", b"{}", "unknown_session")
    monkeypatch.setattr(
        "fleetbeat_worker.cli.rejected.apply_again",
        lambda _settings, _engine, _client, ids: ((i, "stored" if i == second else "not_json") for i in ids),
    )
    assert answer("rejected", "requeue", "--all", "--reason", "unknown_session") == {
        "results": [{"id": second, "outcome": "stored"}]
    }
    result = run("rejected", "requeue", "--all")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"{first}: not_json",
        f"{second}: stored",
        "1 message stored, 1 still rejected.",
    ]
    missing = run("rejected", "requeue", str(second), "77")
    assert missing.exit_code == 1
    assert "There is no rejected message 77; nothing was done." in missing.stderr
    for args in ([], ["1", "--all"], ["1", "--reason", "not_json"]):
        assert run("rejected", "requeue", *args).exit_code == 2


def test_a_requeue_that_is_interrupted_tells_what_is_left(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C what was done is told, and how many weren't tried."""
    numbers = [put_rejected(engine, f"1-{number}", b"x") for number in range(1, 4)]

    def apply(*_: Any) -> Iterator[tuple[int, str]]:
        yield numbers[0], "stored"
        raise KeyboardInterrupt

    monkeypatch.setattr("fleetbeat_worker.cli.rejected.apply_again", apply)
    result = run("rejected", "requeue", "--all")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [f"{numbers[0]}: stored", "1 message stored, 0 still rejected, 2 not tried."]


def test_the_queue_shows_who_holds_what(engine: Engine, redis: FakeRedis) -> None:
    """`queue` has the backlog, the entries in each consumer's hands, RQ's jobs and its workers."""
    assert answer("queue")["pending"] == []
    for _ in range(3):
        redis.xadd(INBOX, {FIELD: b"{}"})
    redis.xgroup_create(INBOX, GROUP, id="0")
    redis.xreadgroup(GROUP, "dead", {INBOX: ">"}, count=2)
    queue = Queue(QUEUE, connection=redis, serializer="json")
    queue.enqueue("builtins.print")
    worker = SimpleWorker([queue], name="w-1", connection=redis, serializer="json")
    worker.register_birth()
    state = answer("queue")
    assert (state["backlog"], state["pending"]) == (3, [{"consumer": "dead", "entries": 2}])
    assert state["jobs"] == {"waiting": 1, "started": 0, "failed": 0}
    assert [found["name"] for found in state["workers"]] == ["w-1"]
    text = run("queue").output
    assert "3 messages not yet in SQL" in text
    assert "2 messages claimed by dead" in text
    assert "w-1" in text
    assert answer("dashboard")["pipeline"]["workers"] == 1
    assert engine is not None


def test_an_open_incident_is_shown(engine: Engine, now: datetime) -> None:
    """The dashboard and check say in one line that many went silent at once, since when, and how many still are."""
    put_sweep(engine, now)
    put_agent(engine, "hint", at=now)
    assert answer("dashboard")["incident"] is answer("check")["incident"] is None
    assert "incident" not in run("dashboard").output
    then = now - seconds(90)
    with writing(engine) as connection:
        number = begin_incident(connection, then, 16, 28, (then, then))
    put_agent(engine, "rams", at=now - seconds(300), state="degraded")
    with writing(engine) as connection:
        connection.execute(update(Liveness).where(Liveness.state == "degraded").values(incident_id=number))
    line = r"Incident open since [-\d: ]+ UTC: 16 of 28 agents fell silent, still silent: 1"
    assert re.search(line, " ".join(run("dashboard").output.split()))
    told = run("check")
    assert (told.exit_code, told.output.count("\n")) == (1, 1)
    assert re.search(line, told.output)
    for open_now in (answer("dashboard")["incident"], answer("check", code=1)["incident"]):
        assert (open_now["agents"], open_now["live_agents"], open_now["silent"]) == (16, 28, 1)


def test_workers_that_stand_still_are_told(engine: Engine, now: datetime, redis: FakeRedis) -> None:
    """Behind, with a worker that gave no sign for a while and stores nothing: that one is to be looked at."""
    put_sweep(engine, now)
    redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
    redis.xadd(INBOX, {FIELD: b"{}"}, id=f"{int((now - seconds(45)).timestamp() * 1000)}-0")
    for name, age in (("w-1", 17), ("w-2", 1)):
        worker = SimpleWorker(
            [Queue(QUEUE, connection=redis, serializer="json")], name=name, connection=redis, serializer="json"
        )
        worker.register_birth()
        redis.hset(worker.key, "last_heartbeat", utcformat(now - seconds(age)))
    told = run("check")
    assert told.exit_code == 3
    assert re.search(
        r"The workers are 4\ds behind .*1 of 2 workers gave no sign for 1\ds\. Look: fleetbeat workers", told.output
    )


def test_an_agent_is_shown_with_the_lag_of_the_pipeline(engine: Engine, now: datetime, redis: FakeRedis) -> None:
    """With a lag of more than two sweeps a state is shown as of when; without one nothing is said of it."""
    put_agent(engine, "hint", at=now - seconds(40), interval_seconds=10.0)
    put_sweep(engine, now)
    assert "as of" not in run("agents", "show", "hint").output
    put_sweep(engine, now - seconds(12))
    redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
    redis.xadd(INBOX, {FIELD: b"{}"}, id=f"{int((now - seconds(12)).timestamp() * 1000)}-0")
    shown = " ".join(run("agents", "show", "hint").output.split())
    assert re.search(r"\(as of [\d: -]+ UTC; the pipeline is 1\ds behind\)", shown)


def test_check_says_well_degraded_or_behind(engine: Engine, now: datetime, redis: FakeRedis) -> None:
    """Exit status 0, 1 and 3 in one line each; trouble of the pipeline goes before degraded agents."""
    put_agent(engine, "hint", at=now)
    put_agent(engine, "torv", at=now - seconds(40))
    put_sweep(engine, now)
    well = run("check")
    assert (well.exit_code, well.output.count("\n")) == (0, 1)
    assert well.output.startswith("OK: 2 agents (1 late), none degraded")
    put_agent(engine, "rams", at=now - seconds(300), state="degraded")
    ill = run("check")
    assert (ill.exit_code, ill.output.count("\n")) == (1, 1)
    assert ill.output.startswith("DEGRADED: 1 of 3 agents: rams (last seen 5m")
    assert answer("check", code=1)["degraded"] == ["rams"]
    assert run("check", "--agent", "hint").exit_code == 0
    assert run("check", "--agent", "rams").exit_code == 1
    assert run("check", "--agent", "nobody").exit_code == 1
    put_sweep(engine, now - seconds(31))
    behind = run("check")
    assert (behind.exit_code, behind.output.count("\n")) == (3, 1)
    assert behind.output.startswith("PIPELINE: The last sweep was 3")
    redis.connection_pool.connection_kwargs["server"].connected = False
    away = run("check")
    assert away.exit_code == 3
    assert away.output.startswith("PIPELINE: Redis at redis://127.0.0.1:1/0 can't be used")
    assert "secret" not in away.output


@pytest.mark.parametrize("command", ["dashboard", "events", "tasks list hint", "db check", "rejected list"])
def test_without_data_nothing_is_made(command: str, tmp_path: Path) -> None:
    """Looking at a database that isn't there says how to begin, and leaves no file behind."""
    result = run(*command.split(), "--database-url", f"sqlite:///{tmp_path / 'below' / 'fleet.db'}")
    assert result.exit_code == 1
    assert "There is no data yet" in result.stderr
    assert "fleetbeat up" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_our_schema_is_refused(tmp_path: Path) -> None:
    """An empty database is told from ours by one sentence, and `check` calls it trouble of the pipeline."""
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
        (["dashboard", "--database-url", "mysql://u:secret@h/x"], 2, "FLEETBEAT_DATABASE_URL is no URL"),
        (["queue", "--redis-url", "http://u:secret@h"], 2, "FLEETBEAT_REDIS_URL is no Redis URL"),
        (
            ["queue", "--redis-url", "redis://u:secret@127.0.0.1:1/0"],
            75,
            "Redis at redis://127.0.0.1:1/0 can't be used",
        ),
        (["events", "--database-url", "postgresql://u:secret@127.0.0.1:1/x"], 75, "postgresql://127.0.0.1:1/x"),
        (["check", "--database-url", "mysql://u:secret@h/x"], 2, "FLEETBEAT_DATABASE_URL is no URL"),
    ],
)
def test_errors_are_one_sentence_and_keep_secrets(args: list[str], code: int, says: str) -> None:
    """A bad setting exits 2, what is away exits 75, each on stderr, without the URL's password."""
    result = run(*args)
    assert result.exit_code == code
    assert says in result.stderr
    assert "secret" not in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["dashboard", "check", "db upgrade", "db check", "events", "sweep"])
def test_an_option_that_the_driver_refuses_is_a_bad_setting(command: str) -> None:
    """A URL with a misspelt option exits 2 and names it, instead of a traceback or an advice to try again."""
    result = run(*command.split(), "--database-url", "postgresql://u:secret@127.0.0.1:1/x?nonsense=x")
    assert result.exit_code == 2, result.output
    assert 'invalid connection option "nonsense"' in result.stderr
    assert "FLEETBEAT_DATABASE_URL" in result.stderr
    assert "secret" not in result.output


def test_a_folder_that_cant_be_made_is_a_bad_setting(tmp_path: Path) -> None:
    """A database below something that is no folder exits 2 with the place and the reason in a sentence."""
    (tmp_path / "file").touch()
    result = run("db", "upgrade", "--database-url", f"sqlite:///{tmp_path / 'file' / 'below' / 'fleet.db'}")
    assert result.exit_code == 2, result.output
    assert f"The folder {tmp_path / 'file' / 'below'} in FLEETBEAT_DATABASE_URL can't be made (" in result.stderr


def test_check_counts_no_missed_intervals(engine: Engine, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` and the text of `agents list` ask for states alone, which many silent agents on schedules make cheap."""
    put_agent(engine, "hint", at=now, state="degraded", interval_seconds=None, schedule="* * * * *", time_zone="UTC")
    put_sweep(engine, now)

    def count(*_: object, **__: object) -> int:
        pytest.fail("missed intervals of a degraded agent were counted")

    monkeypatch.setattr(judging, "missed_intervals", count)
    assert run("check").output.startswith("DEGRADED: 1 of 1 agent: hint")
    assert "DEGRADED" in run("agents", "list").output


def test_agents_show_says_that_counting_stopped(engine: Engine, now: datetime) -> None:
    """An agent that missed more than are counted shows the bound with a plus."""
    put_agent(engine, "hint", at=now - seconds(90_000), state="degraded")
    put_sweep(engine, now)
    assert ", 100+ missed" in run("agents", "show", "hint").output
    assert answer("agents", "show", "hint")["agent"]["missed_intervals"] == 100


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that can't be used stops every command, with its name."""
    monkeypatch.setenv("FLEETBEAT_SWEEP_SECONDS", "soon")
    result = run("check")
    assert result.exit_code == 2
    assert "FLEETBEAT_SWEEP_SECONDS" in result.stderr


def test_what_stands_beside_the_state(engine: Engine, now: datetime) -> None:
    """Who is stuck, flaps or can't be judged is shown as such, in words and in JSON; `check` names the last."""
    put_agent(engine, "loops", at=now, stuck_at=now)
    put_agent(engine, "flips", at=now, flapping_at=now)
    put_sweep(engine, now)
    assert run("check").exit_code == 0
    put_agent(engine, "lost", at=now, schedule="0 * * * *", interval_seconds=0.0, time_zone="Mars/X", unjudged_at=now)
    with writing(engine) as connection:
        connection.execute(update(Liveness).where(Liveness.interval_seconds == 0.0).values(interval_seconds=None))
    marks = {
        agent["agent_name"]: [name for name in ("stuck", "flapping", "unjudged") if agent[name]]
        for agent in answer("dashboard")["agents"]
    }
    assert marks == {"loops": ["stuck"], "flips": ["flapping"], "lost": ["unjudged"]}
    for args in (["dashboard"], ["agents", "list"]):
        output = run(*args).output
        assert [output.count(word) for word in ("stuck", "flapping", "unjudged")] == [1, 1, 1]
    assert "ok since" in (shown := run("agents", "show", "loops").output)
    assert ", stuck" in shown
    assert answer("agents", "show", "lost")["agent"]["missed_intervals"] is None
    ill = run("check")
    assert (ill.exit_code, ill.output.count("\n")) == (1, 1)
    assert ill.output.startswith(
        "UNJUDGED: 1 agent can't be judged: lost. For the reason see: fleetbeat events --type unjudged"
    )
    assert answer("check", code=1)["unjudged"] == ["lost"]
    put_agent(engine, "rams", at=now - seconds(300), state="degraded")
    both = answer("check", code=1)
    assert (both["status"], both["degraded"], both["unjudged"]) == ("degraded", ["rams"], ["lost"])

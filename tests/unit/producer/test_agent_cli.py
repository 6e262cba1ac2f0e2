from __future__ import annotations

import json
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from fakeredis import FakeRedis, FakeServer

from fleetbeat_producer import transport
from fleetbeat_producer.cli import main
from fleetbeat_shared import redis_keys
from fleetbeat_shared.identifiers import stable_session_id
from fleetbeat_shared.messages import Message, Reply, parse_message
from helpers import sent_messages

SESSION = "3d6f6917-efad-4b03-b9bf-d8e124b2e8bb"
SEEN = datetime(2024, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run_json(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    return result.exit_code, json.loads(result.stdout)


def sent(redis: FakeRedis) -> list[Message]:
    return sent_messages(redis)


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where this test's heartbeats wait while Redis is away."""
    monkeypatch.setenv("FLEETBEAT_SPOOL_DIR", str(tmp_path / "spool"))
    return tmp_path / "spool"


@pytest.fixture
def answered(producer_redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> FakeRedis:
    """Let each message be answered as it arrives: stored for SESSION, and unknown for every other session."""
    add = producer_redis.xadd

    def add_and_answer(key: str, fields: dict[str, bytes]) -> object:
        message = parse_message(fields[redis_keys.FIELD])
        known = message.session_id in {UUID(SESSION), stable_session_id("hint")}
        reply = (
            Reply(ok=True, session_id=message.session_id, agent_name="hint", timestamp=SEEN, progress="as stored")
            if known
            else Reply(ok=False, code="unknown_session", session_id=message.session_id)
        )
        producer_redis.rpush(redis_keys.reply_key(message.id), reply.model_dump_json())
        return add(key, fields)

    monkeypatch.setattr(producer_redis, "xadd", add_and_answer)
    return producer_redis


def test_register_prints_and_sends_every_option(producer_redis: FakeRedis) -> None:
    """Every option of a registration reaches the inbox and the printed object."""
    parent = "0198c5a0-6b1e-4e0e-9d53-5d0f4f1a7c11"
    options = ["--name", "hint", "--every", "1h30m", "--grace", "10s", "--project", "p", "--work", "w"]
    options += ["--missed", "3", "--stuck-after", "20"]
    options += ["--parent", parent, "--metadata", '{"model": "small"}', "--parallel", "--session", SESSION]
    code, printed = run_json("register", *options)
    (message,) = sent(producer_redis)
    assert code == 0
    assert printed == {
        "ok": True,
        "message_id": str(message.id),
        "session_id": SESSION,
        "agent_name": "hint",
        "timestamp": message.sent_at.isoformat().replace("+00:00", "Z"),
        "sent_at": printed["timestamp"],
        "progress": None,
        "interval_seconds": 5400,
        "grace_seconds": 10,
        "missed_intervals": 3,
        "stuck_after": 20,
        "project": "p",
        "work": "w",
        "parent_id": parent,
        "metadata": {"model": "small"},
        "parallel": True,
    }
    assert (message.interval_seconds, message.grace_seconds, message.parallel) == (5400, 10, True)


def test_register_takes_a_cron_expression(producer_redis: FakeRedis) -> None:
    """--cron and --time-zone become the schedule, --stable the id of the name."""
    code, printed = run_json("register", "--name", "nightly", "--cron", "15 8 * * *", "--time-zone", "UTC", "--stable")
    (message,) = sent(producer_redis)
    assert (code, printed["session_id"]) == (0, str(stable_session_id("nightly")))
    assert (message.schedule, message.time_zone) == ("15 8 * * *", "UTC")


def test_heartbeat_prints_what_was_sent(producer_redis: FakeRedis) -> None:
    """Without --wait the printed object has the sender's time and no name, as only the database knows it."""
    options = ["--progress", "reading\nmail", "--work-item", "W-1", "--status", "busy", "--summary", "s"]
    options += ["--error", "", "--open-tasks", "3", "--stale-tasks", "0", "--metadata", "{}"]
    code, printed = run_json("heartbeat", "--session", SESSION, *options)
    (message,) = sent(producer_redis)
    assert code == 0
    assert printed == {
        "ok": True,
        "message_id": str(message.id),
        "session_id": SESSION,
        "agent_name": None,
        "timestamp": printed["sent_at"],
        "sent_at": message.sent_at.isoformat().replace("+00:00", "Z"),
        "progress": "reading mail",
        "work_item_id": "W-1",
        "status": "busy",
        "summary": "s",
        "error": "",
        "open_tasks": 3,
        "stale_tasks": 0,
        "metadata": {},
        "spooled": False,
    }


def test_an_agent_is_found_by_its_name(producer_redis: FakeRedis) -> None:
    """--agent means the session of the name, for heartbeats and deregistrations, and the output has the name."""
    for command in (["heartbeat", "--progress", "x"], ["deregister", "--exit-status", "3", "--error", "e"]):
        code, printed = run_json(*command, "--agent", " hint ")
        assert (code, printed["agent_name"], printed["session_id"]) == (0, "hint", str(stable_session_id("hint")))
    _, deregistration = sent(producer_redis)
    assert (deregistration.kind, deregistration.exit_status, deregistration.error) == ("deregister", 3, "e")


@pytest.mark.usefixtures("answered")
@pytest.mark.parametrize("who", [["--session", SESSION], ["--agent", "hint"]])
def test_wait_prints_the_reply(who: list[str]) -> None:
    """With --wait the name, the time and the progress are the worker's."""
    code, printed = run_json("heartbeat", *who, "--progress", "as sent", "--status", "ok", "--wait", "5")
    assert (code, printed["ok"], printed["agent_name"], printed["progress"]) == (0, True, "hint", "as stored")
    assert printed["timestamp"] == "2024-06-01T12:00:00.250000Z"
    assert printed["status"] == "ok"


@pytest.mark.usefixtures("answered")
def test_an_unknown_session_exits_1() -> None:
    """A session that was never registered is refused; trying again wouldn't help."""
    code, printed = run_json("heartbeat", "--agent", "nobody", "--wait", "5")
    assert (code, printed["ok"], printed["code"]) == (1, False, "unknown_session")
    assert str(stable_session_id("nobody")) in printed["error"]


@pytest.mark.usefixtures("producer_redis")
def test_no_reply_exits_75() -> None:
    """No reply in time means: try again later."""
    code, printed = run_json("heartbeat", "--session", SESSION, "--wait", "0.1")
    assert (code, printed["ok"], printed["code"]) == (75, False, "not_confirmed")


@pytest.mark.usefixtures("producer_redis")
@pytest.mark.parametrize(
    "command",
    [
        ["register", "--name", "hint", "--every", "5s"],
        ["heartbeat", "--agent", "hint", "--strict"],
        ["heartbeat", "--agent", "hint", "--wait", "5"],
        ["deregister", "--agent", "hint"],
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)
def test_redis_away_exits_75(redis_server: FakeServer, command: list[str]) -> None:
    """A Redis that is away is reported in one sentence on stderr, or as one object that says what was spooled."""
    redis_server.connected = False
    result = run(*command)
    assert (result.exit_code, result.stdout) == (75, "")
    assert result.stderr.startswith("Error: Redis at redis://127.0.0.1:6390/0 can't be used")
    code, printed = run_json(*command)
    assert (code, printed["ok"], printed["code"]) == (75, False, "redis_unavailable")
    assert printed.get("spooled") is (True if command[0] == "heartbeat" else None)


def test_a_heartbeat_waits_on_disk_for_the_next_call(
    producer_redis: FakeRedis, redis_server: FakeServer, spool: Path
) -> None:
    """With Redis away a heartbeat is spooled with a warning and exit status 0; any later call sends it first."""
    redis_server.connected = False
    kept = run("heartbeat", "--agent", "hint", "--progress", "kept")
    assert (kept.exit_code, kept.stdout) == (0, "Kept a heartbeat for hint in the spool.\n")
    assert kept.stderr.startswith("Warning: Redis at redis://127.0.0.1:6390/0 can't be used")
    printed = json.loads(run("heartbeat", "--agent", "hint", "--json").stdout)
    assert (printed["ok"], printed["spooled"], printed["agent_name"]) == (True, True, "hint")
    redis_server.connected = True
    assert run("deregister", "--agent", "hint").exit_code == 0
    first, second, deregistration = sent(producer_redis)
    assert (first.progress, str(second.id), deregistration.kind) == ("kept", printed["message_id"], "deregister")
    assert not list(spool.glob("*.json"))


def test_a_heartbeat_that_cannot_be_spooled_is_lost(
    producer_redis: FakeRedis, redis_server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A spool that can't be used is an error with exit status 75 while Redis is away, and otherwise a warning."""
    monkeypatch.setenv("FLEETBEAT_SPOOL_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    redis_server.connected = False
    code, printed = run_json("heartbeat", "--agent", "hint")
    assert (code, printed["code"], printed["spooled"]) == (75, "redis_unavailable", False)
    assert "The heartbeat is lost. The spool " in printed["error"]
    redis_server.connected = True
    result = run("heartbeat", "--agent", "hint")
    assert (result.exit_code, result.stdout) == (0, "Sent a heartbeat for hint.\n")
    assert result.stderr.startswith("Warning: The spool ")
    assert len(sent(producer_redis)) == 1


@pytest.mark.usefixtures("producer_redis")
def test_the_log_has_a_line_for_each_call(redis_server: FakeServer, tmp_path: Path) -> None:
    """Whatever the outcome, a call is one line, with its message; a log that can't be written is a warning."""
    log = tmp_path / "log"
    run("register", "--name", "hint", "--every", "5s", "--stable", "--log-file", str(log))
    run("heartbeat", "--agent", "hint", "--progress", "x", "--log-file", str(log))
    run("heartbeat", "--session", SESSION, "--wait", "0.05", "--log-file", str(log))
    run("heartbeat", "--session", "no\x1buuid", "--log-file", str(log))
    run("heartbeat", "--log-file", str(log))
    redis_server.connected = False
    run("heartbeat", "--agent", "hint", "--strict", "--log-file", str(log))
    run("deregister", "--agent", "hint", "--log-file", str(log))
    lines = [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines()]
    assert [(agent, outcome, json.loads(what).get("kind")) for _, agent, outcome, what in lines] == [
        ("hint", "sent", "register"),
        ("hint", "sent", "heartbeat"),
        (SESSION, "not_confirmed", "heartbeat"),
        ("no\\u001buuid", "invalid_message", None),
        ("-", "usage", None),
        ("hint", "spooled", "heartbeat"),
        ("hint", "redis_unavailable", "deregister"),
    ]
    result = run("heartbeat", "--agent", "hint", "--log-file", str(tmp_path))
    assert result.exit_code == 0
    assert f"Warning: The log {tmp_path} can't be written" in result.stderr


@pytest.mark.usefixtures("answered")
def test_the_log_shows_confirmed_heartbeats(tmp_path: Path) -> None:
    """A heartbeat that is in the database is distinguished from one that was only sent."""
    run("heartbeat", "--agent", "hint", "--wait", "5", "--log-file", str(tmp_path / "log"))
    assert "\thint\tconfirmed\t" in (tmp_path / "log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["register", "--name", "hint"], "either --every or --cron"),
        (["register", "--name", "hint", "--every", "5s", "--cron", "* * * * *"], "either --every or --cron"),
        (["register", "--every", "5s"], "--name"),
        (["register", "--name", "hint", "--every", "soon"], "'soon' is not a duration"),
        (["register", "--name", "hint", "--every", "0.1s"], "--every: 0.1s is too small; 1s to 31d"),
        (["register", "--name", "hint", "--every", "32d"], "--every: 32d is too large; 1s to 31d is allowed"),
        (["register", "--name", "hint", "--every", "5s", "--grace", "400d"], "--grace: 400d is too large; 0s to 31d"),
        (["register", "--name", "hint", "--every", "5s", "--parent", "torv"], "--parent: 'torv' is not a UUID"),
        (["register", "--name", "hint", "--every", "5s", "--missed", "x"], "'x' is not a whole number; 1 to 100 is"),
        (["register", "--name", "hint", "--every", "5s", "--missed", "0"], "0 is too small; 1 to 100 is allowed"),
        (["register", "--name", "x" * 65, "--every", "5s"], "--name: it has 65 characters; 1 to 64 are allowed"),
        (["heartbeat", "--agent", ""], "--agent: it is empty"),
        (["register", "--name", "hint", "--cron", "whenever"], "'whenever' is not a cron expression"),
        (["register", "--name", "hint", "--every", "5s", "--time-zone", "UTC"], "--time-zone goes with --cron"),
        (
            ["register", "--name", "hint", "--cron", "* * * * *", "--stuck-after", "5"],
            "--stuck-after goes with --every",
        ),
        (["register", "--name", "hint", "--cron", "* * * * *", "--time-zone", "Mars"], "'Mars' is not a time zone"),
        (["register", "--name", "hint", "--every", "5s", "--stable", "--parallel"], "--stable and --parallel"),
        (["register", "--name", "", "--every", "5s", "--stable"], "--name: it is empty; 1 to 64 characters"),
        (["register", "--name", "hint", "--every", "5s", "--metadata", "{bad"], "not a JSON object"),
        (["register", "--name", "hint", "--every", "5s", "--metadata", "[" * 100_000], "not a JSON object"),
        (["heartbeat"], "either --session or --agent"),
        (["heartbeat", "--session", SESSION, "--agent", "hint"], "either --session or --agent"),
        (["heartbeat", "--session", "hint"], "--session: 'hint' is not a UUID"),
        (["heartbeat", "--session", SESSION, "--metadata", "[1]"], "not a JSON object"),
        (["heartbeat", "--session", SESSION, "--metadata", '{"a": NaN}'], "metadata"),
        (["heartbeat", "--session", SESSION, "--open-tasks", "many"], "--open-tasks"),
        (["heartbeat", "--session", SESSION, "--open-tasks", "-1"], "--open-tasks: -1 is too small"),
        (
            ["heartbeat", "--session", SESSION, "--progress", "x" * 501],
            "--progress: it has 501 characters; at most 500",
        ),
        (["heartbeat", "--session", SESSION, "--wait", "nan"], "--wait"),
        (["heartbeat", "--session", SESSION, "--wait", "0"], "--wait"),
        (["heartbeat", "--session", SESSION, "--timeout", "nan"], "--timeout"),
        (["deregister", "--session", SESSION, "--timeout", "0"], "--timeout"),
        (["heartbeat", "--session", SESSION, "--surprise"], "--surprise"),
        (["deregister"], "either --session or --agent"),
        (
            ["deregister", "--session", SESSION, "--exit-status", str(2**40)],
            "--exit-status: 1099511627776 is too large",
        ),
        (["shutdown"], "shutdown"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_bad_usage_exits_2_and_sends_nothing(producer_redis: FakeRedis, arguments: list[str], expected: str) -> None:
    """An error names the option or field: on stderr, or with --json as one object."""
    plain = run(*arguments)
    assert (plain.exit_code, plain.stdout) == (2, "")
    assert expected in plain.stderr
    code, printed = run_json(*arguments)
    assert (code, printed["ok"]) == (2, False)
    assert expected in printed["error"]
    assert printed["code"] in {"usage", "invalid_message"}
    assert sent(producer_redis) == []


@pytest.mark.usefixtures("answered")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["register", "--name", "hint", "--every", "5s", "--session", SESSION],
            f"Registered hint as session {SESSION}.",
        ),
        (["heartbeat", "--session", SESSION], f"Sent a heartbeat for session {SESSION}."),
        (["heartbeat", "--agent", "hint"], "Sent a heartbeat for hint."),
        (["heartbeat", "--agent", "hint", "--wait", "5"], "hint was seen at 2024-06-01T12:00:00.250000Z: as stored."),
        (["deregister", "--agent", "hint"], "Sent a deregistration for hint."),
        (["deregister", "--session", SESSION], f"Sent a deregistration for session {SESSION}."),
    ],
)
def test_plain_output_is_one_sentence(arguments: list[str], sentence: str) -> None:
    """Without --json each command says in one sentence what it did."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, sentence + "\n", "")


@pytest.mark.usefixtures("producer_redis")
def test_control_characters_are_not_printed() -> None:
    """Escape sequences, line breaks and undecodable bytes in an option reach neither output nor error."""
    for dirty in ("\x1b[31mhi\nnt", "hi\udcff nt", "\u202ehi nt"):
        for options in (("--name", dirty, "--every", "5s"), ("--name", "x", "--every", dirty)):
            result = run("register", *options)
            assert result.exit_code == 2
            assert not {"\x1b", "\udcff", "\u202e"} & set(result.output)


@pytest.mark.parametrize("command", [["register", "--every", "5s", "--stable", "--name"], ["heartbeat", "--agent"]])
def test_a_name_that_cannot_be_printed_is_refused(producer_redis: FakeRedis, command: list[str]) -> None:
    """Without its escape sequence or line break the name could be another agent's, and change that agent's promise."""
    for dirty, point in (("hi\x1b[31mnt", "U+001B"), ("hi\nnt", "U+000A")):
        result = run(*command, dirty)
        assert result.exit_code == 2
        assert f"{command[-1]}: it has characters that can't be printed ({point})" in result.stderr
    assert sent(producer_redis) == []


def test_the_url_comes_from_option_variable_or_file(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The option overrides the environment, whose _FILE form works too."""
    urls: list[str] = []
    monkeypatch.setattr(transport, "connect", lambda url, **_options: urls.append(url) or redis)
    (tmp_path / "url").write_text("redis://from-file/0\n")
    monkeypatch.setenv("FLEETBEAT_REDIS_URL_FILE", str(tmp_path / "url"))
    run("heartbeat", "--agent", "hint")
    monkeypatch.delenv("FLEETBEAT_REDIS_URL_FILE")
    monkeypatch.setenv("FLEETBEAT_REDIS_URL", "redis://from-variable/0")
    run("heartbeat", "--agent", "hint")
    run("heartbeat", "--agent", "hint", "--redis-url", "redis://from-option/0")
    assert urls == ["redis://from-file/0", "redis://from-variable/0", "redis://from-option/0"]


@pytest.mark.parametrize(
    "url", ["redis://me:hunter2@127.0.0.1:1/0", "http://me:hunter2@127.0.0.1", "redis://:hunter2@[bad"]
)
def test_passwords_never_appear(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Neither an error nor --help shows the password of the URL, whether it comes as option or as variable."""
    monkeypatch.setenv("FLEETBEAT_REDIS_TIMEOUT_SECONDS", "0.5")
    by_option = run("heartbeat", "--agent", "hint", "--strict", "--redis-url", url)
    monkeypatch.setenv("FLEETBEAT_REDIS_URL", url)
    by_variable = run("heartbeat", "--agent", "hint", "--strict", "--json")
    for result in (by_option, by_variable, run("heartbeat", "--help")):
        assert "hunter2" not in result.output
    assert by_option.exit_code == by_variable.exit_code
    assert by_option.exit_code in {2, 75}


def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A malformed variable is reported by its name, with the code of a bad setting."""
    monkeypatch.setenv("FLEETBEAT_REDIS_TIMEOUT_SECONDS", "soon")
    code, printed = run_json("heartbeat", "--agent", "hint")
    assert (code, printed["code"]) == (2, "bad_setting")
    assert "FLEETBEAT_REDIS_TIMEOUT_SECONDS" in printed["error"]


@pytest.mark.parametrize("command", ["register", "heartbeat", "deregister"])
def test_examples_of_the_help_work(producer_redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """The examples in --help are commands that are accepted."""
    monkeypatch.chdir(Path(__file__).parents[3] / "docs")  # agents.toml is there
    text = run(command, "--help").stdout
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith("fleetbeat-agent ")]
    assert examples
    assert all(line.split()[1] == command for line in examples)
    for example in examples:
        arguments = shlex.split(example)[1:]
        if "--wait" not in arguments:
            assert run(*arguments).exit_code == 0
    assert sent(producer_redis)


def test_help_needs_no_redis() -> None:
    """`--help` answers without importing redis or croniter, which cost more than all the rest."""
    code = (
        "import sys; from fleetbeat_producer.cli import main; main(['heartbeat', '--help'], standalone_mode=False); "
        "print(sorted({'redis', 'croniter', 'sqlalchemy', 'rq', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip().endswith("[]")

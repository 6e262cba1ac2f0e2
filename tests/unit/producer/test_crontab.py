from __future__ import annotations

import json
import os
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner, Result
from fakeredis import FakeRedis
from hypothesis import given, settings, strategies as st

from fleetbeat_producer.cli import main
from fleetbeat_producer.cron.crontab import CrontabError, build_block, find_script, quote, replace_block
from fleetbeat_producer.cron.fleet_file import read_fleet_file
from fleetbeat_shared.errors import SettingsError
from fleetbeat_shared.redis_keys import INBOX
from helpers import fake_crontab

NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
FILE = Path("/fleet/agents.toml")
BLOCK = "# fleetbeat begin /fleet/agents.toml\n* * * * * beat\n# fleetbeat end /fleet/agents.toml\n"
HINT = '[[agents]]\nname = "hint"\nevery = "6h"\nlog_file = "cron.log"\n'


def block(folder: Path, text: str, zone: str = "UTC", **environment: str) -> str:
    path = folder / "agents.toml"
    path.write_text(text, encoding="utf-8")
    return build_block(read_fleet_file(path), environment, [ZoneInfo(zone)], NOW)


def cron_reads(command: str, *, two_backslashes_are_one: bool) -> str:
    r"""Do to a command what cron does: a `%` ends it, `\%` is one."""
    result, characters = "", iter(command)
    for character in characters:
        if character == "%":
            return result
        if character == "\\":
            following = next(characters, "")
            kept = "" if following == "%" or (following == "\\" and two_backslashes_are_one) else "\\"
            result += kept + following
        else:
            result += character
    return result


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]) | st.sampled_from("%\\'\" $`"), max_size=12)


@settings(max_examples=30, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=20))
def test_a_word_reaches_the_command_through_every_cron_and_the_shell(words: list[str]) -> None:
    """Quotes, dollars, percent signs and backslashes arrive unchanged, however cron treats backslashes."""
    command = "printf '[%s]' " + " ".join(map(quote, words))
    expected = "".join(f"[{word}]" for word in words)
    escaped = command.replace("%s", "\\%s", 1)  # the test's own
    lines = {command, *(cron_reads(escaped, two_backslashes_are_one=each) for each in (True, False))}
    for line in lines:
        done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True)
        assert done.stdout.decode() == expected


def test_a_line_holds_all_keys_of_its_agent(tmp_path: Path) -> None:
    """Name, status, summary, tasks and log file become options of a heartbeat, after the program's absolute path."""
    text = HINT + 'status = "ok"\nsummary = "100% done; isn\'t it"\nwork_item = "W-1"\nopen_tasks = 3\nprogress = "-p"'
    begin, line, end = block(tmp_path, text).splitlines()
    assert begin == f"# fleetbeat begin {tmp_path}/agents.toml"
    assert end == f"# fleetbeat end {tmp_path}/agents.toml"
    assert line.startswith("0 */6 * * * /")
    assert shlex.split(cron_reads(line, two_backslashes_are_one=True))[5:] == [
        *(str(find_script()), "heartbeat", "--agent", "hint"),
        *("--status", "ok", "--summary", "100% done; isn't it", "--progress", "-p"),
        *("--work-item", "W-1", "--open-tasks", "3", "--log-file", f"{tmp_path}/cron.log", ">/dev/null"),
    ]


def test_a_line_in_another_zone_checks_the_time(tmp_path: Path) -> None:
    """Where the machine's time zone differs, the line starts each hour and passes the schedule as --only-at."""
    text = '[defaults]\ntime_zone = "Europe/Berlin"\n[[agents]]\nname = "torv"\ncron = "15 8 * * *"\n'
    _, line, _ = block(tmp_path, text).splitlines()
    assert line.startswith("15 * * * * ")
    assert "--only-at '15 8 * * *' --time-zone Europe/Berlin" in line
    _, line, _ = block(tmp_path, text, "Europe/Berlin").splitlines()
    assert line.startswith("15 8 * * * ")
    assert "--only-at" not in line


@pytest.mark.parametrize(
    ("defaults", "environment", "words"),
    [
        ("", {}, ""),
        ("", {"FLEETBEAT_REDIS_URL": "redis://queue:6379/0"}, "FLEETBEAT_REDIS_URL=redis://queue:6379/0"),
        ("", {"FLEETBEAT_REDIS_URL_FILE": "/run/url"}, "FLEETBEAT_REDIS_URL_FILE=/run/url"),
        (
            '[defaults]\nredis_url_file = "/run/my url"\n',
            {"FLEETBEAT_REDIS_URL": "redis://:secret@queue", "FLEETBEAT_REDIS_URL_FILE": "/run/url"},
            "'FLEETBEAT_REDIS_URL_FILE=/run/my url'",
        ),
    ],
)
def test_a_line_sets_the_url_of_redis(tmp_path: Path, defaults: str, environment: dict[str, str], words: str) -> None:
    """The file's own setting overrides the environment's; no line sets anything for the lines below it."""
    lines = block(tmp_path, defaults + HINT, **environment).splitlines()
    assert lines[1].startswith(f"0 */6 * * * {words and f'/usr/bin/env {words} '}{find_script()} heartbeat")
    assert len(lines) == 3


@pytest.mark.parametrize("url", ["redis://:s3cret@queue/0", "rediss://queue?password=s3cret", "redis://:s3/cret@queue"])
def test_no_password_is_written_into_a_crontab(tmp_path: Path, url: str) -> None:
    """A URL with a password is refused, without quoting it, and with what to do instead."""
    with pytest.raises(SettingsError, match="Put the URL into a file that only you can read") as caught:
        block(tmp_path, HINT, FLEETBEAT_REDIS_URL=url)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        (HINT.replace("6h", "7h"), {}, 'agent "hint", every: a crontab can\'t express 7h evenly'),
        (HINT + f'summary = "{"x" * 500}"\nprogress = "{"x" * 400}"', {}, 'agent "hint": .* longer than the 998 bytes'),
        (HINT, {"FLEETBEAT_REDIS_URL": "redis://a\n* * * * * evil"}, 'agent "hint": .* control characters'),
    ],
)
def test_a_line_that_crontabs_cannot_hold_is_refused(
    tmp_path: Path, text: str, environment: dict[str, str], expected: str
) -> None:
    """An uneven interval, a line that some crons would refuse, a line break: an error with the agent's name."""
    with pytest.raises(SettingsError, match=expected):
        block(tmp_path, text, **environment)


def test_a_path_with_a_line_break_is_refused() -> None:
    """The markers around a block are one line each."""
    with pytest.raises(SettingsError, match="can't be written into a crontab"):
        replace_block("", Path("/a\nb"), "")


OTHER_LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=8), max_size=5)


@given(OTHER_LINES, OTHER_LINES)
def test_all_other_lines_stay_as_they_are(before: list[str], after: list[str]) -> None:
    """Adding, replacing and removing change only the block, wherever it is, odd bytes and all."""
    head, tail = ("".join(f"{line}\n" for line in lines) for lines in (before, after))
    old = BLOCK.replace("beat\n", "old\n* * * * * older\n")
    assert replace_block(head, FILE, BLOCK) == head + BLOCK
    assert replace_block(head + old + tail, FILE, BLOCK) == head + BLOCK + tail
    assert replace_block(head + BLOCK + tail, FILE, BLOCK) == head + BLOCK + tail
    assert replace_block(head + BLOCK + tail, FILE, "") == head + tail
    assert replace_block(head + tail, FILE, "") == head + tail
    assert replace_block("no newline", FILE, BLOCK) == "no newline\n" + BLOCK


def test_each_file_has_its_own_block() -> None:
    """Each file has a block of its own, also when one path begins with the other."""
    other = BLOCK.replace("agents.toml", "agents.toml2")
    both = replace_block(replace_block("", FILE, BLOCK), Path("/fleet/agents.toml2"), other)
    assert both == BLOCK + other
    assert replace_block(both, FILE, "") == other


@pytest.mark.parametrize("damaged", [0, 2])
@pytest.mark.parametrize("new", [BLOCK, ""])
def test_a_damaged_block_is_left_alone(damaged: int, new: str) -> None:
    """A begin without an end, an end without a begin, or two of one raise an error, and nothing is changed."""
    lines = BLOCK.splitlines(keepends=True)
    lost = "".join(lines[:damaged] + lines[damaged + 1 :])
    doubled = BLOCK + lines[damaged]
    for crontab in (lost, doubled, "".join(reversed(lines))):
        with pytest.raises(CrontabError, match=r"aren't a pair\. Nothing was changed"):
            replace_block(crontab, FILE, new)


def test_a_heartbeat_is_sent_only_at_its_time(producer_redis: FakeRedis, tmp_path: Path) -> None:
    """With --only-at nothing is sent or logged unless the expression matches this minute; a bad one exits 2."""
    log = tmp_path / "log"
    words = ["heartbeat", "--agent", "torv", "--log-file", str(log), "--json", "--only-at"]
    never = f"{(datetime.now(UTC).minute + 30) % 60} * * * *"
    result = CliRunner().invoke(main, [*words, never])
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"ok": True, "sent": False})
    assert not log.exists()
    assert producer_redis.xlen(INBOX) == 0
    for wrong in (["often"], ["* * * * *", "--time-zone", "Mars/Olympus"]):
        assert CliRunner().invoke(main, [*words, *wrong]).exit_code == 2
    assert CliRunner().invoke(main, [*words[:-1], "--time-zone", "UTC"]).exit_code == 2
    assert CliRunner().invoke(main, [*words, "* * * * *", "--time-zone", "Asia/Kathmandu"]).exit_code == 0
    assert producer_redis.xlen(INBOX) == 1
    assert log.read_text().count("\n") == 1


# The commands, with a crontab that keeps a file.


@pytest.fixture
def crontab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that the crontab command keeps; it isn't there before the first one is written."""
    monkeypatch.setenv("PATH", f"{fake_crontab(tmp_path)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("TZ", raising=False)
    (tmp_path / "agents.toml").write_text(HINT)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "bin" / "kept"


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["cron", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_install_and_remove(crontab: Path) -> None:
    """The first install shows the difference and writes; the second has nothing to do; remove removes all of it."""
    crontab.write_bytes(b"MAILTO=me\n# caf\xe9\n5 4 * * * ls\n")
    printed = run("print", "agents.toml").stdout
    result = run("install", "agents.toml", "--yes")
    assert result.exit_code == 0
    assert "+# fleetbeat begin" in result.stdout
    assert result.stdout.endswith("Installed.\n")
    assert crontab.read_bytes() == b"MAILTO=me\n# caf\xe9\n5 4 * * * ls\n" + printed.encode()
    written_at = crontab.stat().st_mtime_ns
    assert run("install", "agents.toml", "--yes").stdout == "The crontab is up to date; nothing was written.\n"
    assert crontab.stat().st_mtime_ns == written_at
    Path("agents.toml").unlink()
    assert run("remove", "agents.toml", "--yes").stdout.endswith("Removed.\n")
    assert crontab.read_bytes() == b"MAILTO=me\n# caf\xe9\n5 4 * * * ls\n"


def test_each_command_has_json(crontab: Path) -> None:
    """With --json there is one object, also without a crontab and when there is nothing to do."""
    printed = json.loads(run("print", "agents.toml", "--json").stdout)
    results = [
        json.loads(run(command, "agents.toml", "--yes", "--json").stdout)
        for command in ("install", "install", "remove", "remove")
    ]
    assert printed["lines"][0].startswith("# fleetbeat begin /")
    assert [each["changed"] for each in results] == [True, False, True, False]
    assert [f"+{line}" for line in printed["lines"]] == results[0]["difference"][-3:]
    assert all(each["ok"] and each["file"] == str(Path("agents.toml").absolute()) for each in [printed, *results])
    assert crontab.read_text() == ""


def test_nothing_is_written_without_confirmation(crontab: Path) -> None:
    """Without a terminal and without --yes it exits 2 and says so."""
    result = run("install", "agents.toml")
    assert result.exit_code == 2
    assert "There is no terminal to ask" in result.stderr
    assert not crontab.exists()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "echo 'you (me) are not allowed' >&2; exit 1",
            "can't be read: you (me) are not allowed. Nothing was changed.",
        ),
        ("[ $1 = -l ] || { echo 'bad minute' >&2; exit 1; }", "can't be written: bad minute. Nothing was changed."),
        ("exit 7", "can't be read: exit status 7."),
        (None, "There is no crontab command on PATH."),
    ],
)
def test_a_failure_of_crontab_is_reported(
    crontab: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, expected: str
) -> None:
    """The sentence quotes the crontab command, and the exit status is 1."""
    program = crontab.parent / "crontab"
    if script is None:
        monkeypatch.setenv("PATH", "/nowhere")
    else:
        program.write_text(f"#!/bin/sh\n{script}\n")
    result = run("install", "agents.toml", "--yes")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: The")
    assert expected in result.stderr

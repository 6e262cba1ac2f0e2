from __future__ import annotations

import fcntl
import json
import stat
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from fleetbeat_producer.one_shot import call_log
from processes import end_of, fork


def test_a_line_has_four_fields(tmp_path: Path) -> None:
    """A call is one line: time (UTC), agent, outcome and message; only its user may read the file."""
    log = tmp_path / "logs" / "beats.log"
    call_log.append(log, "hint", "sent", {"progress": "Blätter", "open_tasks": 3})
    line = log.read_text(encoding="utf-8")
    moment, agent, outcome, what = line.removesuffix("\n").split("\t")
    assert datetime.now(UTC) - datetime.fromisoformat(moment) < timedelta(minutes=5)
    assert (agent, outcome, what) == ("hint", "sent", '{"progress":"Blätter","open_tasks":3}')
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.mark.parametrize("dirty", ["a\nb", "a\tb", "\x1b[31m", "\x9b", "\u202e", "\u2028", "hi\udcff", "\U000e0001"])
def test_control_characters_are_escaped(tmp_path: Path, dirty: str) -> None:
    """Control characters are escaped in every field, and the message is still JSON."""
    log = tmp_path / "log"
    call_log.append(log, dirty, "sent", {"progress": dirty})
    (line,) = log.read_text(encoding="utf-8").splitlines()
    assert dirty not in line.replace("\t", "", 3)
    assert line.count("\t") == 3
    assert json.loads(line.split("\t")[3]) == {"progress": dirty}


def test_the_log_is_rotated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its size limit the log becomes PATH.1, which replaces the last one; no line is torn, none lost in the two."""
    monkeypatch.setattr(call_log, "MAX_BYTES", 1000)
    log = tmp_path / "log"
    for number in range(60):
        call_log.append(log, "hint", "sent", {"number": number})
    lines = [*(tmp_path / "log.1").read_text().splitlines(), *log.read_text().splitlines()]
    numbers = [json.loads(line.split("\t")[3])["number"] for line in lines]
    assert numbers == list(range(numbers[0], 60))
    assert len(numbers) > 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())


def test_many_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that write at the same time, and rotate the log meanwhile, lose no line and tear none."""
    monkeypatch.setattr(call_log, "MAX_BYTES", 40_000)
    monkeypatch.setattr(call_log, "LOCK_SECONDS", 60.0)
    log = tmp_path / "log"

    def write(writer: int) -> None:
        for number in range(100):
            call_log.append(log, f"agent {writer}", "sent", {"number": number, "padding": "x" * 20})

    assert {end_of(process) for process in [fork(partial(write, writer)) for writer in range(6)]} == {0}
    lines = [*(tmp_path / "log.1").read_text().splitlines(), *log.read_text().splitlines()]
    found = sorted((line.split("\t")[1], json.loads(line.split("\t")[3])["number"]) for line in lines)
    assert found == [(f"agent {writer}", number) for writer in range(6) for number in range(100)]


def test_a_log_rotated_before_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that opened the log before another one rotated it writes to the new one."""
    log = tmp_path / "log"
    log.write_text("old\n", encoding="utf-8")
    lock = fcntl.flock

    def rotate_and_lock(descriptor: int, how: int) -> None:
        if not (tmp_path / "log.1").exists():
            log.rename(tmp_path / "log.1")
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", rotate_and_lock)
    call_log.append(log, "hint", "sent", {})
    assert (tmp_path / "log.1").read_text(encoding="utf-8") == "old\n"
    assert "\thint\tsent\t" in log.read_text(encoding="utf-8")


def test_a_lock_that_is_never_released_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process that holds the log's lock causes an error after a time, not a call that hangs."""
    monkeypatch.setattr(call_log, "LOCK_SECONDS", 0.02)
    log = tmp_path / "log"
    with log.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            call_log.append(log, "hint", "sent", {})


def test_a_log_may_be_a_device(tmp_path: Path) -> None:
    """A file that isn't regular is written as it is, and one that can't be written raises OSError."""
    call_log.append(Path("/dev/null"), "hint", "sent", {})
    with pytest.raises(OSError, match="directory"):
        call_log.append(tmp_path, "hint", "sent", {})

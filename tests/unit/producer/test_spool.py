from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import time
from pathlib import Path
from uuid import uuid4

import pytest

from fleetbeat_producer.one_shot import spool as spool_module
from fleetbeat_producer.one_shot.elapsed import ClockReading, elapsed_seconds, read_clocks
from fleetbeat_producer.one_shot.spool import MAX_AGE_SECONDS, UNFINISHED_SECONDS, Dropped, Spool
from fleetbeat_shared.errors import RedisUnavailable, SpoolUnusable
from fleetbeat_shared.messages import Heartbeat, parse_message
from helpers import heartbeat
from processes import die, end_of, fork

DAY = 86_400.0


class Clock:
    """The clocks of a machine, which a test may move or reboot."""

    def __init__(self) -> None:
        self.wall, self.boot, self.boot_id = 1_700_000_000.0, 5000.0, "first"

    def __call__(self) -> ClockReading:
        """Return the moment that is now."""
        return ClockReading(self.wall, self.boot, self.boot_id)

    def pass_seconds(self, number: float) -> None:
        """Let time go by on both clocks."""
        self.wall, self.boot = self.wall + number, self.boot + number

    def reboot(self, uptime: float) -> None:
        """Reboot the machine, so long ago."""
        self.boot, self.boot_id = uptime, "second"


class Inbox:
    """Takes messages as Redis would, or refuses them from some number on."""

    def __init__(self) -> None:
        self.messages: list[Heartbeat] = []
        self.room = 1_000_000

    def __call__(self, wires: list[bytes]) -> list[RedisUnavailable | None]:
        """Take what there is room for."""
        answers: list[RedisUnavailable | None] = []
        for wire in wires:
            full = len(self.messages) >= self.room
            answers.append(RedisUnavailable("its memory is full") if full else None)
            if not full:
                message = parse_message(wire)
                assert isinstance(message, Heartbeat)
                self.messages.append(message)
        return answers

    @property
    def waited(self) -> list[float | None]:
        """Return the waiting time that each message carries."""
        return [message.buffered_seconds for message in self.messages]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spool"


@pytest.fixture
def spool(directory: Path, clock: Clock) -> Spool:
    return Spool(directory, clock)


def put(spool: Spool, number: int) -> list[Heartbeat]:
    """Keep some heartbeats, whose ids are a millisecond apart."""
    messages = [heartbeat(uuid4(), progress=f"{n}", reply=True) for n in range(number)]
    messages.sort(key=lambda message: message.id)
    for message in messages:
        spool.put(message)
    return messages


def kept(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.suffix == ".json")


def test_messages_are_sent_oldest_first_with_their_waiting_time(spool: Spool, clock: Clock, inbox: Inbox) -> None:
    """Each message comes out once, in order, asks for no reply, and carries the time since it was spooled."""
    messages = put(spool, 3)
    clock.pass_seconds(90)
    messages += put(spool, 1)
    clock.pass_seconds(10.5)
    spool.drain(inbox)
    assert spool.dropped == Dropped()
    assert [message.id for message in inbox.messages] == [message.id for message in messages]
    assert inbox.waited == [100.5, 100.5, 100.5, 10.5]
    assert not any(message.reply for message in inbox.messages)
    spool.drain(inbox)
    assert len(inbox.messages) == 4


@pytest.mark.parametrize(
    ("then", "now", "waited"),
    [
        (ClockReading(100, 50, "a"), ClockReading(160, 110, "a"), 60),  # the usual
        (ClockReading(100, 50, "a"), ClockReading(9e9, 110, "a"), 60),  # the wall clock was set in between
        (ClockReading(100, 50, "a"), ClockReading(1, 110, "a"), 60),
        (ClockReading(100, 50, "a"), ClockReading(160, 20, "a"), 0),  # impossible: never negative
        (ClockReading(100, 50, "a"), ClockReading(400, 110, "b"), 300),  # another start of the machine: the wall clock
        (
            ClockReading(100, 50, "a"),
            ClockReading(120, 110, "b"),
            110,
        ),  # it was before this start, whatever the wall clock shows
        (ClockReading(100, 50, "a"), ClockReading(1, 110, "b"), 110),
        (ClockReading(100, None, None), ClockReading(160, None, None), 60),  # no boot clock
        (ClockReading(100, None, None), ClockReading(1, None, None), 0),
        (ClockReading(100, None, "a"), ClockReading(160, 500, "a"), 60),
    ],
)
def test_elapsed_time(then: ClockReading, now: ClockReading, waited: float) -> None:
    """The boot clock counts within one boot, otherwise the wall clock as far as it can be right."""
    assert elapsed_seconds(then, now) == waited


def test_the_clocks_of_this_machine_go_forward() -> None:
    """The clocks of this machine go forward together."""
    first, second = read_clocks(), read_clocks()
    assert 0 <= elapsed_seconds(first, second) < 60
    assert first.boot_id == second.boot_id


def test_the_wall_clock_counts_after_a_reboot(spool: Spool, clock: Clock, inbox: Inbox) -> None:
    """After a reboot a message has waited at least since the boot, and otherwise as long as the wall clock shows."""
    put(spool, 1)
    clock.wall += 600
    clock.reboot(uptime=30)
    put(spool, 1)
    clock.wall -= 10_000
    spool.drain(inbox)
    assert inbox.waited == [30, 0]


def test_old_messages_are_dropped_and_counted(spool: Spool, clock: Clock, inbox: Inbox, directory: Path) -> None:
    """A message older than a week is never sent, whether another is spooled or the spool is drained."""
    put(spool, 2)
    clock.pass_seconds(MAX_AGE_SECONDS + 1)
    spool.put(heartbeat(uuid4()))
    assert spool.dropped == Dropped(too_old=2)
    assert len(kept(directory)) == 1
    clock.pass_seconds(MAX_AGE_SECONDS + 1)
    spool.drain(inbox)
    assert str(spool.dropped) == "Dropped from the spool: 3 older than 7 days."
    assert (inbox.messages, kept(directory)) == ([], [])


@pytest.mark.parametrize(("limit", "most"), [("MAX_FILES", 3), ("MAX_BYTES", 1024)])
def test_the_oldest_is_dropped_when_the_spool_is_full(
    spool: Spool, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    """The spool is limited in number and bytes; dropped messages are counted."""
    monkeypatch.setattr(spool_module, limit, most)
    messages = put(spool, 3)
    last = heartbeat(uuid4(), progress="x" * 400 if limit == "MAX_BYTES" else "x")
    spool.put(last)
    dropped = spool.dropped
    assert dropped.over_limit >= 1
    assert "as the spool is full" in str(dropped)
    spool.drain(inbox)
    expected = [message.id for message in [*messages, last]][dropped.over_limit :]
    assert [message.id for message in inbox.messages] == expected


def test_redis_going_away_in_the_middle_keeps_the_rest(
    spool: Spool, inbox: Inbox, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acknowledged messages are removed from the disk; a refused one and those after it stay, in order."""
    monkeypatch.setattr(spool_module, "BATCH_SIZE", 4)
    messages = put(spool, 10)
    inbox.room = 6
    with pytest.raises(RedisUnavailable):
        spool.drain(inbox)
    assert kept(directory) == [f"{message.id}.json" for message in messages[6:]]
    inbox.room = 100
    spool.drain(inbox)
    assert [message.id for message in inbox.messages] == [message.id for message in messages]


def test_an_exception_while_sending_keeps_the_batch(spool: Spool, directory: Path) -> None:
    """If it is unknown which messages arrived, all stay to be sent again."""
    put(spool, 2)

    def hang_up(_wires: list[bytes]) -> list[RedisUnavailable | None]:
        raise RedisUnavailable

    with pytest.raises(RedisUnavailable):
        spool.drain(hang_up)
    assert len(kept(directory)) == 2


def test_unreadable_and_foreign_files(spool: Spool, inbox: Inbox, directory: Path) -> None:
    """Broken files are dropped and counted, foreign files are left alone, and neither stops the valid ones."""
    (good,) = put(spool, 1)
    record = json.loads((directory / kept(directory)[0]).read_text())
    broken = [b"", b"{", b"\xff\x00", b"[]", b"x" * 100_000, json.dumps(record | {"wall_seconds": "inf"}).encode()]
    broken.append(json.dumps(record | {"message": record["message"] | {"kind": "register"}}).encode())
    for content in broken:
        (directory / f"{uuid4()}.json").write_bytes(content)
    foreign = {"notes.txt", "lock", "x.json"}
    for name in foreign:
        (directory / name).write_text("mine")
    (directory / f"{uuid4()}.json").symlink_to("/etc/passwd")
    os.mkfifo(directory / f"{uuid4()}.json")
    spool.drain(inbox)
    assert spool.dropped == Dropped(unreadable=len(broken))
    assert [message.id for message in inbox.messages] == [good.id]
    left = {path.name for path in directory.iterdir()}
    assert foreign < left
    assert len(left) == len(foreign) + 2


def test_the_file_of_a_killed_writer(
    spool: Spool, inbox: Inbox, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose writer was killed is never sent; it is removed when no writer can be using it any more."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _descriptor: die())
        assert end_of(fork(lambda: spool.put(heartbeat(uuid4())))) == -signal.SIGKILL
    (unfinished,) = directory.iterdir()
    (whole,) = put(spool, 1)
    spool.drain(inbox)
    assert [message.id for message in inbox.messages] == [whole.id]
    assert unfinished.exists()
    long_ago = time.time() - UNFINISHED_SECONDS - 10
    os.utime(unfinished, (long_ago, long_ago))
    spool.drain(inbox)
    assert not unfinished.exists()
    assert len(inbox.messages) == 1


@pytest.mark.parametrize("umask", [0o000, 0o377])
def test_only_the_user_can_read_or_write(spool: Spool, directory: Path, umask: int) -> None:
    """The directory is 0700 and its files are 0600, whatever the umask."""
    directory.parent.mkdir()
    before = os.umask(umask)
    try:
        put(spool, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE((directory / name).stat().st_mode) for name in kept(directory)} == {0o600}


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_directory_that_others_may_write_to_is_refused(
    spool: Spool, inbox: Inbox, directory: Path, mode: int
) -> None:
    """A spool that other users may write to is used neither for spooling nor for sending."""
    put(spool, 1)
    directory.chmod(mode)
    for use in (lambda: spool.put(heartbeat(uuid4())), lambda: spool.drain(inbox)):
        with pytest.raises(SpoolUnusable, match="no other user may write"):
            use()
    assert inbox.messages == []
    directory.chmod(0o700)


def test_a_directory_of_another_user_is_refused(spool: Spool, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool that another user owns isn't used."""
    put(spool, 1)
    monkeypatch.setattr(os, "geteuid", lambda: directory.stat().st_uid + 1)
    with pytest.raises(SpoolUnusable, match="must belong to the calling user"):
        spool.put(heartbeat(uuid4()))


def test_a_directory_that_cannot_be_created(tmp_path: Path, clock: Clock) -> None:
    """A path that can't be a directory is reported with the variable to set."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolUnusable, match="FLEETBEAT_SPOOL_DIR"):
        Spool(tmp_path / "file" / "spool", clock).put(heartbeat(uuid4()))


def test_a_full_disk(spool: Spool, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that can't be written completely leaves no file behind, and that is reported."""
    put(spool, 1)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpoolUnusable, match="No space left"):
        spool.put(heartbeat(uuid4()))
    assert len(list(directory.iterdir())) == 1


def test_one_process_sends_at_a_time(spool: Spool, inbox: Inbox, directory: Path) -> None:
    """A process that finds another one sending leaves it to that, and doesn't wait."""
    put(spool, 2)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        spool.drain(inbox)
        assert inbox.messages == []
    spool.drain(inbox)
    assert len(inbox.messages) == 2


def test_a_missing_spool_is_no_error(spool: Spool, inbox: Inbox, directory: Path) -> None:
    """Where nothing was ever spooled there is nothing to send, and no directory is created."""
    spool.drain(inbox)
    assert not directory.exists()


def test_the_largest_heartbeat_is_spooled(spool: Spool, inbox: Inbox) -> None:
    """Text other than ASCII is as long in the spool as in Redis, and is sent all the same."""
    large = heartbeat(uuid4(), error="\U0001f600" * 2000, summary="\U0001f600" * 500, progress="\U0001f600" * 500)
    spool.put(large)
    spool.drain(inbox)
    assert ([m.id for m in inbox.messages], spool.dropped) == ([large.id], Dropped())


def test_a_file_that_cannot_be_read_now_stays(spool: Spool, inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary failure, such as no free file descriptor, drops nothing; the next call sends the message."""
    (waiting,) = put(spool, 1)
    whole = os.open

    def refuse(path: str, *rest: int, **options: int) -> int:
        if str(path).endswith(".json"):
            raise OSError(24, "Too many open files")
        return whole(path, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        spool.drain(inbox)
    assert inbox.messages == []
    spool.drain(inbox)
    assert ([m.id for m in inbox.messages], spool.dropped) == ([waiting.id], Dropped())

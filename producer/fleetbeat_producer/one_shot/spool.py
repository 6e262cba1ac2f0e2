"""Spool of heartbeats: keeps them on disk while Redis is away, one file each, for the next call that reaches Redis.

A file is written under a temporary name, synced and renamed, so that it is complete or absent. It is removed only after
Redis has acknowledged its message. A crash in between sends the message again, which is harmless: its id is the key
under which it is stored. Any number of processes may use one spool at the same time.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from fleetbeat_producer.one_shot.elapsed import ClockReading, elapsed_seconds, read_clocks
from fleetbeat_shared.errors import SpoolUnusable
from fleetbeat_shared.messages import MAX_MESSAGE_BYTES, Heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fleetbeat_shared.errors import RedisUnavailable

MAX_FILES = 10_000
MAX_BYTES = 64 * 1024 * 1024
MAX_AGE_SECONDS = 7 * 86_400.0
"""The limits of a spool; beyond them the oldest messages are dropped."""
BATCH_SIZE = 250
"""How many messages go to Redis in one pipeline."""
UNFINISHED_SECONDS = 3600.0
"""From this age on a temporary file was left behind by a process that was killed."""

_MAX_FILE_BYTES = 2 * MAX_MESSAGE_BYTES  # far more than is ever written
_NAME = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.(json|part)")


@dataclass(slots=True)
class Dropped:
    """How many messages were dropped without being sent."""

    over_limit: int = 0
    too_old: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        """Format the counts as a sentence, or as an empty text if nothing was dropped."""
        counts = [
            (self.over_limit, "as the spool is full"),
            (self.too_old, "older than 7 days"),
            (self.unreadable, "that can't be read"),
        ]
        parts = [f"{number} {why}" for number, why in counts if number]
        return f"Dropped from the spool: {', '.join(parts)}." if parts else ""


class _Record(BaseModel):
    """The content of a file."""

    model_config = ConfigDict(defer_build=True)  # most calls find no file to read

    wall_seconds: FiniteFloat
    boot_seconds: FiniteFloat | None
    boot_id: str | None
    message: Heartbeat


class _File(NamedTuple):
    name: str  # starts with the message's id, and so with its time
    size: int


class Spool:
    """A directory of one user's heartbeats that wait for Redis."""

    def __init__(self, directory: Path, read_clocks: Callable[[], ClockReading] = read_clocks) -> None:
        """Use a directory, which need not exist yet; `~` is the user's home."""
        self._directory = directory
        self._read_clocks = read_clocks
        self.dropped = Dropped()
        """What this object has dropped so far."""

    def put(self, message: Heartbeat) -> None:
        """Store a heartbeat, which no longer asks for a reply; drop messages that are too old or too many.

        Raises SpoolUnusable when it can't be stored.
        """
        wire = message.model_copy(update={"reply": False}).to_wire()
        record = asdict(self._read_clocks()) | {"message": json.loads(wire)}
        with self._open_directory(create=True) as folder:
            # Not escaped: escaping would make some text three times as long as in Redis.
            _write_file(folder, str(message.id), json.dumps(record, ensure_ascii=False).encode())
            self._enforce_limits(folder)

    def drain(self, send: Callable[[list[bytes]], list[RedisUnavailable | None]]) -> None:
        """Send the spooled messages, oldest first; drop those that are too old or can't be read.

        `send` takes encoded messages, and returns for each None if it was acknowledged, else the error: then it stays
        in the spool, as do all messages after its batch. Does nothing while another process drains the spool.

        Raises SpoolUnusable, RedisUnavailable when a message stays, and whatever `send` raises.
        """
        with suppress(FileNotFoundError), self._open_directory(create=False) as folder, _try_lock(folder) as is_locked:
            names = [file.name for file in _list_files(folder)] if is_locked else []
            for start in range(0, len(names), BATCH_SIZE):
                batch = []
                for name in names[start : start + BATCH_SIZE]:
                    if (spooled := self._load_or_drop(folder, name)) is not None:
                        message, waited = spooled
                        message = message.model_copy(update={"buffered_seconds": round(waited, 3)})
                        batch.append((name, message.to_wire()))
                _send_batch(folder, batch, send)

    @contextmanager
    def _open_directory(self, *, create: bool) -> Iterator[int]:
        """Open the directory; yield its descriptor.

        Raises SpoolUnusable, and FileNotFoundError when it doesn't exist and `create` is false.
        """
        folder = -1
        try:
            directory = self._directory.expanduser()
            if create:
                _make_directory(directory)
            folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            found = os.fstat(folder)
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                text = f"The spool {directory} must belong to the calling user, and no other user may write to it."
                raise SpoolUnusable(text)
            yield folder
        except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
            if isinstance(error, FileNotFoundError) and not create:
                raise
            why = getattr(error, "strerror", None) or error
            text = f"The spool {self._directory} can't be used ({why}). Set FLEETBEAT_SPOOL_DIR to another directory."
            raise SpoolUnusable(text) from error
        finally:
            if folder >= 0:
                os.close(folder)

    def _read(self, folder: int, name: str) -> tuple[Heartbeat, float] | None:
        """Read a file's message and for how many seconds it has waited; None if the content isn't valid.

        Raises OSError when the file can't be read now.
        """
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(_MAX_FILE_BYTES)
        try:
            record = _Record.model_validate_json(content)
        except ValidationError:
            return None
        spooled_at = ClockReading(record.wall_seconds, record.boot_seconds, record.boot_id)
        return record.message, elapsed_seconds(spooled_at, self._read_clocks())

    def _load_or_drop(self, folder: int, name: str) -> tuple[Heartbeat, float] | None:
        """Read a file's message and for how many seconds it has waited; drop it and return None if it is unusable.

        A file that can't be read now stays for another call.
        """
        try:
            read = self._read(folder, name)
        except OSError:
            return None
        if read is None:
            self.dropped.unreadable += _remove_file(folder, name)
        elif read[1] > MAX_AGE_SECONDS:
            self.dropped.too_old += _remove_file(folder, name)
        else:
            return read
        return None

    def _enforce_limits(self, folder: int) -> None:
        """Drop messages that are too many or too old, oldest first."""
        files = _list_files(folder)
        count, size = len(files), sum(file.size for file in files)
        for file in files:
            if count > MAX_FILES or size > MAX_BYTES:
                self.dropped.over_limit += _remove_file(folder, file.name)
            elif self._load_or_drop(folder, file.name):
                break
            count, size = count - 1, size - file.size


def _make_directory(directory: Path) -> None:
    """Create a directory that only its user may read or write, whatever the umask."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        directory.chmod(0o700)


def _write_file(folder: int, name: str, content: bytes) -> None:
    """Write a file that is complete or absent, even if the machine crashes."""
    unfinished = f"{name}.part"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.rename(unfinished, f"{name}.json", src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except OSError:
        _remove_file(folder, unfinished)
        raise


def _list_files(folder: int) -> list[_File]:
    """List the files of messages, oldest first; remove temporary files that killed processes left behind."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if (match := _NAME.fullmatch(entry.name)) is None or not entry.is_file(follow_symlinks=False):
                continue  # not a file of the spool
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if match[1] == "json":
                    found.append(_File(entry.name, status.st_size))
                elif abs(time.time() - status.st_mtime) > UNFINISHED_SECONDS:
                    _remove_file(folder, entry.name)
    return sorted(found)


def _send_batch(
    folder: int, batch: list[tuple[str, bytes]], send: Callable[[list[bytes]], list[RedisUnavailable | None]]
) -> None:
    """Send a batch, and remove the acknowledged messages. Raises RedisUnavailable unless all were acknowledged."""
    if not batch:
        return
    errors = send([wire for _, wire in batch])
    for (name, _), error in zip(batch, errors, strict=True):
        if error is None:
            _remove_file(folder, name)
    for error in errors:
        if error is not None:
            raise error


def _remove_file(folder: int, name: str) -> bool:
    """Remove a file; return False if another process has removed it, and so counts it."""
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)
        return True
    return False


@contextmanager
def _try_lock(folder: int) -> Iterator[bool]:
    """Lock the spool for sending until the end of the block; yield False if another process holds the lock."""
    descriptor = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)

"""Heartbeats kept on disk while Redis is away, one file each, for the next call that gets through.

A file is written under a temporary name, synced and renamed, so that it is whole or not there at all; it is removed
only after Redis has acknowledged its message. A crash in between sends the message again, which is harmless: its id is
the key under which it is stored. Any number of processes may use one spool at once.
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

from fleetbeat_producer.one_shot.elapsed import Moment, seconds_between, this_moment
from fleetbeat_shared.errors import SpoolUnusable
from fleetbeat_shared.messages import MAX_MESSAGE_BYTES, Heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fleetbeat_shared.errors import RedisUnavailable

MAX_FILES = 10_000
MAX_BYTES = 64 * 1024 * 1024
MAX_AGE_SECONDS = 7 * 86_400.0
"""What a spool holds at most; the oldest goes first."""
BATCH = 250
"""How many messages go to Redis in one pipeline."""
UNFINISHED_SECONDS = 3600.0
"""From when on a temporary file is what a process left that was killed."""

_MAX_FILE_BYTES = 2 * MAX_MESSAGE_BYTES  # far more than we write
_NAME = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.(json|part)")


@dataclass(slots=True)
class Dropped:
    """How many messages were removed without being sent."""

    for_room: int = 0
    too_old: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        """Return it as a sentence, or an empty text if nothing was dropped."""
        told = [
            (self.for_room, "as the spool is full"),
            (self.too_old, "older than 7 days"),
            (self.unreadable, "that can't be read"),
        ]
        parts = [f"{number} {why}" for number, why in told if number]
        return f"Dropped from the spool: {', '.join(parts)}." if parts else ""


class _Record(BaseModel):
    """What a file holds."""

    model_config = ConfigDict(defer_build=True)  # most calls find no file

    wall_seconds: FiniteFloat
    boot_seconds: FiniteFloat | None
    boot_id: str | None
    message: Heartbeat


class _File(NamedTuple):
    name: str  # begins with the message's id, and so with its time
    size: int


class Spool:
    """A directory of one user's heartbeats that wait for Redis."""

    def __init__(self, directory: Path, now: Callable[[], Moment] = this_moment) -> None:
        """Use a directory, which need not be there; `~` is the user's home."""
        self._directory = directory
        self._now = now
        self.dropped = Dropped()
        """What was dropped so far, to be told."""

    def put(self, message: Heartbeat) -> None:
        """Keep a heartbeat, without its wish for an answer; drop what is too old or too much.

        Raises SpoolUnusable when it can't be kept.
        """
        wire = message.model_copy(update={"reply": False}).to_wire()
        record = asdict(self._now()) | {"message": json.loads(wire)}
        with self._opened(create=True) as folder:
            # Not escaped, which would make some text three times as long as it travels.
            _write(folder, str(message.id), json.dumps(record, ensure_ascii=False).encode())
            self._tidy(folder)

    def drain(self, send: Callable[[list[bytes]], list[RedisUnavailable | None]]) -> None:
        """Send what waits, oldest first; drop what is too old or can't be read.

        `send` takes messages as they travel, and returns for each None if it was acknowledged, else why not: then it
        stays, and so does all that comes after its batch. Does nothing while another process is at it.

        Raises SpoolUnusable, RedisUnavailable when something stays, and whatever `send` raises.
        """
        with suppress(FileNotFoundError), self._opened(create=False) as folder, _locked(folder) as is_ours:
            names = [file.name for file in _files(folder)] if is_ours else []
            for start in range(0, len(names), BATCH):
                batch = []
                for name in names[start : start + BATCH]:
                    if (waiting := self._waiting(folder, name)) is not None:
                        message, waited = waiting
                        message = message.model_copy(update={"buffered_seconds": round(waited, 3)})
                        batch.append((name, message.to_wire()))
                _send(folder, batch, send)

    @contextmanager
    def _opened(self, *, create: bool) -> Iterator[int]:
        """Yield a descriptor of the directory. Raises FileNotFoundError, if it need not be made, or SpoolUnusable."""
        folder = -1
        try:
            directory = self._directory.expanduser()
            if create:
                _make(directory)
            folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            found = os.fstat(folder)
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                text = f"The spool {directory} must belong to the user who calls, and nobody else may write to it."
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
        """Return a file's message and for how many seconds it has waited, or None if it is no such file.

        Raises OSError when it can't be read now.
        """
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(_MAX_FILE_BYTES)
        try:
            record = _Record.model_validate_json(content)
        except ValidationError:
            return None
        then = Moment(record.wall_seconds, record.boot_seconds, record.boot_id)
        return record.message, seconds_between(then, self._now())

    def _waiting(self, folder: int, name: str) -> tuple[Heartbeat, float] | None:
        """Return a file's message and for how many seconds it has waited, or None: then it was dropped.

        What can't be read at the moment stays for another call.
        """
        try:
            read = self._read(folder, name)
        except OSError:
            return None
        if read is None:
            self.dropped.unreadable += _remove(folder, name)
        elif read[1] > MAX_AGE_SECONDS:
            self.dropped.too_old += _remove(folder, name)
        else:
            return read
        return None

    def _tidy(self, folder: int) -> None:
        """Drop what is too much or too old, oldest first."""
        files = _files(folder)
        count, size = len(files), sum(file.size for file in files)
        for file in files:
            if count > MAX_FILES or size > MAX_BYTES:
                self.dropped.for_room += _remove(folder, file.name)
            elif self._waiting(folder, file.name):
                break
            count, size = count - 1, size - file.size


def _make(directory: Path) -> None:
    """Make a directory that is its user's alone, whatever the umask."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        directory.chmod(0o700)


def _write(folder: int, name: str, content: bytes) -> None:
    """Make a file that is whole or not there at all, even if the machine goes down."""
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
        _remove(folder, unfinished)
        raise


def _files(folder: int) -> list[_File]:
    """Return the files of messages, oldest first; remove what writers left that were killed."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if (match := _NAME.fullmatch(entry.name)) is None or not entry.is_file(follow_symlinks=False):
                continue  # somebody else's
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if match[1] == "json":
                    found.append(_File(entry.name, status.st_size))
                elif abs(time.time() - status.st_mtime) > UNFINISHED_SECONDS:
                    _remove(folder, entry.name)
    return sorted(found)


def _send(
    folder: int, batch: list[tuple[str, bytes]], send: Callable[[list[bytes]], list[RedisUnavailable | None]]
) -> None:
    """Send a batch, and remove what was acknowledged. Raises RedisUnavailable if not all was."""
    if not batch:
        return
    errors = send([wire for _, wire in batch])
    for (name, _), error in zip(batch, errors, strict=True):
        if error is None:
            _remove(folder, name)
    for error in errors:
        if error is not None:
            raise error


def _remove(folder: int, name: str) -> bool:
    """Remove a file; return whether it was there, and so whether it is ours to count."""
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)
        return True
    return False


@contextmanager
def _locked(folder: int) -> Iterator[bool]:
    """Yield whether nobody else sends from this spool at the moment; until the end nobody else does."""
    descriptor = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)

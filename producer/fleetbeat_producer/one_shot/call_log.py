"""Log file of one-shot calls, one line each, for unattended cron jobs."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1024 * 1024
"""At this size the log is renamed to PATH.1, and replaces the one before."""
LOCK_SECONDS = 1.0
"""How long to wait for other processes that write to the same log."""


def append(path: Path, agent: str, outcome: str, sent: dict[str, Any]) -> None:
    """Add a line to a log: the time (UTC), the agent, the outcome and the message, separated by tabs.

    Any number of processes may write at the same time. Control characters are escaped. The directory is created if it
    doesn't exist. Raises OSError when the log can't be written.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    message = json.dumps(sent, ensure_ascii=False, separators=(",", ":"))
    line = "\t".join(_printable(field) for field in (now, agent, outcome, message)).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    while not _try_append(path, line):
        if time.monotonic() > deadline:
            raise TimeoutError(0, "other processes hold its lock")
        time.sleep(0.005)


def _try_append(path: Path, line: bytes) -> bool:
    """Add the line; return False to try again: another process holds the lock, or has rotated the log."""
    # Non-blocking, as opening a pipe without a reader would hang.
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    try:
        found = os.fstat(log)
        if stat.S_ISREG(found.st_mode):
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(log), path.stat()):
                return False  # rotated between opening and locking
            size = os.fstat(log).st_size
            if size and size + len(line) > MAX_BYTES:
                path.replace(path.with_name(f"{path.name}.1"))
                return False
        os.write(log, line)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(log)
    return True


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)

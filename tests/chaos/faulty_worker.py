"""Faulty worker: `fleetbeat` with faults that can't be caused from outside. rig.py starts it for faults that need it.

The first argument is a directory, the others are those of `fleetbeat`. All processes of a pool are forked from this
one, so the changes apply to each of them:

  deadly messages   a worker that reads a message with the progress or name DEADLY kills itself
  full disk         while the directory has a file `full`, SQLite's file is limited to the number of pages in it
  short waits       for another's lock, and between two attempts to reach the database
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_worker.broker import entries
from fleetbeat_worker.cli import main
from fleetbeat_worker.database import engine as database
from fleetbeat_worker.ingest import job as ingest

DEADLY = "deadly"
FULL = "full"
_SHORT_WAIT_SECONDS = 0.1
_MOST_PAGES = 4_294_967_294
"""SQLite's own limit."""

_parse = entries.parse_message


def _parse_or_die(wire: bytes) -> Register | Heartbeat | Deregister:
    if any(f'"{name}":"{DEADLY}"'.encode() in wire for name in ("progress", "agent_name")):
        os.kill(os.getpid(), signal.SIGKILL)
    return _parse(wire)


def _limit_pages(folder: Path) -> None:
    def limit(connection: Any, _record: object, _proxy: object) -> None:
        if type(connection).__module__ == "sqlite3":
            try:
                pages = int((folder / FULL).read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):  # not there, or just being written
                pages = _MOST_PAGES
            connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(Pool, "checkout", limit)


if __name__ == "__main__":
    _limit_pages(Path(sys.argv.pop(1)))
    entries.parse_message = _parse_or_die
    database.BUSY_SECONDS = ingest.FIRST_PAUSE_SECONDS = ingest.LONGEST_PAUSE_SECONDS = _SHORT_WAIT_SECONDS
    main()

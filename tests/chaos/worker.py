"""`fleetbeat`, with what nobody can cause from outside: place.py starts it instead where a fault needs that.

The first argument is a folder, the others are `fleetbeat`'s. All processes of a pool are forked from this one, so that
what is changed here holds in each of them.

  deadly      whoever is about to read a message whose progress or name is DEADLY dies of it, at once
  full        while the folder has a file `full`, SQLite's file may have as many pages as that says, and no more
  impatient   nobody waits long for another's lock, or before the next look whether the database is there
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
_IMPATIENT_SECONDS = 0.1
_MOST_PAGES = 4_294_967_294
"""As many as SQLite allows a file to have unless it is told otherwise."""

_parse = entries.parse_message


def _parse_or_die(wire: bytes) -> Register | Heartbeat | Deregister:
    if any(f'"{name}":"{DEADLY}"'.encode() in wire for name in ("progress", "agent_name")):
        os.kill(os.getpid(), signal.SIGKILL)
    return _parse(wire)


def _hold_down(folder: Path) -> None:
    def limit(connection: Any, _record: object, _proxy: object) -> None:
        if type(connection).__module__ == "sqlite3":
            try:
                pages = int((folder / FULL).read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):  # not there, or just being written
                pages = _MOST_PAGES
            connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(Pool, "checkout", limit)


if __name__ == "__main__":
    _hold_down(Path(sys.argv.pop(1)))
    entries.parse_message = _parse_or_die
    database.BUSY_SECONDS = ingest.FIRST_PAUSE_SECONDS = ingest.LONGEST_PAUSE_SECONDS = _IMPATIENT_SECONDS
    main()

"""What a process has one of: its sender. Made at the first call, again after a fork, and flushed at the end."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from functools import cache
from typing import TYPE_CHECKING

from fleetbeat_producer.sender import EXIT_SECONDS, Sender, Stats

if TYPE_CHECKING:
    from types import FrameType


def this_process() -> Sender:
    """Return the sender that the calls of this process share, with the settings of its environment.

    Raises SettingsError when the environment has a value that can't be used.
    """
    return _sender_of(os.getpid())


@cache
def _sender_of(process_id: int) -> Sender:
    # The cache's key is the process: a forked child makes a sender of its own. Its parent's stays in the cache on
    # purpose, untouched: to drop it would close connections there, and its locks may be held by threads that are gone.
    # The thread imports redis, which imports this; and while the interpreter ends it could be imported no more.
    import concurrent.futures.thread  # noqa: F401

    from fleetbeat_shared.settings import Settings  # pydantic's cost, at the first call

    sender = Sender(Settings.from_environment(os.environ))
    atexit.register(_flush_at_exit, process_id)
    if "multiprocessing.process" in sys.modules:
        from multiprocessing import process, util

        if process.parent_process() is not None:  # such a child runs its own finalizers at its end, and no other
            util.Finalize(None, _flush_at_exit, args=(process_id,), exitpriority=0)
    return sender


def _flush_at_exit(process_id: int) -> None:
    if process_id == os.getpid():
        this_process().flush(EXIT_SECONDS)


def flush(timeout_seconds: float) -> bool:
    """Wait until what this process has said so far has reached Redis; return whether it has, in this time."""
    return this_process().flush(timeout_seconds)


def stats() -> Stats:
    """Return what became of this process's messages."""
    return this_process().stats()


def flush_on_sigterm() -> None:
    """Flush, for two seconds at most, when SIGTERM comes; then do what would have been done without this.

    Python's default for SIGTERM ends the process without running any code of its own. To be called in the main thread,
    after the program has set its own handler, if it has one.
    """
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        this_process().flush(EXIT_SECONDS)
        if callable(before):
            before(number, frame)
        elif before is signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, handle)

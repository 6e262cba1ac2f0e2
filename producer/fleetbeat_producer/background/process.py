"""Sender of this process: made at the first call, made again after a fork, flushed at exit."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - redis needs it, and it can't be imported while the interpreter exits
import os
import signal
import sys
import threading
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from fleetbeat_producer.background import interpreter_exit
from fleetbeat_producer.background.sender import EXIT_SECONDS, Sender, Stats
from fleetbeat_producer.compose import load_models

if TYPE_CHECKING:
    from types import FrameType

    from fleetbeat_shared.messages import Message

# By process id: a forked child makes a sender of its own. Its parent's stays here on purpose, untouched: dropping it
# would close the parent's connections, and its locks may be held by threads that don't exist in the child.
_senders: dict[int, Sender] = {}


def process_sender() -> Sender:
    """Return the sender that the calls of this process share, with the settings of its environment.

    Raises SettingsError when the environment has a value that can't be used.
    """
    process_id = os.getpid()
    return _senders.get(process_id) or _make_sender(process_id)


def _make_sender(process_id: int) -> Sender:
    from fleetbeat_shared.settings import Settings  # pydantic's cost, at the first call

    made = Sender(Settings.from_environment(os.environ))
    sender = _senders.setdefault(process_id, made)  # the first wins, where threads call at the same time
    if sender is made and "multiprocessing.process" in sys.modules:
        from multiprocessing import process, util

        if process.parent_process() is not None:  # such a child runs these finalizers at its end, and maybe no others
            util.Finalize(None, _flush_at_exit, exitpriority=0)
    return sender


def queue_message(message: Message) -> None:
    """Queue a message for this process's background thread.

    Raises SettingsError when the environment has a value that can't be used.
    """
    if sys.is_finalizing():
        return  # no thread is left that could send, and one that is gone may hold a lock
    if not interpreter_exit.is_closed():
        process_sender().put(message)
    elif threading.current_thread() is threading.main_thread():  # an exit handler that is older than ours
        interpreter_exit.reopen()
        process_sender().put(message)
        _flush_at_exit()


def _flush_at_exit() -> None:
    sender = _senders.get(os.getpid())
    if sender is not None:
        sender.flush_at_exit()
    interpreter_exit.close()


def _finish_imports() -> None:
    """Wait until the thread, if any, has imported what it needs: a forked child can't finish a half-done import."""
    if os.getpid() in _senders:
        for name in ("redis", "encodings.idna"):  # the latter to look up a host's name
            with suppress(Exception):
                import_module(name)


# At the import, not at the first call: handlers run last registered first, so messages of later handlers are sent too.
atexit.register(_flush_at_exit)
os.register_at_fork(before=_finish_imports, after_in_child=interpreter_exit.forget_threads)


def flush(timeout_seconds: float) -> bool:
    """Wait until all messages of this process so far have reached Redis; return False if the time was too short."""
    return process_sender().flush(timeout_seconds)


def stats() -> Stats:
    """Count this process's messages by outcome."""
    return process_sender().stats()


def flush_on_sigterm() -> None:
    """On SIGTERM, flush for two seconds at most; then act as the program would have acted without this call.

    Python's default action for SIGTERM ends the process without running any code of its own. Call this in the main
    thread, after the program has set its own handler, if it has one.
    """
    # Now, not at the first call: an exception that a handler raises while pydantic builds a class would be lost.
    load_models()
    import_module("fleetbeat_shared.settings")
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        sender = _senders.get(os.getpid())
        if sender is not None:
            sender.flush(EXIT_SECONDS)
        if callable(before):
            before(number, frame)
        elif before is signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, handle)

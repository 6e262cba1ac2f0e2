"""What a process has one of: its sender. Made at the first call, again after a fork, and flushed at the end."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - redis needs it, and it can't be imported while the interpreter ends
import os
import signal
import sys
import threading
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from fleetbeat_producer.background import interpreter_exit as ending
from fleetbeat_producer.background.sender import EXIT_SECONDS, Sender, Stats
from fleetbeat_producer.compose import models

if TYPE_CHECKING:
    from types import FrameType

    from fleetbeat_shared.messages import Message

# By process id: a forked child makes a sender of its own. Its parent's stays here on purpose, untouched: to drop it
# would close connections there, and its locks may be held by threads that are gone.
_senders: dict[int, Sender] = {}


def this_process() -> Sender:
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

        if process.parent_process() is not None:  # such a child runs its own finalizers at its end, and maybe no other
            util.Finalize(None, _flush_at_exit, exitpriority=0)
    return sender


def say(message: Message) -> None:
    """Let this process's thread send a message.

    Raises SettingsError when the environment has a value that can't be used.
    """
    if sys.is_finalizing():
        return  # no thread is left that could send, and one that is gone may hold a lock
    if not ending.is_over():
        this_process().put(message)
    elif threading.current_thread() is threading.main_thread():  # an exit handler that is older than ours
        ending.begin_again()
        this_process().put(message)
        _flush_at_exit()


def _flush_at_exit() -> None:
    sender = _senders.get(os.getpid())
    if sender is not None:
        sender.flush_at_exit()
    ending.let_go()


def _finish_imports() -> None:
    """Wait until the thread, if there is one, has imported what it needs: a child could never import the other half."""
    if os.getpid() in _senders:
        for name in ("redis", "encodings.idna"):  # the latter to look up a host's name
            with suppress(Exception):
                import_module(name)


# At the import, not at the first call, so that what other exit handlers say is sent too: the last one registered is
# the first one run.
atexit.register(_flush_at_exit)
os.register_at_fork(before=_finish_imports, after_in_child=ending.forget_threads)


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
    # Now, not at the first call: what a handler raises while pydantic builds a class would be swallowed there.
    models()
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

"""Interpreter exit: keeps other threads out of pydantic while the interpreter shuts down.

Before Python 3.14 a thread that still runs while the interpreter shuts down is ended at once, and pydantic's native
frames don't survive that: the process would die of a segmentation fault. So each thread enters pydantic through a
`PydanticSection`; at exit the sections are closed, after a short wait for the threads that are inside one.
"""

from __future__ import annotations

import threading
import time
from threading import get_ident

_CLOSE_CHECKS = 200

_inside: set[int] = set()
_is_closed = False


class PydanticSection:
    """The time that a thread spends in pydantic. `with` yields whether it may enter; the main thread always may."""

    def __enter__(self) -> bool:
        _inside.add(get_ident())
        return not _is_closed or get_ident() == threading.main_thread().ident

    def __exit__(self, *_: object) -> None:
        _inside.discard(get_ident())


def is_closed() -> bool:
    """Tell whether messages of threads other than the main thread are no longer sent."""
    return _is_closed


def reopen() -> None:
    """Admit threads again, as a late exit handler sends another message."""
    global _is_closed  # noqa: PLW0603 - there is one interpreter, and it exits once
    _is_closed = False


def forget_threads() -> None:
    """Forget, in a forked child, the threads of its parent."""
    _inside.clear()


def close() -> None:
    """Admit no other thread any more, and wait briefly until all have left."""
    global _is_closed  # noqa: PLW0603
    _is_closed = True
    for _ in range(_CLOSE_CHECKS):  # a count, not a deadline: busy threads may keep this one from running past any
        if not _inside - {get_ident()}:
            break
        time.sleep(0.001)

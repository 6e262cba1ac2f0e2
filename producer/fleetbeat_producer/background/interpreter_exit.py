"""The end of the interpreter, which must find no thread inside pydantic.

Before Python 3.14 a thread that is still at work while the interpreter ends is ended where it stands, and pydantic's
native frames don't survive that: the process would die of a segmentation fault. So threads say when they are in there,
the end waits until they are out, and lets none in after that.
"""

from __future__ import annotations

import threading
import time
from threading import get_ident

_LOOKS = 200

_inside: set[int] = set()
_is_over = False


class InsidePydantic:
    """The time that a thread spends in pydantic. `with` gives whether it may go there, as it always may in the main."""

    def __enter__(self) -> bool:
        _inside.add(get_ident())
        return not _is_over or get_ident() == threading.main_thread().ident

    def __exit__(self, *_: object) -> None:
        _inside.discard(get_ident())


def is_over() -> bool:
    """Return whether nothing that other threads than the main one say is heard any more."""
    return _is_over


def begin_again() -> None:
    """Let threads in, as an exit handler has more to say."""
    global _is_over  # noqa: PLW0603 - there is one interpreter, and it ends once
    _is_over = False


def forget_threads() -> None:
    """Forget, in a forked child, the threads that stayed behind."""
    _inside.clear()


def let_go() -> None:
    """Let no thread in any more, and wait, for a moment at most, until all are out."""
    global _is_over  # noqa: PLW0603
    _is_over = True
    for _ in range(_LOOKS):  # a count, not a time: busy threads may keep this one from running for longer than any
        if not _inside - {get_ident()}:
            break
        time.sleep(0.001)

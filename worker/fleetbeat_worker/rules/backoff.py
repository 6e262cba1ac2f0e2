"""Back-off: how long to wait before something that failed is tried again.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

_MOST_DOUBLINGS = 30
"""Keeps the power small, however often something fails."""


def backoff_seconds(failures: int, first: float, longest: float) -> float:
    """Derive the pause after some failures in a row: `first` after one, twice as long after each more, up to `longest`.

    After no failure it is 0.
    """
    return min(longest, first * 2 ** min(failures - 1, _MOST_DOUBLINGS)) if failures else 0.0


def backoff(first: float, longest: float) -> Iterator[float]:
    """Yield the pauses after one failure, after two, and so on without end."""
    return (backoff_seconds(failures, first, longest) for failures in count(1))

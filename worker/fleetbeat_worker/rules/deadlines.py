"""When an agent becomes degraded, in milliseconds since 1970: as batches store it, and with all that moves it.

A batch stores the deadline that follows from a sign and from the outages after it. Maintenance is left to whoever finds
that deadline passed (`DeadlineRule`), so that the end of a window writes to the silent only, not to the whole fleet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice

from fleetbeat_worker.rules.liveness import Promise, allowed_silence_seconds, deadline, extend_over_outages
from fleetbeat_worker.rules.spans import Span, from_milliseconds, merge, to_milliseconds


def deadline_of(promise: Promise, since: int, missed_limit: int, outages: Sequence[Span] = ()) -> int:
    """Return when an agent whose silence counts from `since` becomes degraded, moved by the outages after that."""
    allowed = allowed_silence_seconds(promise, missed_limit)
    due = _scheduled(promise, since, missed_limit) if allowed is None else since + round(allowed * 1000)
    return extend_over_outages(due, since, outages) if outages else due


def _scheduled(promise: Promise, since: int, missed_limit: int) -> int:
    # Slots are at whole minutes, so all of one minute have the same next one: finding it takes croniter 0.1 ms.
    grace = timedelta(seconds=promise.grace_seconds)
    moment = (from_milliseconds(since) + grace).replace(second=0, microsecond=0)
    return _scheduled_after(promise, moment - grace, missed_limit)


@lru_cache(maxsize=16_384)
def _scheduled_after(promise: Promise, since: datetime, missed_limit: int) -> int:
    return to_milliseconds(deadline(promise, since, missed_limit))


class Unwatched:
    """The times that count for nobody: those in which nobody watched, and maintenance that is over."""

    def __init__(self, outages: Iterable[Span] = (), windows: Iterable[Span] = ()) -> None:
        self.outages = merge(outages)
        self.windows = merge(windows)
        self._both = merge([*self.outages, *self.windows])
        self._ends = [[end for _, end in spans] for spans in (self.outages, self.windows, self._both)]

    def extend_over_outages(self, due: int, since: int) -> int:
        """Return a deadline moved by the outages after a moment."""
        return extend_over_outages(due, since, islice(self.outages, bisect_right(self._ends[0], since), None))

    def extend(self, due: int, since: int) -> int:
        """Return a deadline moved by all that lies after a moment."""
        return extend_over_outages(due, since, islice(self._both, bisect_right(self._ends[2], since), None))

    def is_after(self, since: int) -> bool:
        """Return whether any of it lies after a moment."""
        return bisect_right(self._ends[2], since) < len(self._both)

    def first_window(self, since: int) -> Span | None:
        """Return the first window that ends after a moment."""
        return next(islice(self.windows, bisect_right(self._ends[1], since), None), None)


class DeadlineRule:
    """When a session with a promise becomes degraded; the rules themselves are in `fleetbeat_worker.rules.liveness`.

    The first window of maintenance that an agent's silence meets starts its clock anew, at the window's end. Those
    after it, until it is heard again, move the deadline as outages do, by their own time: if each started the clock
    anew, who may be silent for longer than they are apart would never be flagged.
    """

    def __init__(self, promise: Promise, missed_limit: int, unwatched: Unwatched) -> None:
        self._promise = promise
        self._missed_limit = missed_limit
        self._unwatched = unwatched
        allowed = allowed_silence_seconds(promise, missed_limit)
        self.least = 0 if allowed is None else round(allowed * 1000)

    def base(self, start: int) -> int:
        """Return the deadline of a clock that starts at a moment, as if nothing had moved it."""
        return start + self.least if self.least else deadline_of(self._promise, start, self._missed_limit)

    def before_maintenance(self, since: int) -> int:
        """Return the deadline as if there had been no maintenance: as a batch stores it."""
        return self._unwatched.extend_over_outages(self.base(since), since)

    def clock(self, since: int) -> tuple[int, int]:
        """Return when the clock of a session starts that is silent since a moment, and its deadline."""
        due = self.before_maintenance(since)
        window = self._unwatched.first_window(since)
        if window is None or window[0] > due:
            return since, due
        start = window[1]
        anew = self._unwatched.extend(self.base(start), start)
        # With a schedule both clocks may come to the same slot, and what moved the old one counts still.
        return (start, anew) if anew >= due else (since, due)

    def __call__(self, since: int) -> int:
        """Return the deadline of a session that is silent since a moment."""
        return self.clock(since)[1]

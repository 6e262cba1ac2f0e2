"""Spans of time and their arithmetic, in milliseconds since 1970 (UTC)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_MILLISECOND = timedelta(milliseconds=1)


def to_milliseconds(moment: datetime) -> int:
    """Return whole milliseconds since 1970 (UTC): what a stream id's first half counts too.

    Raises ValueError for a naive datetime.
    """
    if moment.tzinfo is None:
        message = f"{moment!r} has no time zone"
        raise ValueError(message)
    return (moment - EPOCH) // _MILLISECOND


def from_milliseconds(milliseconds: int) -> datetime:
    """Return the moment (aware, UTC) that many milliseconds after the start of 1970."""
    seconds, rest = divmod(milliseconds, 1000)
    return EPOCH + timedelta(0, seconds, rest * 1000)  # four times faster than timedelta(milliseconds=…)


def parse_time(text: object) -> datetime | None:
    """Parse an ISO 8601 time with an offset, as JSON details have it, to UTC; None for anything else."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        return moment.astimezone(UTC) if moment is not None and moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


Span = tuple[int, int]
"""From a moment to a later one, which is not part of it any more."""


def merge(spans: Iterable[Span]) -> list[Span]:
    """Return the same time as spans in their order that don't touch each other."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[1] > span[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def subtract(spans: Iterable[Span], holes: Iterable[Span]) -> list[Span]:
    """Return the time of the spans that lies in none of the holes."""
    left: list[Span] = merge(spans)
    for start, end in merge(holes):
        left = [
            piece
            for span in left
            for piece in ((span[0], min(span[1], start)), (max(span[0], end), span[1]))
            if piece[1] > piece[0]
        ]
    return left


def clip(spans: Iterable[Span], within: Span) -> list[Span]:
    """Return the time of the spans that lies within another."""
    return merge((max(start, within[0]), min(end, within[1])) for start, end in spans)


def length(spans: Iterable[Span]) -> int:
    """Return how long spans that don't overlap are together."""
    return sum(end - start for start, end in spans)


def uptime(expected: Iterable[Span], up: Iterable[Span], within: Span) -> float | None:
    """Return the share of the expected time in which it was up; None if nothing was expected in that time."""
    wanted = clip(expected, within)
    down = subtract(wanted, up)
    whole = length(wanted)
    return (whole - length(down)) / whole if whole else None

"""Durations and times as text: parses `30s`, `5m`, `1h30m` or a bare number of seconds, and formats them back."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Self

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+|\d+(?:\.\d+)?", re.ASCII)


class TypedSeconds(float):
    """Seconds with the text that they were parsed from, so that an error can quote it."""

    __slots__ = ("typed",)

    typed: str

    def __new__(cls, seconds: float, typed: str) -> Self:
        """Combine the seconds with their text."""
        made = super().__new__(cls, seconds)
        made.typed = typed
        return made


def parse_duration(text: str) -> TypedSeconds:
    """Parse a duration into seconds.

    Raises ValueError, with examples in its text, when it isn't one.
    """
    compact = text.strip().lower().replace(" ", "")
    if _WHOLE.fullmatch(compact) is None:
        message = f"{text!r} is not a duration. Examples: 30s, 5m, 6h, 1d"
        raise ValueError(message)
    if compact[-1].isdigit():
        return TypedSeconds(float(compact), text.strip())
    return TypedSeconds(sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(compact)), text.strip())


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units: `45s`, `6m`, `2h 5m`, `3d 4h`."""
    span = timedelta(seconds=abs(seconds))
    if span < timedelta(seconds=10) and span.microseconds:
        return f"{span.total_seconds():.1f}s"
    days, rest = span.days, span.seconds
    parts = [(days, "d"), (rest // 3600, "h"), (rest // 60 % 60, "m"), (rest % 60, "s")]
    first = next((place for place, (number, _) in enumerate(parts) if number), 3)
    shown = [f"{number}{unit}" for number, unit in parts[first : first + 2] if number]
    return " ".join(shown) or "0s"


def amount(seconds: float) -> str:
    """Format a duration without rounding: in two units if they are enough, otherwise in seconds: `6m`, `68.25s`."""
    words = format_duration(seconds)
    return words if parse_duration(words) == seconds else f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def exact(moment: datetime) -> str:
    """Format a time to the millisecond, so that a reader can check sums."""
    return f"{moment:%Y-%m-%d %H:%M:%S}" + (f".{moment.microsecond // 1000:03}" if moment.microsecond else "")

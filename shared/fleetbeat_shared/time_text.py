"""Durations as people write them: `30s`, `5m`, `6h`, `1d`, `1h30m`, or a bare number of seconds."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Self

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+|\d+(?:\.\d+)?", re.ASCII)


class TypedSeconds(float):
    """Seconds that know how somebody wrote them, so that an error can say it back."""

    __slots__ = ("typed",)

    def __new__(cls, seconds: float, typed: str) -> Self:
        """Return the seconds that a text means."""
        made = super().__new__(cls, seconds)
        made.typed = typed
        return made

    typed: str


def parse_duration(text: str) -> TypedSeconds:
    """Return a duration in seconds.

    Raises ValueError, with an example in its text, when it isn't one.
    """
    compact = text.strip().lower().replace(" ", "")
    if _WHOLE.fullmatch(compact) is None:
        message = f"{text!r} is no duration; write for example 30s, 5m, 6h or 1d"
        raise ValueError(message)
    if compact[-1].isdigit():
        return TypedSeconds(float(compact), text.strip())
    return TypedSeconds(sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(compact)), text.strip())


def format_duration(seconds: float) -> str:
    """Return a duration as people say it, in its two largest units: `45s`, `6m`, `2h 5m`, `3d 4h`."""
    span = timedelta(seconds=abs(seconds))
    if span < timedelta(seconds=10) and span.microseconds:
        return f"{span.total_seconds():.1f}s"
    days, rest = span.days, span.seconds
    parts = [(days, "d"), (rest // 3600, "h"), (rest // 60 % 60, "m"), (rest % 60, "s")]
    first = next((place for place, (number, _) in enumerate(parts) if number), 3)
    shown = [f"{number}{unit}" for number, unit in parts[first : first + 2] if number]
    return " ".join(shown) or "0s"


def amount(seconds: float) -> str:
    """Return a duration without loss: in words if two units are enough, else in seconds: `6m`, `68.25s`."""
    words = format_duration(seconds)
    return words if parse_duration(words) == seconds else f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def exact(moment: datetime) -> str:
    """Return a moment to the millisecond, so that sums can be checked."""
    return f"{moment:%Y-%m-%d %H:%M:%S}" + (f".{moment.microsecond // 1000:03}" if moment.microsecond else "")

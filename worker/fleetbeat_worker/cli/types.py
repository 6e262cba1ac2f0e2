"""Durations and moments as people type them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from fleetbeat_shared.time_text import format_duration, parse_duration

LONGEST = timedelta(days=36_500)


class DurationType(click.ParamType[timedelta]):
    """A duration: `30s`, `2h`, `7d`; `zero` says whether it may be nothing.

    `within`: the least and the most seconds that it may be, where a registration has such limits.
    """

    name = "DURATION"

    def __init__(self, *, zero: bool = False, within: tuple[float, float] | None = None) -> None:
        self._zero = zero
        self._within = within

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:  # noqa: ANN401
        """Return the duration that a text names."""
        if isinstance(value, timedelta):
            return value
        try:
            seconds = parse_duration(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        if self._within is not None and not self._within[0] <= seconds <= self._within[1]:
            least, most = map(format_duration, self._within)
            how = "little" if seconds < self._within[0] else "much"
            self.fail(f"{value} is too {how}; {least} to {most} is allowed, as at a registration.", param, ctx)
        if seconds > LONGEST.total_seconds() or (not seconds and not self._zero):
            self.fail(f"{value!r} is out of range; take more than 0s and at most {LONGEST.days}d.", param, ctx)
        return timedelta(seconds=seconds)


class MomentType(click.ParamType["datetime | timedelta"]):
    """A moment: ISO 8601, in local time unless it says a zone; or a duration: how long ago, or from now, it is.

    `example`: what a duration means where it is asked for, for who writes neither.
    """

    name = "TIME"

    def __init__(self, example: str) -> None:
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | timedelta:  # noqa: ANN401
        """Return the moment that a text names, in UTC, or how far it is from now."""
        if isinstance(value, datetime | timedelta):
            return value
        text = str(value).strip()
        for read in (_iso, _duration):
            try:
                return read(text)
            except (ValueError, OverflowError):
                continue
        message = f"{value!r} is no time; write for example 2026-01-31T08:15, 2026-01-31T08:15:00Z, or {self._example}."
        return self.fail(message, param, ctx)


def _iso(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _duration(text: str) -> timedelta:
    return timedelta(seconds=parse_duration(text))

"""Durations and moments as people type them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from fleetbeat_shared.durations import parse_duration

LONGEST = timedelta(days=36_500)


class DurationType(click.ParamType[timedelta]):
    """A duration: `30s`, `2h`, `7d`; `zero` says whether it may be nothing."""

    name = "DURATION"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:  # noqa: ANN401
        """Return the duration that a text names."""
        if isinstance(value, timedelta):
            return value
        try:
            duration = timedelta(seconds=parse_duration(str(value)))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no duration; write for example 30s, 5m, 6h or 1d.", param, ctx)
        if duration > LONGEST or (not duration and not self._zero):
            self.fail(f"{value!r} is out of range; take more than 0s and at most {LONGEST.days}d.", param, ctx)
        return duration


class MomentType(click.ParamType[datetime]):
    """A moment: ISO 8601, in local time unless it says a zone; or how long ago it was, as a duration."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:  # noqa: ANN401
        """Return the moment that a text names, in UTC."""
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        for read in (_ago, _iso):
            try:
                return read(text)
            except (ValueError, OverflowError):
                continue
        message = f"{value!r} is no time; write for example 2026-01-31T08:15, 2026-01-31T08:15:00Z, or 2h for 2 h ago."
        return self.fail(message, param, ctx)


def _ago(text: str) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=parse_duration(text))


def _iso(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)

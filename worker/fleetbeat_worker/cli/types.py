"""Types of the options and arguments: durations, moments, names, states and other values as people type them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click
from pydantic import TypeAdapter, ValidationError

from fleetbeat_shared.click_types import WholeNumber
from fleetbeat_shared.identifiers import normalise_name
from fleetbeat_shared.messages import AgentName, describe
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.time_text import format_duration, parse_duration
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.workers.autoscale import MAX_WORKERS, Bounds

LONGEST = timedelta(days=36_500)

MAX_LINE = 500
"""Characters of a reason or a title: as many as an agent's progress text may have."""

ROW_ID = WholeNumber(1, 2**63 - 1)
"""The type of an option or argument that is a row's number."""

LIMIT = WholeNumber(1, 1_000_000)
"""The type of `--limit`."""


class DurationType(click.ParamType[timedelta]):
    """A duration: `30s`, `2h`, `7d`.

    `zero`: whether it may be nothing. `within`: the least and the most seconds allowed.
    """

    name = "DURATION"

    def __init__(self, *, zero: bool = False, within: tuple[float, float] | None = None) -> None:
        self._zero = zero
        self._within = within

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:  # noqa: ANN401 - click's signature
        """Parse a duration."""
        if isinstance(value, timedelta):
            return value
        try:
            seconds = parse_duration(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        if self._within is not None and not self._within[0] <= seconds <= self._within[1]:
            least, most = map(format_duration, self._within)
            how = "small" if seconds < self._within[0] else "large"
            self.fail(f"{value} is too {how}; {least} to {most} is allowed.", param, ctx)
        if seconds > LONGEST.total_seconds() or (not seconds and not self._zero):
            self.fail(f"{value!r} is out of range; take more than 0s and at most {LONGEST.days}d.", param, ctx)
        return timedelta(seconds=seconds)


class MomentType(click.ParamType["datetime | timedelta"]):
    """A moment: ISO 8601, in local time unless it has a zone; or a duration, for how long ago or from now it is.

    `example`: what a duration means for the option, shown in the error.
    """

    name = "TIME"

    def __init__(self, example: str) -> None:
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | timedelta:  # noqa: ANN401 - click's signature
        """Parse a moment, in UTC, or how far it is from now."""
        if isinstance(value, datetime | timedelta):
            return value
        text = str(value).strip()
        for parse in (_parse_iso, _parse_timedelta):
            try:
                return parse(text)
            except (ValueError, OverflowError):
                continue
        message = f"{value!r} is not a time. Examples: 2026-01-31T08:15, 2026-01-31T08:15:00Z, {self._example}."
        return self.fail(message, param, ctx)


def _parse_iso(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _parse_timedelta(text: str) -> timedelta:
    return timedelta(seconds=parse_duration(text))


class StatesType(click.ParamType[frozenset[State]]):
    """One or more states of agents, with commas between them."""

    name = "STATES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[State]:  # noqa: ANN401 - click's signature
        """Parse states."""
        if isinstance(value, frozenset):
            return value
        try:
            return frozenset(State(word.strip().lower()) for word in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a state; the states are {', '.join(State)}.", param, ctx)


class BoundsType(click.ParamType[Bounds]):
    """The least and the most workers of a pool: `1:8`."""

    name = "MIN:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Bounds:  # noqa: ANN401 - click's signature
        """Parse bounds."""
        if isinstance(value, Bounds):
            return value
        try:
            return Bounds.parse(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a range of workers within 0 and {MAX_WORKERS}. Example: 1:8", param, ctx)


class LineType(click.ParamType[str]):
    """One line of text; `noun` says what it is, for the error."""

    name = "TEXT"

    def __init__(self, noun: str) -> None:
        self._noun = noun

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - click's signature
        """Remove control characters, and check the length."""
        text = clean(str(value))
        if not 0 < len(text) <= MAX_LINE:
            self.fail(f"a {self._noun} has 1 to {MAX_LINE} characters; this one has {len(text)}.", param, ctx)
        return text


_NAME: TypeAdapter[str] = TypeAdapter(AgentName)


class NameType(click.ParamType[str]):
    """An agent's name, under the rules of a registration: a database can't be asked for text that isn't UTF-8, say."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - click's signature
        """Normalise and check the name."""
        try:
            return _NAME.validate_python(normalise_name(str(value)))
        except ValidationError as error:
            self.fail(f"not an agent's name: {describe(error, {'agent_name': ''}, 'agent_name')}.", param, ctx)


class PatternType(NameType):
    """An agent's name, or a pattern of names."""

    name = "GLOB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - click's signature
        """Normalise the name or the pattern; check a name."""
        return normalise_name(str(value)) if is_pattern(str(value)) else super().convert(value, param, ctx)


def is_pattern(text: str) -> bool:
    """Tell whether a text can match several names."""
    return any(letter in text for letter in "*?[")

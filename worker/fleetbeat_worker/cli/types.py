"""Durations and moments as people type them."""

from __future__ import annotations

from collections.abc import Sized
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection

from fleetbeat_shared.click_types import WholeNumber
from fleetbeat_shared.errors import UnknownSession
from fleetbeat_shared.identifiers import normalise_name
from fleetbeat_shared.messages import AgentName, describe
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.time_text import format_duration, parse_duration
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.store.sessions import agent_is_known
from fleetbeat_worker.workers.autoscale import Bounds

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


ROW_ID = WholeNumber(1, 2**63 - 1)
"""The type of an option or argument that is a row's number."""


LIMIT = WholeNumber(1, 1_000_000)
"""The type of `--limit`."""


class States(click.ParamType[frozenset[State]]):
    """One or more states of agents, with commas between them."""

    name = "STATES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[State]:  # noqa: ANN401
        """Return the states that a text names."""
        if isinstance(value, frozenset):
            return value
        try:
            return frozenset(State(word.strip().lower()) for word in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no state; there are {', '.join(State)}.", param, ctx)


class BoundsType(click.ParamType["Bounds"]):
    """The least and the most workers of a pool: `1:8`."""

    name = "MIN:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Bounds:  # noqa: ANN401
        """Return the bounds that a text names."""
        from fleetbeat_worker.workers.autoscale import MOST_WORKERS, Bounds

        if isinstance(value, Bounds):
            return value
        try:
            return Bounds.parse(str(value))
        except ValueError:
            message = f"{value!r} is no range of workers; write for example 1:8, within 0 and {MOST_WORKERS}."
            self.fail(message, param, ctx)


_NAME: TypeAdapter[str] = TypeAdapter(AgentName)


class NameType(click.ParamType[str]):
    """An agent's name, as a registration would take it: what isn't UTF-8, say, no database could be asked for."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """Return the one spelling of the name."""
        try:
            return _NAME.validate_python(normalise_name(str(value)))
        except ValidationError as error:
            self.fail(f"no agent can have this name: {describe(error, {'agent_name': ''}, 'agent_name')}.", param, ctx)


class NamesType(NameType):
    """An agent's name, or a pattern of names."""

    name = "GLOB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """Return the one spelling of the name, or the pattern."""
        return normalise_name(str(value)) if is_pattern(str(value)) else super().convert(value, param, ctx)


def unknown_name(connection: Connection, agent_name: str | None, found: Sized) -> UnknownSession | None:
    """Return the error for a name of which nothing was found because no agent was ever registered by it, or None.

    It is for raising after what was found is printed, so that a program that reads JSON has it all the same.
    """
    if agent_name is None or found or agent_is_known(connection, agent_name):
        return None
    return UnknownSession(f"No agent {agent_name!r} was ever registered; see: fleetbeat agents list --all")


def warn_of_pattern(pattern: str) -> None:
    """Say on stderr that a pattern fits nobody: with a pattern that may be what was expected."""
    click.echo(
        f"Warning: No agent's name fits {clean(pattern)!r} in that time; see: fleetbeat agents list --all", err=True
    )


def is_pattern(text: str) -> bool:
    """Return whether a text can stand for several names."""
    return any(letter in text for letter in "*?[")

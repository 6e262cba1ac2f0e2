"""Names that somebody asks for: one that nobody can have is refused, one that nobody has is an error.

A typo would look like good news otherwise.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import click
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection

from fleetbeat_shared.errors import UnknownSession
from fleetbeat_shared.identifiers import normalise_name
from fleetbeat_shared.messages import AgentName, describe
from fleetbeat_shared.sanitize import clean
from fleetbeat_worker.store.sessions import name_is_known

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
    if agent_name is None or found or name_is_known(connection, agent_name):
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

"""Names that somebody asks for and that nobody has: a typo would look like good news otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleetbeat_shared.errors import UnknownSession
from fleetbeat_shared.text import clean
from fleetbeat_worker.store.agents import name_is_known

if TYPE_CHECKING:
    from collections.abc import Sized

    from sqlalchemy import Connection


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

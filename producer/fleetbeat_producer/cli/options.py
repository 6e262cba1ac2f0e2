"""The options that several commands of `fleetbeat-agent` share."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fleetbeat_producer.transport import Transport
from fleetbeat_shared.durations import parse_duration
from fleetbeat_shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

_Command = TypeVar("_Command", bound="Callable[..., object]")


def duration(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """Return the seconds that an option's text like 30s means."""
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def json_object(_context: click.Context, _option: click.Parameter, text: str | None) -> dict[str, Any] | None:
    """Return the JSON object that an option's text is."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        message = """it is no JSON object; write for example '{"model": "small"}'"""
        raise click.BadParameter(message)
    return value


def common_options(command: _Command) -> _Command:
    """Add what every command takes."""
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)
    return click.option(
        "--redis-url",
        envvar="FLEETBEAT_REDIS_URL",
        show_envvar=True,
        metavar="URL",
        help="The Redis that the workers read from.",
    )(command)


def session_options(command: _Command) -> _Command:
    """Add the two ways of naming a session."""
    command = click.option("--agent", metavar="NAME", help="The agent's name, if it was registered with --stable.")(
        command
    )
    return click.option("--session", metavar="ID", help="The session id that `register` gave.")(command)


metadata_option = click.option(
    "--metadata", metavar="JSON", callback=json_object, help="A JSON object of at most 4 KiB."
)


def transport_to(redis_url: str | None) -> Transport:
    """Return the way to the Redis that `--redis-url` names, or else the settings.

    Raises SettingsError.
    """
    settings = Settings.from_environment(os.environ)
    return Transport(settings if redis_url is None else settings.model_copy(update={"redis_url": redis_url}))

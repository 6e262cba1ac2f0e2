"""The options that several commands of `fleetbeat-agent` share."""

from __future__ import annotations

import json
import math
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from fleetbeat_producer.cli.delivery import Delivery
from fleetbeat_shared.click_types import WholeNumber
from fleetbeat_shared.time_text import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

_Command = TypeVar("_Command", bound="Callable[..., object]")

LONGEST_TIMEOUT_SECONDS = 60


def duration(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """Return the seconds that an option's text like 30s means."""
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def promise_options(command: _Command) -> _Command:
    """Add what an agent may say of how it is judged, beside how often it beats."""
    options = [
        click.option("--grace", metavar="DURATION", callback=duration, help="How much later a heartbeat may come."),
        click.option(
            "--missed",
            type=WholeNumber(1, 100),
            metavar="N",
            help="How many intervals it may miss before it is degraded; as the fleet's setting says if not given.",
        ),
        click.option(
            "--stuck-after",
            type=WholeNumber(0, 100_000),
            metavar="N",
            help="After how many intervals in which nothing it does changed it is stuck; 0: never.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def json_object(_context: click.Context, _option: click.Parameter, text: str | None) -> dict[str, Any] | None:
    """Return the JSON object that an option's text is."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        message = """it is not a JSON object. Example: '{"model": "small"}'"""
        raise click.BadParameter(message)
    return value


def _timeout(_context: click.Context, _option: click.Parameter, seconds: float | None) -> float | None:
    """Refuse what is no time to wait."""
    if seconds is not None and not 0 < seconds <= LONGEST_TIMEOUT_SECONDS:
        message = f"{seconds:g} is not above 0 and at most {LONGEST_TIMEOUT_SECONDS}"
        raise click.BadParameter(message)
    return seconds


def _wait(_context: click.Context, _option: click.Parameter, seconds: float | None) -> float | None:
    """Refuse what is no time to wait; it may be long."""
    if seconds is not None and not 0 < seconds < math.inf:
        message = f"{seconds:g} is no number of seconds above 0"
        raise click.BadParameter(message)
    return seconds


wait_option = click.option(
    "--wait",
    type=float,
    metavar="SECONDS",
    callback=_wait,
    help="Wait until it is stored, and print what SQL says.",
)


def delivery_options(command: _Command) -> _Command:
    """Add what says how a message gets to Redis and what is told of it; the command gets it as one `delivery`."""

    @wraps(command)
    def with_delivery(
        *, redis_url: str | None, timeout: float | None, log_file: Path | None, as_json: bool, **rest: object
    ) -> object:
        return command(delivery=Delivery(redis_url, timeout, log_file, as_json=as_json), **rest)

    options = [
        click.option(
            "--redis-url",
            envvar="FLEETBEAT_REDIS_URL",
            show_envvar=True,
            metavar="URL",
            help="The Redis that the workers read from.",
        ),
        click.option(
            "--timeout",
            type=float,
            metavar="SECONDS",
            callback=_timeout,
            help="How long it may take until Redis has the message; 1 if not set otherwise.",
        ),
        click.option(
            "--log-file",
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="Add a line about this call to a file, which becomes PATH.1 at 1 MiB.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    ]
    decorated: Any = with_delivery
    for option in reversed(options):
        decorated = option(decorated)
    return cast("_Command", decorated)


def session_options(command: _Command) -> _Command:
    """Add the two ways of naming a session."""
    command = click.option("--agent", metavar="NAME", help="The agent's name, if it was registered with --stable.")(
        command
    )
    return click.option("--session", metavar="ID", help="The session id that `register` gave.")(command)


metadata_option = click.option(
    "--metadata", metavar="JSON", callback=json_object, help="A JSON object of at most 4 KiB."
)

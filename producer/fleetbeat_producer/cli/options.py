"""Options that several commands of `fleetbeat-agent` share."""

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
    """Parse an option's duration into seconds."""
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _json_object(_context: click.Context, _option: click.Parameter, text: str | None) -> dict[str, Any] | None:
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
    if seconds is not None and not 0 < seconds <= LONGEST_TIMEOUT_SECONDS:
        message = f"{seconds:g} is not above 0 and at most {LONGEST_TIMEOUT_SECONDS}"
        raise click.BadParameter(message)
    return seconds


def _wait(_context: click.Context, _option: click.Parameter, seconds: float | None) -> float | None:
    if seconds is not None and not 0 < seconds < math.inf:
        message = f"{seconds:g} is not a number of seconds above 0"
        raise click.BadParameter(message)
    return seconds


metadata_option = click.option(
    "--metadata", metavar="JSON", callback=_json_object, help="A JSON object of at most 4 KiB."
)
wait_option = click.option(
    "--wait",
    type=float,
    metavar="SECONDS",
    callback=_wait,
    help="Wait until it is stored, and print it as stored.",
)


def promise_options(command: _Command) -> _Command:
    """Add the options that refine an agent's promise, other than its interval or schedule."""
    options = [
        click.option("--grace", metavar="DURATION", callback=duration, help="How late a heartbeat may be."),
        click.option(
            "--missed",
            type=WholeNumber(1, 100),
            metavar="N",
            help="How many intervals it may miss before it is degraded. Default: the fleet's setting.",
        ),
        click.option(
            "--stuck-after",
            type=WholeNumber(0, 100_000),
            metavar="N",
            help="After how many intervals without a change in its work it is stuck. 0: never.",
        ),
    ]
    return _add_options(command, options)


def session_options(command: _Command) -> _Command:
    """Add the two options that name a session."""
    options = [
        click.option("--session", metavar="ID", help="The session id that `register` printed."),
        click.option("--agent", metavar="NAME", help="The agent's name, if it was registered with --stable."),
    ]
    return _add_options(command, options)


def delivery_options(command: _Command) -> _Command:
    """Add the options about sending and output; the command gets them as one `delivery`."""

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
            help="How long to wait until Redis has the message. Default: 1, or the setting.",
        ),
        click.option(
            "--log-file",
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="Add a line about this call to a file, which is renamed to PATH.1 at 1 MiB.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    ]
    return cast("_Command", _add_options(with_delivery, options))


def _add_options(command: _Command, options: list[Callable[[Any], Any]]) -> _Command:
    decorated: Any = command
    for option in reversed(options):
        decorated = option(decorated)
    return cast("_Command", decorated)

"""Options that several commands share, and opening the databases that they name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import click
from redis import Redis
from sqlalchemy import Connection, Engine

from fleetbeat_shared.click_types import WholeNumber
from fleetbeat_shared.errors import FleetbeatError, UnknownSession
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli.types import LIMIT, BoundsType, NameType, StatesType
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.store.sessions import agent_is_known
from fleetbeat_worker.workers.autoscale import Bounds

T = TypeVar("T")


def example(*lines: str) -> str:
    """Write the epilog that shows how a command is used."""
    return "\n".join(("\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
limit_option = click.option("--limit", type=LIMIT, default=50, show_default=True, help="At most this many.")
state_option = click.option(
    "--state", "states", type=StatesType(), help=f"Only agents in these states: {', '.join(State)}."
)
all_option = click.option("--all", "show_all", is_flag=True, help="Include ended sessions.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Change nothing; print what would be done.")


def common_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command `--json`, as `as_json`, and `url_options`."""
    return json_option(url_options(command))


def url_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command `--redis-url` and `--database-url`, and call it with `settings`.

    The settings are read from the environment here, at the edge; the options override them. Raises SettingsError.
    """

    @click.option(
        "--redis-url",
        envvar="FLEETBEAT_REDIS_URL",
        show_envvar=True,
        metavar="URL",
        help="The Redis or Valkey that agents send to and workers read from.",
    )
    @click.option(
        "--database-url",
        envvar="FLEETBEAT_DATABASE_URL",
        show_envvar=True,
        metavar="URL",
        help="The SQL database: sqlite:///path or postgresql://user@host/name.",
    )
    @wraps(command)
    def with_settings(*args: Any, redis_url: str | None, database_url: str | None, **kwargs: Any) -> T:  # noqa: ANN401 - any command's
        given = {"redis_url": redis_url, "database_url": database_url}
        settings = Settings.from_environment(os.environ)
        settings = settings.model_copy(update={name: value for name, value in given.items() if value})
        return command(*args, settings=settings, **kwargs)

    return with_settings


def metrics_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command `--metrics-port` and `--metrics-host`, which override those of its `settings`."""

    @click.option(
        "--metrics-port",
        type=WholeNumber(0, 65_535),
        envvar="FLEETBEAT_METRICS_PORT",
        show_envvar=True,
        help="Serve Prometheus metrics on this port; 0 takes a free one and logs it.",
    )
    @click.option(
        "--metrics-host",
        envvar="FLEETBEAT_METRICS_HOST",
        show_envvar=True,
        metavar="ADDRESS",
        help="The address to serve metrics on, instead of 127.0.0.1.",
    )
    @wraps(command)
    def with_metrics(
        *args: Any,  # noqa: ANN401 - any command's
        settings: Settings,
        metrics_port: int | None,
        metrics_host: str | None,
        **kwargs: Any,  # noqa: ANN401 - any command's
    ) -> T:
        given = {"metrics_port": metrics_port, "metrics_host": metrics_host}
        settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
        return command(*args, settings=settings, **kwargs)

    return with_metrics


def pool_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command `-n` and `--autoscale`, and call it with a pool's `bounds` and initial number of `workers`."""

    @click.option("-n", "--workers", type=WholeNumber(1, 64), default=1, show_default=True, help="Number of workers.")
    @click.option(
        "--autoscale",
        "bounds",
        type=BoundsType(),
        help="Adjust the number of workers to the lag, within this range; starts with -n.",
    )
    @wraps(command)
    def with_pool(*args: Any, workers: int, bounds: Bounds | None, **kwargs: Any) -> T:  # noqa: ANN401 - any command's
        bounds = bounds or Bounds(workers, workers)
        return command(*args, workers=bounds.clamp(workers), bounds=bounds, **kwargs)

    return with_pool


def name_or_session(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the argument NAME and the option `--session`, and call it with `asked`, the one that is given."""

    @click.argument("name", type=NameType(), required=False)
    @click.option("--session", type=click.UUID, metavar="ID", help="Only the session with this ID.")
    @wraps(command)
    def with_asked(*args: Any, name: str | None, session: UUID | None, **kwargs: Any) -> T:  # noqa: ANN401 - any command's
        if (name is None) == (session is None):
            message = "Give either an agent's NAME or --session ID."
            raise click.UsageError(message)
        return command(*args, asked=session or name, **kwargs)

    return with_asked


def unknown_name(connection: Connection, agent_name: str | None, found: Sized) -> UnknownSession | None:
    """Make the error for a name of which nothing was found because no agent was ever registered by it, or None.

    It is raised after the output is printed, so that a program that reads JSON gets its object all the same.
    """
    if agent_name is None or found or agent_is_known(connection, agent_name):
        return None
    return UnknownSession(f"No agent {agent_name!r} was ever registered. See: fleetbeat agents list --all")


def asked_to_stop() -> Callable[[], bool]:
    """Make SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process; return the function that reads it.

    SIGHUP stays ignored where it is, as under nohup.
    """
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        signal.signal(number, lambda number, _frame: received.append(number))
    return lambda: bool(received)


@contextmanager
def open_database(settings: Settings) -> Iterator[Engine]:
    """Open the database, which must have this version's schema; a missing SQLite file is not created.

    Raises DatabaseUnavailable, SchemaOutdated, SettingsError; FleetbeatError when there is no data yet.
    """
    from fleetbeat_worker.database.engine import open_engine
    from fleetbeat_worker.database.schema import check

    missing = _missing_file(settings.sql_url)
    if missing is not None:
        message = f"There is no data yet: {missing} does not exist. Start with: fleetbeat up"
        raise FleetbeatError(message)
    engine = open_engine(settings.sql_url)
    try:
        check(engine)
        yield engine
    finally:
        engine.dispose()


def _missing_file(url: str) -> Path | None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return None  # open_engine reports what is wrong with it
    name = parsed.database
    if parsed.get_backend_name() != "sqlite" or not name or name == ":memory:" or name.startswith("file:"):
        return None
    try:
        return None if Path(name).exists() else Path(name)
    except OSError:
        return None  # open_engine can't open it either, and reports that


@contextmanager
def open_redis(settings: Settings) -> Iterator[Redis]:
    """Open a Redis client, which connects at its first command. Raises SettingsError."""
    from fleetbeat_shared.connection import connect

    client = connect(settings.redis_url, timeout_seconds=settings.redis_timeout_seconds)
    try:
        yield client
    finally:
        client.close()


def read_redis_time(settings: Settings) -> datetime:
    """Ask Redis for the time. Raises RedisUnavailable, SettingsError."""
    from fleetbeat_shared.connection import redis_errors
    from fleetbeat_worker.broker.server import redis_now

    with open_redis(settings) as client, redis_errors(settings.redis_url):
        return redis_now(client)

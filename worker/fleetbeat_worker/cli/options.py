"""What commands share: their options, and opening what the options name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from redis import Redis
from sqlalchemy import Engine

from fleetbeat_shared.click_types import WholeNumber
from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli.types import BoundsType
from fleetbeat_worker.workers.autoscale import Bounds

T = TypeVar("T")


def example(*lines: str) -> str:
    """Return an epilog that shows how a command is used."""
    return "\n".join(("\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)))


def common_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command `--redis-url` and `--database-url`, and call it with `settings`.

    The settings are read from the environment here, at the edge; the options override them. Raises SettingsError.
    """

    @click.option(
        "--redis-url",
        envvar="FLEETBEAT_REDIS_URL",
        show_envvar=True,
        metavar="URL",
        help="The Redis or Valkey that agents and workers meet at.",
    )
    @click.option(
        "--database-url",
        envvar="FLEETBEAT_DATABASE_URL",
        show_envvar=True,
        metavar="URL",
        help="The SQL database: sqlite:///path or postgresql://user@host/name.",
    )
    @wraps(command)
    def with_settings(*args: Any, redis_url: str | None, database_url: str | None, **kwargs: Any) -> T:  # noqa: ANN401
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
        help="The address to serve metrics at, instead of 127.0.0.1.",
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
    """Give a command `-n` and `--autoscale`, and call it with a pool's `bounds`, and the `workers` it begins with."""

    @click.option("-n", "--workers", type=WholeNumber(1, 64), default=1, show_default=True, help="How many RQ workers.")
    @click.option(
        "--autoscale",
        "bounds",
        type=BoundsType(),
        metavar="MIN:MAX",
        help="Let their number follow the lag, within this range; it begins with -n.",
    )
    @wraps(command)
    def with_pool(*args: Any, workers: int, bounds: Bounds | None, **kwargs: Any) -> T:  # noqa: ANN401 - any command's
        from fleetbeat_worker.workers.autoscale import Bounds

        bounds = bounds or Bounds(workers, workers)
        return command(*args, workers=bounds.clamp(workers), bounds=bounds, **kwargs)

    return with_pool


def json_option(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command `--json`, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(command)


def asked_to_stop() -> Callable[[], bool]:
    """Let SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process; return what looks at it.

    Under nohup, which has SIGHUP ignored, it stays so.
    """
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        signal.signal(number, lambda received, _frame: asked.append(received))
    return lambda: bool(asked)


@contextmanager
def open_database(settings: Settings) -> Iterator[Engine]:
    """Open the database, which must be there with this version's schema; an SQLite file is never made by looking.

    Raises DatabaseUnavailable, SchemaOutdated, SettingsError; FleetbeatError when there is no data yet.
    """
    from fleetbeat_worker.database.engine import open_engine
    from fleetbeat_worker.database.schema import check

    missing = _missing_file(settings.sql_url)
    if missing is not None:
        message = f"There is no data yet: {missing} does not exist. Begin with: fleetbeat up"
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
        return None  # open_engine says what is wrong with it
    name = parsed.database
    if parsed.get_backend_name() != "sqlite" or not name or name == ":memory:" or name.startswith("file:"):
        return None
    try:
        return None if Path(name).exists() else Path(name)
    except OSError:
        return None  # nor can open_engine open it, and it says so


@contextmanager
def open_redis(settings: Settings) -> Iterator[Redis]:
    """Open a Redis client, which connects at its first command. Raises SettingsError."""
    from fleetbeat_shared.connection import connect

    client = connect(settings.redis_url, timeout_seconds=settings.redis_timeout_seconds)
    try:
        yield client
    finally:
        client.close()

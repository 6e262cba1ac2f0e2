"""Making Redis clients that fail fast and say clearly what failed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fleetbeat_shared.errors import RedisUnavailable, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis


def connect(url: str, *, timeout_seconds: float, name: str | None = None) -> Redis:
    """Return a client; it connects at its first command.

    It tries each command once: redis-py's own retries would send an XADD twice and wait up to a minute for a
    server that is away. A process that forks makes its client afterwards.

    Raises SettingsError when the URL is none of Redis's.
    """
    from redis import Redis  # costs 0.25 s, and not everybody who imports us talks to Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    try:
        return Redis.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
            client_name=name,
        )
    except ValueError:
        message = "FLEETBEAT_REDIS_URL is no Redis URL; write redis://host:port/0, rediss://… or unix://path."
        raise SettingsError(message) from None


@contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """Turn redis-py's errors into RedisUnavailable, with the place and what to do."""
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError) as error:
        message = (
            f"Redis at {place(url)} can't be used ({reason(error)}). Is it running, and is FLEETBEAT_REDIS_URL right?"
        )
        raise RedisUnavailable(message) from error


def reason(error: BaseException) -> str:
    """Return why a Redis command failed, in a few words, without anything that a URL may have held."""
    from redis import exceptions

    known: list[tuple[type[BaseException], str]] = [
        (exceptions.AuthenticationError, "wrong user or password"),
        (exceptions.NoPermissionError, "the user lacks the rights"),
        (exceptions.OutOfMemoryError, "its memory is full"),
        (exceptions.ReadOnlyError, "it is a read-only replica"),
        (exceptions.TimeoutError, "no answer in time"),
        (TimeoutError, "no answer in time"),
        (exceptions.ConnectionError, "no connection"),
    ]
    return next((words for kind, words in known if isinstance(error, kind)), type(error).__name__)


def place(url: str) -> str:
    """Return where a URL points to, without its user, password and options."""
    parts = urlsplit(url)
    path = parts.path.rpartition("@")[2]  # a password with an unescaped slash would stand in front of it
    if not parts.hostname:
        return path or "an unknown place"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.scheme}://{host}{port}{path}"

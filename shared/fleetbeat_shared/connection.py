"""Redis clients that fail fast, and errors that say what failed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from fleetbeat_shared.errors import FleetbeatError, RedisUnavailable, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

SENTINEL_SCHEME = "redis+sentinel"
_SENTINEL_PORT = 26379


def connect(url: str, *, timeout_seconds: float, name: str | None = None) -> Redis:
    """Make a client; it connects at its first command.

    It tries each command once: redis-py's own retries would send an XADD twice, and wait up to a minute for a server
    that is away. A process that forks has to make its client afterwards.

    The URL's options are redis-py's: `rediss://host:port/0?ssl_ca_certs=PATH&ssl_certfile=PATH&ssl_keyfile=PATH`.
    With `redis+sentinel://user:password@host:port,host:port/service/0` each new connection asks those Sentinels for the
    service's master; options that begin with `sentinel_` (`sentinel_password`) apply to the Sentinels themselves.

    Raises SettingsError when the URL is not a Redis URL, or has an option that doesn't apply to it.
    """
    from redis import Redis  # costs 0.25 s, and not every importer of this module connects to Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
    from redis.retry import Retry

    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        # Otherwise each connection reads redis-py's version from the disk to report it to the server, and imports the
        # parser of e-mails for that: a child that is forked at that time waits for the import's lock for ever.
        "driver_info": None,
    }
    try:
        if urlsplit(url).scheme == SENTINEL_SCHEME:
            client = _connect_by_sentinels(url, options, name)
        else:
            client = Redis.from_url(url, client_name=name, **options)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # a bad option raises here, not at the first command
    except ValueError:
        message = (
            "FLEETBEAT_REDIS_URL is not a Redis URL. Examples: redis://host:port/0, rediss://…, unix://path, "
            "redis+sentinel://host:port,host:port/service."
        )
        raise SettingsError(message) from None
    except (TypeError, RedisError):
        message = "FLEETBEAT_REDIS_URL has an option that can't be used. Options that begin with ssl_ need rediss://."
        raise SettingsError(message) from None
    return client


def _connect_by_sentinels(url: str, options: dict[str, Any], name: str | None) -> Redis:
    """Make a client of the master that the Sentinels report. Raises ValueError when the URL is malformed."""
    from redis.connection import parse_url
    from redis.sentinel import Sentinel

    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not (database or "0").isdecimal():
        message = "no service, or a database that is not a number"
        raise ValueError(message)
    plain_url = urlunsplit(("redis", f"{login}{at}master", f"/{database}", parts.query, ""))
    given = parse_url(plain_url)  # type: ignore[no-untyped-call] # redis-py has no hint here
    del given["host"]  # only a placeholder
    theirs = {key: value for key, value in given.items() if key.startswith("sentinel_")}
    sentinel = Sentinel(  # type: ignore[no-untyped-call] # nor here
        [_parse_address(host) for host in hosts.split(",")],
        sentinel_kwargs=options | {key.removeprefix("sentinel_"): value for key, value in theirs.items()},
    )
    ours = {key: value for key, value in given.items() if key not in theirs}
    client: Redis = sentinel.master_for(service, client_name=name, **options | ours)  # type: ignore[no-untyped-call]
    return client


def _parse_address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        message = "no host"
        raise ValueError(message)
    return parts.hostname, parts.port or _SENTINEL_PORT


@contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """Turn redis-py's errors into RedisUnavailable, with the server's address and what to do."""
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError) as error:
        raise unavailable(url, error) from error


def unavailable(url: str, error: BaseException) -> RedisUnavailable:
    """Make the error for a Redis command that failed with another error."""
    return RedisUnavailable(
        f"Redis at {place(url)} can't be used ({reason(error)}). "
        "Check that it is running, and that FLEETBEAT_REDIS_URL is right."
    )


def reason(error: BaseException) -> str:
    """Describe in a few words why a Redis command failed, without any part of the URL, which may hold a password."""
    from redis import exceptions
    from redis.sentinel import MasterNotFoundError

    if isinstance(error, exceptions.ConnectionError) and (why := _tls_reason(error.__context__)):
        return why
    if isinstance(error, FleetbeatError):
        return str(error).rstrip(".")
    if isinstance(error, exceptions.ResponseError) and str(error).startswith("NOREPLICAS"):
        return "too few replicas are connected"  # for `min-replicas-to-write`
    known: list[tuple[type[BaseException], str]] = [
        (exceptions.AuthenticationError, "wrong user or password"),
        (exceptions.NoPermissionError, "the user lacks the rights"),
        (exceptions.OutOfMemoryError, "its memory is full"),
        (exceptions.ReadOnlyError, "it is a read-only replica"),
        (MasterNotFoundError, "no Sentinel reports a working master"),
        (exceptions.TimeoutError, "no answer in time"),
        (TimeoutError, "no answer in time"),
        (exceptions.ConnectionError, "no connection"),
    ]
    return next((words for kind, words in known if isinstance(error, kind)), type(error).__name__)


def _tls_reason(error: BaseException | None) -> str | None:
    """Describe a TLS failure by the error that redis-py's own error hides; None if it is another failure."""
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate isn't trusted for this host"
    if isinstance(error, ssl.SSLError):
        return "no TLS connection; it may require another client certificate, or not use TLS"
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return "a file or socket named in the URL can't be opened"
    return None


def place(url: str) -> str:
    """Strip a URL of its user, password and options, to show which server it means."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an unknown server"
    path = parts.path.rpartition("@")[2]  # a password with an unescaped slash would precede it
    if parts.scheme == SENTINEL_SCHEME and path == parts.path:
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"
    if not parts.hostname:
        return path or "an unknown server"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.scheme}://{host}{port}{path}"

"""TODO."""

from __future__ import annotations

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine

from fleetbeat_shared.redis_keys import NOTICES_DUE
from fleetbeat_worker.broker.server import redis_now
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.notifications import outbox as store
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.telemetry.log import logger


def announce(client: Redis, engine: Engine) -> None:
    """Tell the dispatcher, which asks no database, when the next notification is due. Raises DatabaseUnavailable.

    Each sweep does, after its own changes, and each job that sent some.
    """
    with reading(engine) as connection:
        due_at = store.next_due(connection)
    expect(client, None if due_at is None else to_milliseconds(due_at))


def expect(client: Redis, due_at: int | None) -> None:
    """Tell the dispatcher when notifications are due, in milliseconds since 1970; None: none is.

    A batch that wrote some says so, and asks nothing of the database: they are due at once.
    """
    try:
        if due_at is None:
            client.delete(NOTICES_DUE)
        else:
            client.set(NOTICES_DUE, due_at)
    except RedisError as error:  # away, or full: the next sweep tells it
        logger.debug("The dispatcher can't be told of notifications: %s", type(error).__name__)


def are_due(client: Redis) -> bool:
    """Return whether notifications are due, as far as was announced. Raises redis-py's errors."""
    announced = client.get(NOTICES_DUE)
    if not isinstance(announced, bytes) or not announced.isdigit():
        return False
    return int(announced) <= to_milliseconds(redis_now(client))

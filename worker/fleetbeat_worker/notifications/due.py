"""Due time: when the next notification is due, in Redis for the dispatcher, which doesn't query the database."""

from __future__ import annotations

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine

from fleetbeat_shared.redis_keys import NOTICES_DUE
from fleetbeat_worker.broker.server import redis_now
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.notifications.outbox import read_next_due
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.telemetry.log import logger


def announce_next_due(client: Redis, engine: Engine) -> None:
    """Write to Redis when the next notification is due: after each sweep, and after each notify job.

    Raises DatabaseUnavailable.
    """
    with reading(engine) as connection:
        due_at = read_next_due(connection)
    announce_due(client, None if due_at is None else to_milliseconds(due_at))


def announce_due(client: Redis, due_at: int | None) -> None:
    """Write to Redis when the next notification is due, in milliseconds since 1970; None: none is waiting."""
    try:
        if due_at is None:
            client.delete(NOTICES_DUE)
        else:
            client.set(NOTICES_DUE, due_at)
    except RedisError as error:  # away or full: the next sweep announces it
        logger.debug("Due notifications can't be announced: %s", type(error).__name__)


def are_due(client: Redis) -> bool:
    """Whether notifications are due, as last announced. Raises redis-py's errors."""
    announced = client.get(NOTICES_DUE)
    if not isinstance(announced, bytes) or not announced.isdigit():
        return False
    return int(announced) <= to_milliseconds(redis_now(client))

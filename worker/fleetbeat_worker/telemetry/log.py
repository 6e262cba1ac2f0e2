"""Logging: constant messages with fields beside them, one line each."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from fleetbeat_shared.sanitize import clean

logger = logging.getLogger("fleetbeat")

_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Formatter(logging.Formatter):
    """Adds the fields of `extra` to the line as JSON; nothing that came from outside reaches the terminal raw."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s[%(process)d]: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        """Return one line: time, level, logger, message, fields."""
        fields = {name: value for name, value in vars(record).items() if name not in _PLAIN}
        line = clean(super().formatMessage(record))
        return f"{line} {json.dumps(fields, default=str)}" if fields else line

    def formatException(self, ei: Any) -> str:  # noqa: N802, ANN401 - the base class's
        """Return a traceback whose lines can do a terminal nothing."""
        return "\n".join(f"    {clean(line)}" for line in super().formatException(ei).splitlines())


_ABOUT_REDIS = (
    "could not connect to Redis",
    "Redis connection timeout",
    "pubsub thread exiting",
    "redis.exceptions.ConnectionError",
    "redis.exceptions.TimeoutError",
)
"""What RQ says of a Redis that is away: its sentences, and the tracebacks of jobs."""


def set_up(level: str) -> None:
    """Send everything from this level on to stderr. What RQ says of every job is kept for DEBUG."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logger.setLevel(level)
    for name in ("rq", "rq.worker", "rq.job"):  # RQ sets the level of its own unless it is set
        logging.getLogger(name).setLevel("WARNING" if level == "INFO" else level)
        if level != "DEBUG":
            logging.getLogger(name).addFilter(_is_no_redis_trouble)


def _is_no_redis_trouble(record: logging.LogRecord) -> bool:
    """Return whether a record of RQ's is not about a Redis that is away: the pool says that, once for all."""
    from redis.exceptions import ConnectionError as RedisConnectionError, TimeoutError as RedisTimeout

    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, RedisConnectionError | RedisTimeout):
        return False
    text = record.getMessage()
    return not any(words in text for words in _ABOUT_REDIS)

"""Log format: constant messages followed by their fields, one line each."""

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
    """Adds the fields of `extra` to the line as JSON, and removes control characters."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s[%(process)d]: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        """Format one line: time, level, logger, message, fields."""
        fields = {name: value for name, value in vars(record).items() if name not in _PLAIN}
        line = clean(super().formatMessage(record))
        return f"{line} {json.dumps(fields, default=str)}" if fields else line

    def formatException(self, ei: Any) -> str:  # noqa: N802, ANN401 - the base class's
        """Format a traceback without control characters."""
        return "\n".join(f"    {clean(line)}" for line in super().formatException(ei).splitlines())


_ABOUT_REDIS = (
    "could not connect to Redis",
    "Redis connection timeout",
    "pubsub thread exiting",
    "redis.exceptions.ConnectionError",
    "redis.exceptions.TimeoutError",
)
"""Texts in RQ's messages and tracebacks about a Redis that is away."""


def set_up(level: str) -> None:
    """Log to stderr from this level on. RQ's messages about every job are shown with DEBUG only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logger.setLevel(level)
    for name in ("rq", "rq.worker", "rq.job"):  # RQ sets a level itself unless there is one
        logging.getLogger(name).setLevel("WARNING" if level == "INFO" else level)
        if level != "DEBUG":
            logging.getLogger(name).addFilter(_is_not_about_redis)


def _is_not_about_redis(record: logging.LogRecord) -> bool:
    """Filter out RQ's records about a Redis that is away: the pool logs that once for all its processes."""
    from redis.exceptions import ConnectionError as RedisConnectionError, TimeoutError as RedisTimeout

    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, RedisConnectionError | RedisTimeout):
        return False
    text = record.getMessage()
    return not any(words in text for words in _ABOUT_REDIS)

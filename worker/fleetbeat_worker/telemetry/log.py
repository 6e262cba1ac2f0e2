"""Logging: constant messages with fields beside them, one line each."""

from __future__ import annotations

import json
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
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


SAY_EVERY_SECONDS = 60.0


class Relay(logging.NullHandler, ABC):
    """The way by which a pool's processes tell their parent of trouble, which then speaks for all of them.

    It has its place among the logger's handlers, as all that belongs to a process's logging; it handles no record.
    """

    @abstractmethod
    def tell(self, kind: str, role: str, message: str, *, is_over: bool) -> None:
        """Tell of trouble, or of success."""


def relay_through(relay: Relay) -> None:
    """Let this process, and those that it forks, tell of trouble in this way."""
    logger.addHandler(relay)


class Complaint:
    """Says the same trouble once, then once a minute, and once that it is over.

    In a process of a pool it tells the parent instead, each time, and of the first success too.
    """

    def __init__(
        self,
        kind: str,
        role: str,
        say_every_seconds: float = SAY_EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Complain of one kind of trouble, in a role: for a dead one, only others in its role say that it is over."""
        self._kind = kind
        self._role = role
        self._every = say_every_seconds
        self._clock = clock
        self._relay = next((handler for handler in logger.handlers if isinstance(handler, Relay)), None)
        self._told_of_success = False
        self._next: float | None = None

    def trouble(self, message: str) -> None:
        """Say what is wrong, unless it was just said."""
        if self._relay is not None:
            self._told_of_success = False
            self._relay.tell(self._kind, self._role, message, is_over=False)
            return
        now = self._clock()
        if self._next is None or now >= self._next:
            self._next = now + self._every
            logger.warning(message)

    def over(self, message: str) -> None:
        """Say that it is well again, if trouble was told."""
        if self._relay is not None:
            if not self._told_of_success:
                self._told_of_success = True
                self._relay.tell(self._kind, self._role, message, is_over=True)
        elif self._next is not None:
            self._next = None
            logger.info(message)

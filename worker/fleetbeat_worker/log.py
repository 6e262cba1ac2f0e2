"""Logging: constant messages with fields beside them, one line each."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from fleetbeat_shared.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable

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


def set_up(level: str) -> None:
    """Send everything from this level on to stderr. What RQ says of every job is kept for DEBUG."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logger.setLevel(level)
    for name in ("rq", "rq.worker", "rq.job"):  # RQ sets the level of its own unless it is set
        logging.getLogger(name).setLevel("WARNING" if level == "INFO" else level)


class Complaint:
    """Says the same trouble once, then once a minute, and once that it is over."""

    def __init__(self, say_every_seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = say_every_seconds
        self._clock = clock
        self._next: float | None = None

    def trouble(self, message: str) -> None:
        """Say what is wrong, unless it was just said."""
        now = self._clock()
        if self._next is None or now >= self._next:
            self._next = now + self._every
            logger.warning(message)

    def over(self, message: str) -> None:
        """Say that it is well again, if trouble was told."""
        if self._next is not None:
            self._next = None
            logger.info(message)

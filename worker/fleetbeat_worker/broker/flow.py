"""The flow: how many messages a second come into the inbox, and how many leave it for SQL.

Redis counts what was ever added to the stream, and the workers count what they take out, all together and each for
itself (see `account`). A rate is the difference of two looks, divided by the time between them. One look costs Redis as
much as any small command, so that nothing is counted twice for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from fleetbeat_shared.redis_keys import ACCOUNT, INBOX, STORED

SHORTEST_SECONDS = 0.5
"""Looks that are closer together give no rate."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at one moment."""

    at_seconds: float
    """Redis's time, since 1970."""
    life: str | None
    """The account's; samples of two lives have nothing to do with each other."""
    added: int
    taken: int
    workers: dict[str, int]
    """What each worker took out, by its name."""

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {
            "at_seconds": self.at_seconds,
            "life": self.life,
            "added": self.added,
            "taken": self.taken,
            "workers": self.workers,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Sample:
        """Read what `to_json` wrote. Raises KeyError, TypeError, ValueError when it is something else."""
        workers = {str(name): int(count) for name, count in dict(value["workers"]).items()}
        life = value["life"]
        return Sample(
            float(value["at_seconds"]),
            None if life is None else str(life),
            int(value["added"]),
            int(value["taken"]),
            workers,
        )


@dataclass(frozen=True, slots=True)
class Flow:
    """Messages a second, over some seconds; None where that isn't known."""

    arrival_rate: float | None = None
    drain_rate: float | None = None
    worker_rates: Mapping[str, float] | None = None

    def seconds_to_empty(self, backlog: int) -> float | None:
        """Return how long the inbox takes to be empty if all goes on as it does; None if it never will be."""
        if not backlog:
            return 0.0
        if self.arrival_rate is None or self.drain_rate is None or self.drain_rate <= self.arrival_rate:
            return None
        return backlog / (self.drain_rate - self.arrival_rate)


def read_sample(client: Redis) -> Sample:
    """Return the counters as they are now. Raises redis-py's errors."""
    with client.pipeline(transaction=True) as pipe:
        pipe.time()
        pipe.hmget(ACCOUNT, "life", "taken")
        pipe.hgetall(STORED)
        pipe.xinfo_stream(INBOX)
        (whole, micro), (life, taken), workers, stream = pipe.execute(raise_on_error=False)
    if isinstance(stream, ResponseError):  # no such key: nothing ever came
        stream = {}
    return Sample(
        at_seconds=whole + micro / 1_000_000,
        life=None if life is None else _text(life),
        added=int(stream.get("entries-added", 0)),
        taken=int(taken or 0),
        workers={_text(name): int(count) for name, count in workers.items()},
    )


def flow(before: Sample, after: Sample) -> Flow:
    """Return the rates between two looks.

    None of what can't be told: too little time, or a stream or an account that was made anew in between.
    """
    seconds = after.at_seconds - before.at_seconds
    if seconds < SHORTEST_SECONDS or before.life != after.life:
        return Flow()
    return Flow(
        _rate(after.added - before.added, seconds),
        _rate(after.taken - before.taken, seconds),
        {
            name: rate
            for name, count in after.workers.items()
            if (rate := _rate(count - before.workers.get(name, 0), seconds)) is not None
        },
    )


def _rate(difference: int, seconds: float) -> float | None:
    return None if difference < 0 else difference / seconds


def _text(value: bytes | str) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value

"""The messages of a process that wait to be sent: bounded, counted, and never in an agent's way."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fleetbeat_shared.messages import Message

CAPACITY = 10_000
"""How many messages wait at most."""


@dataclass(slots=True)  # not frozen: that would be the dearest part of a call
class Waiting:
    """A message, and since when it waits."""

    message: Message
    number: int
    """Its place in the order of the calls."""
    since: float
    """Monotonic clock, seconds."""


class Buffer:
    """Messages in the order of the calls. Every message is, at any moment, queued, sent or dropped.

    When it is full the oldest heartbeat is dropped, and only if there is none the oldest registration or
    deregistration: an agent that nobody knows of is worse than a missed beat.

    The lock is held for moments only, never over input or output; it can be taken again by the thread that has it,
    as a signal handler may come at any line of ours.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._lock = threading.RLock()
        self._given_way = threading.Condition(self._lock)
        self._heartbeats: deque[Waiting] = deque()
        self._others: deque[Waiting] = deque()
        self._in_flight = 0
        self._in_flight_from: int | None = None
        self._next_number = 0
        self._sent = 0
        self._dropped = 0

    def put(self, message: Message, now: float) -> None:
        """Add a message (`now`: monotonic clock); drop the oldest if there is no room."""
        with self._lock:
            self._queue_of(message).append(Waiting(message, self._next_number, now))
            self._next_number += 1
            if len(self._heartbeats) + len(self._others) + self._in_flight > self._capacity:
                self._make_room()

    def take(self, count: int) -> list[Waiting]:
        """Take the oldest messages, to send them; say with `settle` what became of them before more are taken."""
        taken: list[Waiting] = []
        with self._lock:
            while len(taken) < count and (queue := self._oldest_queue()) is not None:
                taken.append(queue.popleft())
            self._in_flight += len(taken)
            if taken:
                self._in_flight_from = taken[0].number
        return taken

    def settle(self, sent: int, unsent: Iterable[Waiting] = (), *, dropped: int = 0) -> None:
        """Count messages that were sent, or can't be, and put those back, in front, that were not."""
        back = list(unsent)
        with self._lock:
            self._in_flight -= sent + dropped + len(back)
            self._in_flight_from = None
            self._sent += sent
            self._dropped += dropped
            for waiting in reversed(back):
                self._queue_of(waiting.message).appendleft(waiting)
            self._make_room()

    def counts(self) -> tuple[int, int, int]:
        """Return how many messages are queued (those being sent among them), sent, and dropped; all were calls."""
        with self._lock:
            return self._length() + self._in_flight, self._sent, self._dropped

    def next_number(self) -> int:
        """Return the number that the next message will have."""
        with self._lock:
            return self._next_number

    def holds_before(self, number: int) -> bool:
        """Return whether a message with a lower number is still queued."""
        with self._lock:
            heads = [queue[0].number for queue in (self._heartbeats, self._others) if queue]
            if self._in_flight_from is not None:
                heads.append(self._in_flight_from)
            return any(head < number for head in heads)

    def give_way(self, seconds: float) -> None:
        """Wait, and let other threads have the lock even if this one holds it: a signal may have come in mid-call."""
        with self._given_way:
            self._given_way.wait(seconds)

    def _length(self) -> int:
        return len(self._heartbeats) + len(self._others)

    def _queue_of(self, message: Message) -> deque[Waiting]:
        return self._heartbeats if message.kind == "heartbeat" else self._others

    def _oldest_queue(self) -> deque[Waiting] | None:
        if not self._heartbeats or not self._others:
            return self._heartbeats or self._others or None
        return min(self._heartbeats, self._others, key=lambda queue: queue[0].number)

    def _make_room(self) -> None:
        while self._length() + self._in_flight > self._capacity and (queue := self._heartbeats or self._others):
            with suppress(IndexError):  # a signal handler gave way just now, and all was sent
                queue.popleft()
                self._dropped += 1

"""Buffer of a process's messages that wait to be sent: bounded, counted, and never blocking the agent."""

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


@dataclass(slots=True)  # not frozen: that would be the most expensive part of a call
class QueuedMessage:
    """A message in the buffer."""

    message: Message
    number: int
    """Its place in the order of the calls."""
    queued_at: float
    """Monotonic clock, seconds."""


class Buffer:
    """Messages in the order of the calls. At any time each message is either queued, sent or dropped.

    When it is full the oldest heartbeat is dropped, and only if there is none the oldest registration or
    deregistration: an unknown agent is worse than a missed heartbeat.

    The lock is held only briefly, never during input or output. It is reentrant, as a signal handler may interrupt any
    line here.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._lock = threading.RLock()
        self._unlocked = threading.Condition(self._lock)
        self._heartbeats: deque[QueuedMessage] = deque()
        self._others: deque[QueuedMessage] = deque()
        self._in_flight = 0
        self._in_flight_from: int | None = None
        self._next_number = 0
        self._sent = 0
        self._dropped = 0

    def put(self, message: Message, now: float) -> None:
        """Add a message (`now`: monotonic clock); drop the oldest if there is no room."""
        with self._lock:
            self._queue_of(message).append(QueuedMessage(message, self._next_number, now))
            self._next_number += 1
            if len(self._heartbeats) + len(self._others) + self._in_flight > self._capacity:
                self._make_room()

    def take(self, count: int) -> list[QueuedMessage]:
        """Take the oldest messages in order to send them. Call `settle` with the outcome before taking more."""
        taken: list[QueuedMessage] = []
        with self._lock:
            while len(taken) < count and (queue := self._oldest_queue()) is not None:
                taken.append(queue.popleft())
            self._in_flight += len(taken)
            if taken:
                self._in_flight_from = taken[0].number
        return taken

    def settle(self, sent: int, unsent: Iterable[QueuedMessage] = (), *, dropped: int = 0) -> None:
        """Count the taken messages that were sent or dropped, and put the unsent ones back in front."""
        back = list(unsent)
        with self._lock:
            self._in_flight -= sent + dropped + len(back)
            self._in_flight_from = None
            self._sent += sent
            self._dropped += dropped
            for queued in reversed(back):
                self._queue_of(queued.message).appendleft(queued)
            self._make_room()

    def counts(self) -> tuple[int, int, int]:
        """Count the queued messages (with those in flight), the sent and the dropped; their sum is all calls."""
        with self._lock:
            return self._length() + self._in_flight, self._sent, self._dropped

    def next_number(self) -> int:
        """Return the number that the next message will have."""
        with self._lock:
            return self._next_number

    def holds_before(self, number: int) -> bool:
        """Tell whether a message with a lower number is still queued."""
        with self._lock:
            heads = [queue[0].number for queue in (self._heartbeats, self._others) if queue]
            if self._in_flight_from is not None:
                heads.append(self._in_flight_from)
            return any(head < number for head in heads)

    def wait_unlocked(self, seconds: float) -> None:
        """Wait, with the lock free for other threads even if a signal handler interrupted its holder in this thread."""
        with self._unlocked:
            self._unlocked.wait(seconds)

    def _length(self) -> int:
        return len(self._heartbeats) + len(self._others)

    def _queue_of(self, message: Message) -> deque[QueuedMessage]:
        return self._heartbeats if message.kind == "heartbeat" else self._others

    def _oldest_queue(self) -> deque[QueuedMessage] | None:
        if not self._heartbeats or not self._others:
            return self._heartbeats or self._others or None
        return min(self._heartbeats, self._others, key=lambda queue: queue[0].number)

    def _make_room(self) -> None:
        while self._length() + self._in_flight > self._capacity and (queue := self._heartbeats or self._others):
            with suppress(IndexError):  # a signal handler waited unlocked just now, and all was sent meanwhile
                queue.popleft()
                self._dropped += 1

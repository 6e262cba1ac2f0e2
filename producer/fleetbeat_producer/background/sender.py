"""Background sender: the one thread of a process that sends messages; callers only put them into its buffer.

No caller sees an exception from here, and none waits for the network. A sender belongs to the process that made it: a
forked child makes its own, with an empty buffer, and never touches its parent's.
"""

from __future__ import annotations

import logging
import math
import queue
import random
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from fleetbeat_producer.background.auto_heartbeats import AutoHeartbeats
from fleetbeat_producer.background.buffer import Buffer
from fleetbeat_producer.background.interpreter_exit import PydanticSection, is_closed
from fleetbeat_producer.transport import add_batch
from fleetbeat_shared.connection import connect, place, reason
from fleetbeat_shared.redis_keys import stream_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from fleetbeat_producer.background.buffer import QueuedMessage
    from fleetbeat_shared.messages import Message
    from fleetbeat_shared.settings import Settings

logger = logging.getLogger("fleetbeat")

BATCH_SIZE = 500
"""How many messages go to Redis in one pipeline."""
GATHER_SECONDS = 0.01
"""How long the thread waits for more messages after the first, so that many calls cause one wake-up."""
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 30.0
"""Back-off while Redis is away; never longer than half the shortest interval that the process promised."""
EXIT_SECONDS = 2.0
"""How long the exit of the process may be delayed to send messages."""
WARN_EVERY_SECONDS = 60.0
BUFFERED_SECONDS = 1.0
"""A heartbeat that waited at least this long says for how long (`buffered_seconds`), so that it counts for the time of
its call."""


@dataclass(frozen=True, slots=True)
class Stats:
    """This process's messages by outcome. `queued + sent + dropped` is exactly the number of calls."""

    queued: int
    """Waiting, or being sent."""
    sent: int
    """Acknowledged by Redis."""
    dropped: int
    """Dropped as the buffer was full or the message couldn't be encoded."""
    last_error: str | None
    """Why the last attempt failed, in a few words; None if it succeeded."""


class Sender:
    """The buffer, the thread and the connection of one process."""

    def __init__(self, settings: Settings) -> None:
        """Send to the Redis of the settings; the thread starts and connects at the first message."""
        self.settings = settings
        self.auto_heartbeats = AutoHeartbeats()
        """The sessions for which the thread sends heartbeats."""
        self._buffer = Buffer()
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put() may be called in a signal handler
        self._wakeup_pending = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._next_start_at = 0.0
        self._client: Redis | None = None
        self._pause_seconds = 0.0
        self._longest_pause_seconds = LONGEST_PAUSE_SECONDS
        self._last_error: str | None = None
        self._flush_until = 0.0
        self._exit_by = math.inf
        self._next_warning_at = 0.0
        self._warned_of_encoding = False

    def put(self, message: Message) -> None:
        """Queue a message to be sent soon. Never raises, never waits."""
        if message.kind == "register" and message.interval_seconds is not None:
            self._longest_pause_seconds = min(self._longest_pause_seconds, message.interval_seconds / 2)
        self._buffer.put(message, time.monotonic())
        self.wake()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until all that is queued now has been sent; return False if the time was too short."""
        ends_at = time.monotonic() + timeout_seconds
        self._flush_until = ends_at
        # By polling, not by a condition: this may run in a signal handler, or while the interpreter exits.
        end = self._buffer.next_number()
        if self._buffer.holds_before(end):
            self.wake(at_once=True)
        while self._buffer.holds_before(end):
            if time.monotonic() >= ends_at or not self._is_running():
                return False
            self._buffer.wait_unlocked(0.002)
        return True

    def flush_at_exit(self) -> None:
        """Flush for two seconds at most, even if the exit calls this twice."""
        self._exit_by = min(self._exit_by, time.monotonic() + EXIT_SECONDS)
        self.flush(self._exit_by - time.monotonic())

    def stats(self) -> Stats:
        """Count the messages by outcome."""
        return Stats(*self._buffer.counts(), self._last_error)

    def wake(self, *, at_once: bool = False) -> None:
        """Wake the thread to look for work; start it if necessary."""
        if self._thread is None:
            self._start()
        if at_once or not self._wakeup_pending:
            self._wakeup_pending = True
            self._wakeups.put(None)

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self) -> None:
        if sys.is_finalizing():
            return  # no thread runs any more, and before Python 3.12 the exit would wait for one that is started now
        if time.monotonic() < self._next_start_at or not self._starting.acquire(blocking=False):
            return  # starting failed just now, or another caller is starting it
        try:
            if not self._is_running():
                self._next_start_at = time.monotonic() + FIRST_PAUSE_SECONDS
                thread = threading.Thread(target=self._run, name="fleetbeat", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError as error:  # the process may start no more threads, or the interpreter exits
            self._back_off(f"no thread can be started: {error}")
        finally:
            self._starting.release()

    def _run(self) -> None:
        try:
            while True:
                try:
                    self._wait()
                    self._queue_auto_heartbeats()
                    self._send()
                except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on and the agent isn't disturbed
                    self._back_off(f"{type(error).__name__}: {error}")
        finally:
            self._thread = None  # a log handler of the agent's may have ended it: the next call starts another

    def _wait(self) -> None:
        """Wait for a message, for an automatic heartbeat that is due, or for the end of the back-off."""
        while is_closed():
            self._wakeups.get()
        seconds = self.auto_heartbeats.seconds_until_due(time.monotonic())
        if self._pause_seconds:
            seconds = self._pause_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - so that agents don't return together
        elif self._buffer.counts()[0]:
            seconds = 0.0
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            with suppress(queue.Empty):
                self._wakeups.get(timeout=left)
                if not self._pause_seconds or time.monotonic() < self._flush_until:
                    break
        if time.monotonic() >= self._flush_until and not self._pause_seconds:
            time.sleep(GATHER_SECONDS)
        self._wakeup_pending = False

    def _queue_auto_heartbeats(self) -> None:
        now = time.monotonic()
        for message in self.auto_heartbeats.take_due(now):
            self._buffer.put(message, now)

    def _send(self) -> None:
        while taken := self._buffer.take(BATCH_SIZE):
            unsent, dropped = taken, 0
            try:
                with PydanticSection() as may_enter:
                    if not may_enter:
                        return
                    encoded = list(self._encode(taken))
                unsent, dropped = [queued for queued, _ in encoded], len(taken) - len(encoded)
                unsent, why = self._send_batch(encoded)
            except Exception as error:  # noqa: BLE001 - Redis, network or settings: no difference to the agent
                why = reason(error)
            finally:
                self._buffer.settle(len(taken) - len(unsent) - dropped, unsent, dropped=dropped)
            if unsent:
                self._back_off(why)
                return
            self._pause_seconds, self._last_error = 0.0, None

    def _encode(self, taken: list[QueuedMessage]) -> Iterator[tuple[QueuedMessage, bytes]]:
        """Encode messages, and skip those that can't be encoded: they must not hold up the others."""
        now = time.monotonic()
        for queued in taken:
            try:
                yield queued, _encode_message(queued, now)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it will be wrong at the next attempt too
                if not self._warned_of_encoding:
                    self._warned_of_encoding = True
                    self._warn("A message was dropped, as it can't be encoded (%s).", type(error).__name__)

    def _send_batch(self, encoded: list[tuple[QueuedMessage, bytes]]) -> tuple[list[QueuedMessage], str]:
        """Send messages, those in a row for one stream in a pipeline; return what is left to be sent, and why.

        After a refused message nothing is sent to the other stream: no heartbeat overtakes its registration.
        """
        if self._client is None:
            self._client = connect(self.settings.redis_url, timeout_seconds=self.settings.redis_timeout_seconds)
        sent = 0
        for stream, in_a_row in groupby(encoded, key=lambda each: stream_of(each[0].message.kind)):
            some = list(in_a_row)
            sent += len(some)
            errors = add_batch(self._client, stream, [wire for _, wire in some])
            refused = [(queued, error) for (queued, _), error in zip(some, errors, strict=True) if error is not None]
            if refused:
                unsent = [queued for queued, _ in [*refused, *encoded[sent:]]]
                return unsent, reason(refused[0][1])
        return [], ""

    def _back_off(self, why: str) -> None:
        """Double the pause before the next attempt, and warn once a minute."""
        self._pause_seconds = min(max(self._pause_seconds * 2, FIRST_PAUSE_SECONDS), self._longest_pause_seconds)
        self._last_error = why
        now = time.monotonic()
        if now >= self._next_warning_at:
            self._next_warning_at = now + WARN_EVERY_SECONDS
            queued, sent, dropped = self._buffer.counts()
            self._warn(
                "Heartbeats can't be sent to %s (%s): %d queued, %d sent, %d dropped. Sending is retried.",
                place(self.settings.redis_url),
                why,
                queued,
                sent,
                dropped,
                extra={"queued": queued, "sent": sent, "dropped": dropped},
            )

    def _warn(self, text: str, *values: object, extra: dict[str, int] | None = None) -> None:
        with suppress(Exception):  # a log handler of the agent's may raise
            logger.warning(text, *values, extra=extra)


def _encode_message(queued: QueuedMessage, now: float) -> bytes:
    message = queued.message
    waited = now - queued.queued_at
    if message.kind == "heartbeat" and waited >= BUFFERED_SECONDS:
        message = message.model_copy(update={"buffered_seconds": round(waited, 3)})
    return message.to_wire()

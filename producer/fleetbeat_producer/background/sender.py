"""The one thread of a process that sends: callers only put messages into its buffer.

Nothing here reaches a caller as an exception, and no caller waits for the network. A sender belongs to the process that
made it: a forked child makes its own, with an empty buffer, and never touches its parent's.
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
from typing import TYPE_CHECKING

from fleetbeat_producer.background.auto_heartbeats import Beats
from fleetbeat_producer.background.buffer import Buffer
from fleetbeat_producer.background.interpreter_exit import InsidePydantic, is_over
from fleetbeat_shared import redis_keys
from fleetbeat_shared.connection import connect, place, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from fleetbeat_producer.background.buffer import Waiting
    from fleetbeat_shared.messages import Message
    from fleetbeat_shared.settings import Settings

logger = logging.getLogger("fleetbeat")

BATCH = 500
"""How many messages go to Redis in one pipeline."""
GATHER_SECONDS = 0.01
"""How long the thread lets messages gather after the first: one wake-up for many calls."""
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 30.0
"""Between two tries while Redis is away; never longer than half the shortest interval that the process promised."""
EXIT_SECONDS = 2.0
"""How long the end of the process may wait for messages to be sent."""
WARN_EVERY_SECONDS = 60.0
WAITED_SECONDS = 1.0
"""From how long a wait on it is told with the heartbeat, so that it counts for the moment at which it was meant."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of this process's messages. `queued + sent + dropped` is the number of calls, exactly."""

    queued: int
    """They wait, or are on their way."""
    sent: int
    """Redis has acknowledged them."""
    dropped: int
    """The buffer was full, or a message couldn't be written as it travels."""
    last_error: str | None
    """Why sending last failed, in a few words."""


class Sender:
    """The buffer, the thread and the connection of one process."""

    def __init__(self, settings: Settings) -> None:
        """Send to the Redis of the settings; the thread starts and connects when there is something to send."""
        self.settings = settings
        self._buffer = Buffer()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put() may be called in a signal handler
        self._woken = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._start_again_at = 0.0
        self.beats = Beats()
        """The sessions for which the thread beats."""
        self._client: Redis | None = None
        self._pause = 0.0
        self._longest_pause = LONGEST_PAUSE_SECONDS
        self._last_error: str | None = None
        self._hurry_until = 0.0
        self._exit_by = math.inf
        self._warn_at = 0.0
        self._told_of_unwritable = False

    def put(self, message: Message) -> None:
        """Take a message to be sent soon. Never raises, never waits."""
        if message.kind == "register" and message.interval_seconds is not None:
            self._longest_pause = min(self._longest_pause, message.interval_seconds / 2)
        self._buffer.put(message, time.monotonic())
        self.awaken()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until all that is queued now has been sent, for a time; return whether it has been."""
        ends_at = time.monotonic() + timeout_seconds
        self._hurry_until = ends_at
        # By looking, not by waiting for a condition: this may run in a signal handler, or while the interpreter ends.
        end = self._buffer.next_number()
        if self._buffer.holds_before(end):
            self.awaken(at_once=True)
        while self._buffer.holds_before(end):
            if time.monotonic() >= ends_at or not self._lives():
                return False
            self._buffer.give_way(0.002)
        return True

    def flush_at_exit(self) -> None:
        """Flush for two seconds at most, even if the end of the process calls this twice."""
        self._exit_by = min(self._exit_by, time.monotonic() + EXIT_SECONDS)
        self.flush(self._exit_by - time.monotonic())

    def stats(self) -> Stats:
        """Return the counts of this moment."""
        return Stats(*self._buffer.counts(), self._last_error)

    def _lives(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def awaken(self, *, at_once: bool = False) -> None:
        """Let the thread look what there is to do; start it if need be."""
        if self._thread is None:
            self._start()
        if at_once or not self._woken:
            self._woken = True
            self._wake.put(None)

    def _start(self) -> None:
        if sys.is_finalizing():
            return  # no thread runs any more, and before Python 3.12 one that is started now is waited for in vain
        if time.monotonic() < self._start_again_at or not self._starting.acquire(blocking=False):
            return  # it couldn't be started a moment ago, or another caller is at it
        try:
            if not self._lives():
                self._start_again_at = time.monotonic() + FIRST_PAUSE_SECONDS
                thread = threading.Thread(target=self._run, name="fleetbeat", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError as error:  # no thread to be had, or the interpreter ends
            self._fail(f"no thread can be started: {error}")
        finally:
            self._starting.release()

    def _run(self) -> None:
        try:
            while True:
                try:
                    self._wait()
                    self._put_due_beats()
                    self._send()
                except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on, and no agent hears it
                    self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._thread = None  # a log handler of the agent's may have ended it: the next call starts another

    def _wait(self) -> None:
        """Wait for a message, for a beat that is due, or for the end of a pause."""
        while is_over():
            self._wake.get()
        seconds = self.beats.seconds_until_due(time.monotonic())
        if self._pause:
            seconds = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - so that not all agents return at once
        elif self._buffer.counts()[0]:
            seconds = 0.0
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            with suppress(queue.Empty):
                self._wake.get(timeout=left)
                if not self._pause or time.monotonic() < self._hurry_until:
                    break
        if time.monotonic() >= self._hurry_until and not self._pause:
            time.sleep(GATHER_SECONDS)
        self._woken = False

    def _put_due_beats(self) -> None:
        now = time.monotonic()
        for message in self.beats.take_due(now):
            self._buffer.put(message, now)

    def _send(self) -> None:
        while taken := self._buffer.take(BATCH):
            unsent, unwritable = taken, 0
            try:
                with InsidePydantic() as may_enter:
                    if not may_enter:
                        return
                    written = list(self._write(taken))
                unsent, unwritable = [waiting for waiting, _ in written], len(taken) - len(written)
                unsent, why = self._send_batch(written)
            except Exception as error:  # noqa: BLE001 - Redis, the network, the settings: all the same to the agent
                why = reason(error)
            finally:
                self._buffer.settle(len(taken) - len(unsent) - unwritable, unsent, dropped=unwritable)
            if unsent:
                self._fail(why)
                return
            self._pause, self._last_error = 0.0, None

    def _write(self, taken: list[Waiting]) -> Iterator[tuple[Waiting, bytes]]:
        """Write messages as they travel, but for those that can't be: one shall not hold up all others."""
        now = time.monotonic()
        for waiting in taken:
            try:
                yield waiting, _wire(waiting, now)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it will be so at the next try
                if not self._told_of_unwritable:
                    self._told_of_unwritable = True
                    self._log("A message was dropped, as it can't be written (%s).", type(error).__name__)

    def _send_batch(self, written: list[tuple[Waiting, bytes]]) -> tuple[list[Waiting], str]:
        """Send messages in one pipeline; return those that Redis refused, and why."""
        if self._client is None:
            self._client = connect(self.settings.redis_url, timeout_seconds=self.settings.redis_timeout_seconds)
        with self._client.pipeline(transaction=False) as pipe:
            for _, wire in written:
                pipe.xadd(redis_keys.INBOX, {redis_keys.FIELD: wire})
            answers = pipe.execute(raise_on_error=False)
        refused = [
            (waiting, answer) for (waiting, _), answer in zip(written, answers, strict=True) if _is_error(answer)
        ]
        return [waiting for waiting, _ in refused], reason(refused[0][1]) if refused else ""

    def _fail(self, why: str) -> None:
        self._pause = min(max(self._pause * 2, FIRST_PAUSE_SECONDS), self._longest_pause)
        self._last_error = why
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + WARN_EVERY_SECONDS
            queued, sent, dropped = self._buffer.counts()
            self._log(
                "Heartbeats can't be sent to %s (%s): %d wait, %d were sent, %d were dropped. It is tried again.",
                place(self.settings.redis_url),
                why,
                queued,
                sent,
                dropped,
                extra={"queued": queued, "sent": sent, "dropped": dropped},
            )

    def _log(self, text: str, *values: object, extra: dict[str, int] | None = None) -> None:
        with suppress(Exception):  # a log handler of the agent's may raise
            logger.warning(text, *values, extra=extra)


def _wire(waiting: Waiting, now: float) -> bytes:
    message = waiting.message
    waited = now - waiting.since
    if message.kind == "heartbeat" and waited >= WAITED_SECONDS:
        message = message.model_copy(update={"buffered_seconds": round(waited, 3)})
    return message.to_wire()


def _is_error(answer: object) -> bool:
    return isinstance(answer, Exception)

"""Delivery: sends messages to several targets in parallel, so that one that hangs delays no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from fleetbeat_worker.notifications.apprise_sender import Sender
from fleetbeat_worker.notifications.messages import Message
from fleetbeat_worker.notifications.targets import Target

FAILURES_IN_A_ROW = 3
"""After so many, a target gets nothing more from this job; fewer may be due to single messages that it refuses."""
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Delivery:
    """The messages for one target, in order."""

    sender: Sender
    messages: Sequence[tuple[int, Message]]
    """Messages, each with the id of its notification."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one message to one target."""

    notice_id: int
    target: Target
    failure: str | None = None
    tried: bool = True
    """False if the delivery was stopped before."""


def deliver(deliveries: Sequence[Delivery], stop: Callable[[], bool]) -> Iterator[Outcome]:
    """Send all messages, to each target in a thread of its own; yield each outcome as soon as it is known.

    `stop` is polled; once it is true, only messages that are being sent are waited for.
    """
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    stopping = threading.Event()
    for delivery in deliveries:
        threading.Thread(target=_send_all, args=(delivery, outcomes, stopping), daemon=True).start()
    left = sum(len(delivery.messages) for delivery in deliveries)
    try:
        while left:
            if stop():
                stopping.set()
            try:
                outcome = outcomes.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            left -= 1
            yield outcome
    finally:
        stopping.set()


def _send_all(delivery: Delivery, outcomes: SimpleQueue[Outcome], stopping: threading.Event) -> None:
    sender, failures, last = delivery.sender, 0, ""
    for place, (notice_id, message) in enumerate(delivery.messages):
        if place and failures < FAILURES_IN_A_ROW:
            stopping.wait(sender.pause_seconds)
        if stopping.is_set():
            outcomes.put(Outcome(notice_id, sender.target, tried=False))
            continue
        if failures >= FAILURES_IN_A_ROW:
            failure: str | None = f"Not sent after {failures} failures in a row. The last one: {last}"
        elif (failure := sender.send(message)) is None:
            failures = 0
        else:
            failures, last = failures + 1, failure
        outcomes.put(Outcome(notice_id, sender.target, failure))

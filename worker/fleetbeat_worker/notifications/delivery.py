"""Bringing messages to several targets at once, so that one that hangs keeps no other waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from fleetbeat_worker.notifications.apprise_sender import Sender
from fleetbeat_worker.notifications.messages import Message
from fleetbeat_worker.notifications.targets import Target

GIVE_UP_AFTER = 3
"""After so many failures in a row, a target is left alone for this time; one message that it refuses is no reason."""
LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Round:
    """What one target gets, in this order."""

    sender: Sender
    parcels: Sequence[tuple[int, Message]]
    """Messages, each with the number of its notification."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one message to one target."""

    notice_id: int
    target: Target
    failure: str | None = None
    tried: bool = True
    """False if it was asked to stop before."""


def deliver(rounds: Sequence[Round], stop: Callable[[], bool]) -> Iterator[Outcome]:
    """Send all, to each target in a thread of its own; yield what came of each message as soon as it is known.

    `stop` is asked again and again whether to end early: then what is being sent is still waited for.
    """
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    ending = threading.Event()
    for one in rounds:
        threading.Thread(target=_carry, args=(one, outcomes, ending), daemon=True).start()
    left = sum(len(one.parcels) for one in rounds)
    try:
        while left:
            if stop():
                ending.set()
            try:
                outcome = outcomes.get(timeout=LOOK_SECONDS)
            except Empty:
                continue
            left -= 1
            yield outcome
    finally:
        ending.set()


def _carry(one: Round, outcomes: SimpleQueue[Outcome], ending: threading.Event) -> None:
    failures, last = 0, ""
    for place, (notice_id, message) in enumerate(one.parcels):
        if place and failures < GIVE_UP_AFTER:
            ending.wait(one.sender.pause_seconds)
        if ending.is_set():
            outcomes.put(Outcome(notice_id, one.sender.target, tried=False))
            continue
        if failures >= GIVE_UP_AFTER:
            failure: str | None = f"Not sent, as {failures} before it failed, at last so: {last}"
        elif (failure := one.sender.send(message)) is None:
            failures = 0
        else:
            failures, last = failures + 1, failure
        outcomes.put(Outcome(notice_id, one.sender.target, failure))

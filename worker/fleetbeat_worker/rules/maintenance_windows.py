"""Maintenance: windows of time in which nobody is flagged, once or again and again.

Pure functions, as in `liveness`. A window holds from its start to its end, the end itself not included. What
it covers counts for nobody: the first one that an agent's silence meets starts its clock anew at its end, and those
after it move the deadline by their time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from fleetbeat_shared.schedules import slots_after

INSTANT = timedelta(microseconds=1)


class Window(NamedTuple):
    """A time in which nobody is flagged."""

    starts_at: datetime
    ends_at: datetime | None
    """None: when somebody ends it."""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class WindowRule:
    """What windows were asked for: one, or with a `schedule` one at each of its slots."""

    starts_at: datetime
    """Of a recurring rule: its windows begin at no earlier slot."""
    ends_at: datetime | None = None
    """When the one window ends, or from when on a recurring rule's windows begin no more; None: when somebody ends it.
    """
    schedule: str | None = None
    """A cron expression, in `time_zone`."""
    time_zone: str | None = None
    duration_seconds: float | None = None
    """How long each window of a schedule lasts, in real time: a clock that is changed in it changes nothing."""
    reason: str | None = None
    ended_at: datetime | None = None
    """When somebody ended it for good."""
    cut_at: datetime | None = None
    """When somebody last ended the window of a schedule that ran then, and only that."""


def windows(rule: WindowRule, since: datetime, until: datetime) -> Iterator[Window]:
    """Yield a rule's windows that begin by `until` and don't end before or at `since`, in their order."""
    if rule.schedule is None:
        ends_at = min((end for end in (rule.ends_at, rule.ended_at) if end is not None), default=None)
        if rule.starts_at <= until and (ends_at is None or ends_at > max(since, rule.starts_at)):
            yield Window(rule.starts_at, ends_at, rule.reason)
        return
    length = timedelta(seconds=rule.duration_seconds or 0)
    last = min(end for end in (rule.ends_at, rule.ended_at, until + INSTANT) if end is not None)
    # What began a window's length ago is over; a slot at the rule's very start counts.
    for slot in slots_after(rule.schedule, rule.time_zone or "UTC", max(since - length, rule.starts_at - INSTANT)):
        if slot >= last:
            return
        ends_at = slot + length if rule.ended_at is None else min(slot + length, rule.ended_at)
        if rule.cut_at is not None and slot <= rule.cut_at < ends_at:
            ends_at = rule.cut_at
        if ends_at > max(since, slot):
            yield Window(slot, ends_at, rule.reason)


def find_fault(rule: WindowRule) -> str | None:
    """Return why a rule can't be worked out; None if it can.

    It was checked when it was made, but a time zone may be gone from the machine that asks.
    """
    try:
        if rule.schedule is not None:
            next(slots_after(rule.schedule, rule.time_zone or "UTC", rule.starts_at))
    except ValueError as error:  # croniter's errors are ValueErrors
        return str(error)
    return None


def merged(found: Iterable[Window]) -> list[Window]:
    """Return windows in the order of time, those that overlap or follow each other without a gap as one."""
    joined: list[Window] = []
    for window in sorted(found, key=lambda window: window.starts_at):
        before = joined[-1] if joined else None
        if before is None or (before.ends_at is not None and before.ends_at < window.starts_at):
            joined.append(window)
            continue
        ends = (before.ends_at, window.ends_at)
        ends_at = None if None in ends else max(end for end in ends if end is not None)
        reasons = dict.fromkeys(reason for reason in (before.reason, window.reason) if reason)
        joined[-1] = Window(before.starts_at, ends_at, "; ".join(reasons) or None)
    return joined


def windows_of(rules: Iterable[WindowRule], since: datetime, now: datetime) -> list[Window]:
    """Return the windows of all rules that began by `now` and weren't over at `since`, merged."""
    return merged(window for rule in rules for window in windows(rule, since, now))


def running(found: Iterable[Window], now: datetime) -> Window | None:
    """Return the window that holds at `now`, of merged ones."""
    return next((w for w in found if w.starts_at <= now and (w.ends_at is None or w.ends_at > now)), None)


def last_end(found: Iterable[Window], now: datetime) -> datetime | None:
    """Return when the last of the windows that are over by `now` ended."""
    return max((w.ends_at for w in found if w.ends_at is not None and w.ends_at <= now), default=None)


def next_start(rule: WindowRule, now: datetime) -> datetime | None:
    """Return when a rule's next window begins after `now`; None if none will."""
    if rule.ended_at is not None:
        return None
    if rule.schedule is None:
        return rule.starts_at if rule.starts_at > now else None
    slot = next(slots_after(rule.schedule, rule.time_zone or "UTC", max(now, rule.starts_at - INSTANT)))
    return slot if rule.ends_at is None or slot < rule.ends_at else None

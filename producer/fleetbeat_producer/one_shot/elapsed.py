"""How long something took across processes and reboots, by clocks that may be set in between."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment on every clock that a machine has."""

    wall_seconds: float
    """Since 1970. It may be set at any time."""
    boot_seconds: float | None
    """Since the machine started, asleep or awake; None where there is no such clock (macOS)."""
    boot_id: str | None
    """Another one after each start of the machine; None where there is none."""


def this_moment() -> Moment:
    """Return the moment that is now."""
    boot_seconds = boot_id = None
    with suppress(AttributeError, OSError, ValueError):
        boot_seconds = time.clock_gettime(time.CLOCK_BOOTTIME)
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    return Moment(time.time(), boot_seconds, boot_id)


def seconds_between(then: Moment, now: Moment) -> float:
    """Return how long ago `then` was, never less than 0.

    Within one start of the machine its boot clock says so, which nobody sets. Else the wall clocks do, but it can't
    have been after the machine started.
    """
    if now.boot_id is not None and then.boot_id == now.boot_id and _both(then, now):
        return max(0.0, (now.boot_seconds or 0.0) - (then.boot_seconds or 0.0))
    by_wall = now.wall_seconds - then.wall_seconds
    uptime = now.boot_seconds if then.boot_id != now.boot_id else None
    return max(by_wall, uptime or 0.0, 0.0)


def _both(then: Moment, now: Moment) -> bool:
    return then.boot_seconds is not None and now.boot_seconds is not None

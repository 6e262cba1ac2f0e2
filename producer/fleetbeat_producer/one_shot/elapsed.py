"""Elapsed time across processes and reboots, measured by clocks that may be set in between."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ClockReading:
    """One point in time, read from each clock of the machine."""

    wall_seconds: float
    """Since 1970. This clock may be set at any time."""
    boot_seconds: float | None
    """Since the machine started, with the time it slept; None where there is no such clock (macOS)."""
    boot_id: str | None
    """Different after each start of the machine; None where there is none."""


def read_clocks() -> ClockReading:
    """Read all clocks of the machine now."""
    boot_seconds = boot_id = None
    with suppress(AttributeError, OSError, ValueError):
        boot_seconds = time.clock_gettime(time.CLOCK_BOOTTIME)
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    return ClockReading(time.time(), boot_seconds, boot_id)


def elapsed_seconds(start: ClockReading, now: ClockReading) -> float:
    """Compute the seconds from `start` to `now`, never less than 0.

    Within one boot of the machine its boot clock is used, which is never set. Otherwise the wall clock is used, but
    `start` can't lie after the machine's boot.
    """
    is_same_boot = now.boot_id is not None and start.boot_id == now.boot_id
    if is_same_boot and start.boot_seconds is not None and now.boot_seconds is not None:
        return max(0.0, now.boot_seconds - start.boot_seconds)
    by_wall = now.wall_seconds - start.wall_seconds
    uptime = now.boot_seconds if start.boot_id != now.boot_id else None
    return max(by_wall, uptime or 0.0, 0.0)

"""Timeline of the pipeline: watermarks, outages, pulse gaps and maintenance windows, worked out from a plan alone."""

from __future__ import annotations

from heapq import heappop, heappush

from simulation.model import Plan
from simulation.wall_clock import slots_around

FOREVER = 1 << 62
TURNED_BACK = 600_000
"""By how much the clock must be set back to be noticed."""
_PULSES_APART = 1250
_CLOCK_STEP = 60_000


def find_watermarks(plan: Plan) -> list[int]:
    """List the watermark that each sweep reads: the receipt of the oldest entry in the inbox, or the present.

    While ids stand still because the clock was set back, it is up to a minute earlier; or unknown, and then the start.
    """
    found: dict[int, int] = {}
    inbox: list[tuple[int, int, int]] = []
    place = 0
    for moment in sorted(sweep.read_at for sweep in plan.sweeps):
        while place < len(plan.arrivals) and plan.arrivals[place].received_at <= moment:
            arrival = plan.arrivals[place]
            removed_at = FOREVER if arrival.removed_at is None else arrival.removed_at
            heappush(inbox, (arrival.received_at, place, removed_at))
            place += 1
        while inbox and inbox[0][2] <= moment:
            heappop(inbox)
        found[moment] = moment
        if inbox:
            received_at, oldest, _ = inbox[0]
            ahead = int(plan.arrivals[oldest].entry_id.partition("-")[0]) - plan.clock.at(moment)
            found[moment] = received_at
            if ahead > 0:
                found[moment] = moment + ahead - _CLOCK_STEP if ahead <= _CLOCK_STEP else plan.start
    return [found[sweep.read_at] for sweep in plan.sweeps]


def find_outages(plan: Plan) -> list[tuple[int, int]]:
    """List the outages: no sweep for longer than 30 s and than three sweep intervals, by Redis's clock."""
    longest = max(30, 3 * plan.sweep_seconds) * 1000
    found: list[tuple[int, int]] = []
    last = shown = None
    for sweep in plan.sweeps:
        now = plan.clock.at(sweep.read_at)
        if last is not None and shown is not None and now - shown > longest:
            found.append((last, sweep.read_at))
        last = sweep.read_at if last is None else max(last, sweep.read_at)
        # A sweep that read before the previous one and decided after it was delayed by less than ten minutes.
        shown = shown if shown is not None and 0 <= shown - now < TURNED_BACK else now
    return found


def find_pulse_gaps(plan: Plan) -> list[tuple[int, int]]:
    """List the pulse gaps: from where a pulse was due to a pulse more than 1.25 s after the previous one."""
    clock = plan.clock
    gaps = (gap for gap in plan.pulse_gaps if clock.at(gap.end) - clock.at(gap.start) > _PULSES_APART)
    return [(last + 500, following) for last, following in gaps]


def find_windows(plan: Plan) -> list[tuple[int, int]]:
    """List the maintenance windows, merged where they touch."""
    found: list[tuple[int, int]] = []
    for rule in plan.maintenance:
        last = FOREVER if rule.ended_at is None else rule.ended_at
        if rule.schedule is None:
            spans = [(rule.starts_at, FOREVER if rule.ends_at is None else rule.ends_at)]
        else:
            slots = slots_around(rule.schedule, rule.time_zone or "", plan)
            length = round((rule.duration_seconds or 0) * 1000)
            spans = [(slot, slot + length) for slot in slots if slot >= rule.starts_at]
        found += [(start, min(end, last)) for start, end in spans if start < min(end, last)]
    merged: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged

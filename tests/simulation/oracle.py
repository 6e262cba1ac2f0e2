"""The oracle: what must have been said of each agent, from the truth alone.

It knows when each message reached Redis, when each left the inbox, and when somebody looked. It shares no code with
what it judges, and keeps no state from one sweep to the next. As of the watermark W of a sweep, an agent

  must be degraded      if W is past its deadline, whatever had reached Redis when the sweep decided, and
  must not be degraded  if its deadline by what had reached Redis before W lies after W.

The deadline after a sign of life is the moment at which the promised silence is over, counted in time alone in which
somebody watched and Redis could hear: its pulse, twice a second, tells that.
Nobody must be flagged in a pause or in maintenance; silence counts anew from the end of a pause, and of the first
maintenance that it meets.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import heappop, heappush
from itertools import accumulate
from typing import NamedTuple
from uuid import UUID

from fleetbeat_shared.redis_keys import INBOX, SESSIONS
from simulation.commands import Pause
from simulation.model import _DAY, MISSED, Arrival, Plan, SimulatedAgent, slots_between, slots_of

FOREVER = 1 << 62
_PULSES_APART = 1250
_CLOCK_STEP = 60_000
_TURNED_BACK = 600_000


class Change(NamedTuple):
    """What was said of an agent: that it is degraded, or that it isn't any more, after so many sweeps had decided."""

    looks: int
    holds: bool


@dataclass(slots=True)
class Said:
    """What was said of agents, by their numbers."""

    silent: dict[int, list[Change]] = field(default_factory=dict)
    """Who is degraded."""
    stuck: dict[int, list[Change]] = field(default_factory=dict)
    """Who is stuck."""


class Flag(NamedTuple):
    """A verdict that was right: when it was due, when it came, and how far behind the pipeline had been before."""

    due_at: int
    flagged_at: int
    lag: int

    @property
    def delay(self) -> int:
        """How long after the rule was met it came."""
        return self.flagged_at - self.due_at


@dataclass(slots=True)
class Judgement:
    """What the oracle found."""

    false_flags: list[str] = field(default_factory=list)
    missed_flags: list[str] = field(default_factory=list)
    late_recoveries: list[str] = field(default_factory=list)
    false_stuck: list[str] = field(default_factory=list)
    missed_stuck: list[str] = field(default_factory=list)
    late_unstuck: list[str] = field(default_factory=list)
    false_notices: list[str] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    """Those that were right."""
    stuck: list[Flag] = field(default_factory=list)
    """Those who were found stuck, and were so."""

    @property
    def faults(self) -> dict[str, list[str]]:
        """What was said wrongly or too late, by what it is."""
        return {
            "false flags": self.false_flags,
            "missed flags": self.missed_flags,
            "late recoveries": self.late_recoveries,
            "false stuck": self.false_stuck,
            "missed stuck": self.missed_stuck,
            "late unstuck": self.late_unstuck,
            "false notices": self.false_notices,
        }

    @property
    def is_good(self) -> bool:
        """Whether all that was said is true, and was said in time."""
        return not any(self.faults.values())


class Oracle:
    """The truth of one plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.decided = [look.at for look in plan.looks]
        self._looked = sorted(look.looked_at for look in plan.looks)
        self.as_of = _watermarks(plan)
        self.watermarks = list(accumulate(self.as_of, max))
        self.outages = _outages(plan)
        """When nobody watched."""
        self._gaps = _gaps(plan)
        self._unheard = sorted([*self.outages, *self._gaps])
        """And when nobody could be heard."""
        self._windows = _windows(plan)
        self.in_maintenance = [any(s <= look.looked_at < e for s, e in self._windows) for look in plan.looks]
        self._unwatched = sorted([*self._unheard, *self._windows])
        self._arrivals: dict[int, list[Arrival]] = defaultdict(list)
        for arrival in plan.arrivals:
            self._arrivals[arrival.agent].append(arrival)
        self._lives: dict[int, list[Life]] = {}
        self._pauses: dict[int, list[Pause]] = defaultdict(list)
        for pause in plan.pauses:
            self._pauses[pause.agent].append(pause)

    def judge(self, said: Said) -> Judgement:
        """Return what is true of all that was said."""
        judgement = Judgement()
        for agent in self._plan.agents:
            self._judge(agent, said.silent.get(agent.number, []), judgement)
        return judgement

    def _judge(self, agent: SimulatedAgent, changes: Sequence[Change], judgement: Judgement) -> None:
        lives = self.lives(agent)
        for change in changes:
            if change.holds:
                self._check_flag(agent, lives, change.looks, judgement)
        degraded = spans_of(changes, len(self.decided))
        for life in lives:
            self._check_life(agent, life, degraded, judgement)

    def _check_flag(self, agent: SimulatedAgent, lives: list[Life], look: int, judgement: Judgement) -> None:
        watermark, decided_at = self.as_of[look], self.decided[look]
        for life in lives:
            if not (life.begin <= decided_at and life.end >= watermark) or self.in_maintenance[look]:
                continue
            due_at = self.deadline(agent, max([life.seen_by(watermark), *life.resumed_by(decided_at)]))
            if due_at < watermark and not any(start < decided_at < end for start, end in life.pauses):
                behind = self.as_of[look - 1] if look else watermark
                lag = self._plan.looks[look - 1].looked_at - behind if look else 0
                judgement.flags.append(Flag(due_at, decided_at, lag))
                return
        judgement.false_flags.append(f"{agent.name} at {shown(decided_at)}, as of {shown(watermark)}")

    def _check_life(
        self, agent: SimulatedAgent, life: Life, degraded: list[tuple[int, int]], judgement: Judgement
    ) -> None:
        # Before the watermark has passed the registration nobody need know of it, nor once the end is there.
        first = bisect_right(self.watermarks, life.begin)
        last = bisect_left(self.decided, life.end)
        self._check_silences(agent, life, (first, last), degraded, judgement)
        if degraded:
            self._check_recoveries(agent, life, (first, last), degraded, judgement)

    def _check_silences(
        self,
        agent: SimulatedAgent,
        life: Life,
        sweeps: tuple[int, int],
        degraded: list[tuple[int, int]],
        judgement: Judgement,
    ) -> None:
        """Find what wasn't flagged: silence counts from each sign, and from the end of each pause."""
        anew = self._restarts(life)
        since = 0
        for place, (at, seen_at, known) in enumerate(anew):
            since = max(since, seen_at)
            next_at, _, next_known = anew[place + 1] if place + 1 < len(anew) else (FOREVER, FOREVER, FOREVER)
            due_at = self._due_by_clock(agent, at, since)
            if due_at is None or next_at <= due_at:
                continue  # it was there before any watermark could be past the deadline
            # A sign that waited for long may be due before it is there, and earlier than the one before it.
            begin = max(sweeps[0], known, bisect_right(self.watermarks, max(at, due_at)))
            end = min(sweeps[1], next_known)
            for pause in life.pauses:
                paused, resumed = (bisect_left(self.decided, moment) for moment in pause)
                if paused <= begin < resumed:
                    begin = end
                elif begin < paused:
                    end = min(end, paused)
            while begin < end and (self.in_maintenance[begin] or self.as_of[begin] <= due_at):
                begin += 1
            if begin < end and not any(low <= begin and end <= high for low, high in degraded):
                judgement.missed_flags.append(
                    f"{agent.name} silent since {shown(since)}, due {shown(due_at)}, "
                    f"from {shown(self.decided[begin])} on"
                )

    def _restarts(self, life: Life) -> list[tuple[int, int, int]]:
        """Return from what on silence counts anew: when it was there, of when it is, and which sweep may know it."""
        anew = [(at, seen_at, bisect_left(self.decided, at)) for at, seen_at in life.signs]
        anew += [(end, end, bisect_left(self.decided, end)) for _, end in life.pauses if end < life.end]
        return sorted(anew)

    def _check_recoveries(
        self,
        agent: SimulatedAgent,
        life: Life,
        sweeps: tuple[int, int],
        degraded: list[tuple[int, int]],
        judgement: Judgement,
    ) -> None:
        """Find who was degraded although it was heard."""
        for place, (received_at, seen_at) in enumerate(life.signs):
            next_at = life.signs[place + 1][0] if place + 1 < len(life.signs) else FOREVER
            due_at = self._reckon(
                agent, seen_at, self.outages, agent.missed_limit or MISSED
            )  # maintenance revives nobody
            begin = max(sweeps[0], bisect_right(self.watermarks, received_at))
            end = min(sweeps[1], bisect_right(self.watermarks, next_at), bisect_left(self.watermarks, due_at))
            # The end of a pause has a deadline of its own, which with a schedule may come earlier.
            resumed = (bisect_left(self.decided, resumed_at) for _, resumed_at in life.pauses if resumed_at > seen_at)
            end = min([end, *resumed])
            if self._is_unclear(received_at):
                continue
            if begin < end and any(low < end and begin < high for low, high in degraded):
                judgement.late_recoveries.append(
                    f"{agent.name} seen {shown(seen_at)}, due {shown(due_at)}, was degraded still or again"
                )

    def _due_by_clock(self, agent: SimulatedAgent, at: int, since: int) -> int | None:
        """Return when an agent must be degraded at the latest, if Redis's clock was set back meanwhile.

        It has been silent for less by that clock. But what is later than the clock shows counts as of now once it was
        set back by ten minutes, as sweeps see it. None if nobody knows when its sign came.
        """
        if self._is_unclear(at):
            return None
        due_at, extra = self.deadline(agent, since), 0
        for step in self._plan.clock.steps:
            if not since < step.at <= due_at:
                continue
            place = bisect_left(self._looked, step.at)
            if place == len(self._looked):
                return None
            shown = [self._plan.clock.at(moment) for moment in self._looked[max(0, place - 1) : place + 1]]
            if shown[0] - shown[-1] >= _TURNED_BACK and since > step.at - step.back:
                since = self._looked[place]
            else:
                extra += step.back
            # Redis tells of gaps of before once more when its clock comes to them again.
            lived_twice = (gap for gap in self._gaps if step.at - step.back < gap[1] <= step.at)
            extra += sum(end - start for start, end in lived_twice)
            due_at = self.deadline(agent, since, extra=extra)
        return due_at

    def _is_unclear(self, at: int) -> bool:
        """Return whether what came then may count from later on, as the clock was behind what it had been."""
        return any(step.at <= at < step.at + step.back for step in self._plan.clock.steps)

    def deadline(self, agent: SimulatedAgent, since: int, missed: int | None = None, extra: int = 0) -> int:
        """Return when an agent that is silent since then must be degraded: it may miss its limit, or as many as given.

        And it may be silent for some milliseconds `extra`.

        The end of the first maintenance that a silence meets starts its clock anew, but puts no deadline earlier; what
        comes after that counts as time in which nobody watched.
        """
        missed = missed or agent.missed_limit or MISSED
        due_at = self._reckon(agent, since, self._unheard, missed, extra)
        for start, end in self._windows:
            if end > since:
                return (
                    max(due_at, self._reckon(agent, end, self._unwatched, missed, extra)) if start <= due_at else due_at
                )
        return due_at

    def _reckon(
        self,
        agent: SimulatedAgent,
        since: int,
        unwatched: Sequence[tuple[int, int]],
        missed: int,
        extra: int = 0,
    ) -> int:
        """Return when the promised silence is over, counted in watched time alone."""
        grace = round(agent.grace_seconds * 1000)
        if agent.interval_seconds is not None:
            left = missed * agent.interval_seconds * 1000 + grace
        else:
            slots = slots_of(agent, self._plan)
            left = slots[bisect_right(slots, since + grace) + missed - 1] + grace - since
        left += extra
        moment = since
        for start, end in unwatched:
            if end <= moment:
                continue
            watched = max(0, start - moment)
            if watched >= left:
                break
            left -= watched
            moment = end
        return moment + left

    def lives(self, agent: SimulatedAgent) -> list[Life]:
        """Return an agent's sessions, each from the registration that opened it to its end."""
        if agent.number not in self._lives:
            self._lives[agent.number] = self._find_lives(agent)
        return self._lives[agent.number]

    def _find_lives(self, agent: SimulatedAgent) -> list[Life]:
        lives: list[Life] = []
        stored = self._first_stored(agent)
        applied = set()
        for arrival in self._arrivals[agent.number]:
            kind, key = arrival.message.kind, arrival.message.id
            is_open = bool(lives) and lives[-1].end == FOREVER
            if kind == "heartbeat":
                if is_open:
                    lives[-1].beats.append(arrival)
                    if arrival.seen_at > lives[-1].signs[-1][1]:
                        lives[-1].signs.append((arrival.received_at, arrival.seen_at))
            elif key not in applied:  # a copy changes nothing
                applied.add(key)
                if kind == "register" and not is_open:
                    lives.append(Life(arrival.received_at, stored[key], [(arrival.received_at, arrival.received_at)]))
                elif kind == "deregister" and is_open:
                    lives[-1].end = arrival.received_at
        self._pause(agent, lives)
        return lives

    def _first_stored(self, agent: SimulatedAgent) -> dict[UUID, int]:
        """Return when each message was first in SQL; it may have been sent twice."""
        stored: dict[UUID, int] = {}
        for arrival in self._arrivals[agent.number]:
            stored_at, key = arrival.stored_at or FOREVER, arrival.message.id
            stored[key] = min(stored_at, stored.get(key, FOREVER))
        return stored

    def _pause(self, agent: SimulatedAgent, lives: Sequence[Life]) -> None:
        for pause in self._pauses[agent.number]:
            ends = [end for end in (pause.until, pause.resumed_at) if end is not None]
            for life in lives:
                # Who isn't in SQL can't be paused.
                if life.begin <= pause.at < life.end and life.stored_at <= pause.at:
                    life.pauses.append((pause.at, min([*ends, life.end])))


@dataclass(slots=True)
class Life:
    """A session from the registration that opened it on."""

    begin: int
    stored_at: int
    """When SQL knew of it."""
    signs: list[tuple[int, int]]
    """When each sign of life that was newer than all before reached Redis, and of when it was."""
    beats: list[Arrival] = field(default_factory=list)
    """All heartbeats, in the order of the stream."""
    end: int = FOREVER
    pauses: list[tuple[int, int]] = field(default_factory=list)

    def resumed_by(self, moment: int) -> list[int]:
        """Return when its pauses ended that were over by then."""
        return [end for _, end in self.pauses if end <= moment]

    def seen_by(self, watermark: int) -> int:
        """Return of when the newest sign was that had reached Redis before a time; the registration is one, always."""
        place = bisect_left(self.signs, (watermark, 0))
        return self.signs[max(0, place - 1)][1]


def spans_of(changes: Sequence[Change], looks: int) -> list[tuple[int, int]]:
    """Return from which sweep to before which it held what was said of an agent."""
    spans: list[tuple[int, int]] = []
    since: int | None = None
    for change in [*changes, Change(looks, holds=False)]:
        if change.holds:
            since = change.looks if since is None else since
        elif since is not None:
            if spans and spans[-1][1] == since:
                since = spans.pop()[0]
            spans.append((since, change.looks))
            since = None
    return spans


def _watermarks(plan: Plan) -> list[int]:
    """Return as of when each sweep's verdicts are: when the oldest entry of both streams was received, if there is any.

    Where ids stand still because the clock was set back, up to a minute before; or nobody knows, and it is the start.
    """
    found: dict[int, int] = {}
    waiting: dict[str, list[tuple[int, int, int]]] = {INBOX: [], SESSIONS: []}
    place = 0
    for moment in sorted(look.looked_at for look in plan.looks):
        while place < len(plan.arrivals) and plan.arrivals[place].received_at <= moment:
            arrival = plan.arrivals[place]
            removed_at = FOREVER if arrival.removed_at is None else arrival.removed_at
            heappush(waiting[arrival.stream], (arrival.received_at, place, removed_at))
            place += 1
        found[moment] = moment
        for stream in waiting.values():
            while stream and stream[0][2] <= moment:
                heappop(stream)
            if stream:
                received_at, oldest, _ = stream[0]
                ahead = int(plan.arrivals[oldest].entry_id.partition("-")[0]) - plan.clock.at(moment)
                if ahead > 0:
                    received_at = moment + ahead - _CLOCK_STEP if ahead <= _CLOCK_STEP else plan.start
                found[moment] = min(found[moment], received_at)
    return [found[look.looked_at] for look in plan.looks]


def _outages(plan: Plan) -> list[tuple[int, int]]:
    """Return when nobody watched: longer than 30 s and than three sweeps, by Redis's clock."""
    longest = max(30, 3 * plan.sweep_seconds) * 1000
    found: list[tuple[int, int]] = []
    last = shown = None
    for look in plan.looks:
        now = plan.clock.at(look.looked_at)
        if last is not None and shown is not None and now - shown > longest:
            found.append((last, look.looked_at))
        last = look.looked_at if last is None else max(last, look.looked_at)
        # One that looked before the last one and decided after it overslept by less than ten minutes.
        shown = shown if shown is not None and 0 <= shown - now < _TURNED_BACK else now
    return found


def _gaps(plan: Plan) -> list[tuple[int, int]]:
    """Return when a pulse was due that came more than 1.25 s after the one before: nobody could be heard."""
    clock = plan.clock
    stops = (stop for stop in plan.stops if clock.at(stop.end) - clock.at(stop.start) > _PULSES_APART)
    return [(last + 500, following) for last, following in stops]


def _windows(plan: Plan) -> list[tuple[int, int]]:
    """Return when there was maintenance, in spans that don't touch."""
    found: list[tuple[int, int]] = []
    for rule in plan.maintenance:
        last = FOREVER if rule.ended_at is None else rule.ended_at
        if rule.schedule is None:
            spans = [(rule.starts_at, FOREVER if rule.ends_at is None else rule.ends_at)]
        else:
            slots = slots_between(rule.schedule, rule.time_zone or "", plan.start - _DAY, plan.end + 12 * _DAY)
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


def shown(moment: int) -> str:
    """Return a moment as it is told."""
    return f"{datetime.fromtimestamp(moment / 1000, UTC):%m-%d %H:%M:%S.%f}"[:-3]

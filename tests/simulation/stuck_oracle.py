"""The oracle of who is stuck: who beats, and has said nothing new for as many intervals as it may.

From the truth alone, as `simulation.oracle` is. As of the watermark W of a sweep, an agent that is ok

  must not be found stuck  if it said something new, or came back from a silence or a pause, less than that before W,
                           by what had reached Redis before W; or if it was late, whatever had reached Redis by then,
  must be found stuck      if it said nothing new for longer, whatever had reached Redis when the sweep decided; and
  must be stuck no longer  if what had reached Redis before W says something new.

What is stored in another order than it was said may count from the newest that was stored by then: later, never sooner.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from simulation.model import Arrival, Plan, SimulatedAgent
from simulation.oracle import FOREVER, Change, Flag, Judgement, Life, Oracle, Said, shown, spans_of


class _Restart(NamedTuple):
    """From when on being stuck counts anew: which sweep may know it, when that reached Redis, and of when it is."""

    known: int
    at: int
    since: int


@dataclass(slots=True)
class _Case:
    """An agent, and what was said of it."""

    agent: SimulatedAgent
    lives: Sequence[Life]
    limit: int
    silent: list[tuple[int, int]]
    """From which sweep to before which it was degraded."""
    stuck: list[tuple[int, int]]


class StuckOracle:
    """The truth of who is stuck in one plan."""

    def __init__(self, plan: Plan, oracle: Oracle) -> None:
        self._plan = plan
        self._oracle = oracle
        self._decided = oracle.decided
        self._watermarks = oracle.watermarks

    def judge(self, said: Said, judgement: Judgement) -> None:
        """Find what was said wrongly."""
        for agent in self._plan.agents:
            changes = said.stuck.get(agent.number, [])
            limit = self._plan.stuck_after if agent.stuck_after is None else agent.stuck_after
            if agent.interval_seconds is None or not limit:
                judgement.false_stuck += [f"{agent.name}, that can't be" for change in changes if change.holds]
                continue
            silent = spans_of(said.silent.get(agent.number, []), len(self._decided))
            case = _Case(agent, self._oracle.lives(agent), limit, silent, spans_of(changes, len(self._decided)))
            self._judge(case, changes, judgement)

    def _judge(self, case: _Case, changes: Sequence[Change], judgement: Judgement) -> None:
        news = [list(_news(life)) for life in case.lives]
        for change in changes:
            if change.holds and not self._is_right(case, news, change.looks, judgement):
                judgement.false_stuck.append(f"{case.agent.name} at {shown(self._decided[change.looks])}")
        for life, said in zip(case.lives, news, strict=True):
            self._check_missed(case, life, judgement)
            self._check_ends(case, life, said, judgement)

    def _is_right(
        self, case: _Case, news: Sequence[Sequence[tuple[int, int]]], look: int, judgement: Judgement
    ) -> bool:
        """Return whether an agent that a sweep found stuck was so."""
        watermark, decided_at = self._oracle.as_of[look], self._decided[look]
        if self._oracle.in_maintenance[look] or any(low <= look < high for low, high in case.silent):
            return False
        for life, said in zip(case.lives, news, strict=True):
            place = bisect_left(said, (watermark, 0))
            if not place or not (life.begin <= decided_at and life.end >= watermark):
                continue
            returns = (low for known, low, _ in self._returns(case, life) if known <= look)
            since = max([said[place - 1][1], *returns, *life.resumed_by(decided_at)])
            due_at = self._oracle.deadline(case.agent, since, case.limit)
            is_paused = any(start < decided_at < end for start, end in life.pauses)
            if due_at < watermark and not is_paused and not self._is_late(case.agent, life, decided_at + 1, look):
                judgement.stuck.append(Flag(due_at, decided_at, 0))
                return True
        return False

    def _is_late(self, agent: SimulatedAgent, life: Life, before: int, look: int) -> bool:
        """Return whether an agent beats no more as of a sweep, by what was heard before a moment."""
        since = max([life.seen_by(before), *life.resumed_by(self._decided[look])])
        return self._oracle.deadline(agent, since, 1) < self._oracle.as_of[look]

    def _check_missed(self, case: _Case, life: Life, judgement: Judgement) -> None:
        """Find who wasn't found stuck, or only later than it had to be."""
        first = bisect_right(self._watermarks, life.begin)
        last = bisect_left(self._decided, life.end)
        said_at = (beat.received_at for beat in life.beats if _words(beat))
        spoke = bisect_left(self._decided, next(said_at, FOREVER))
        restarts = sorted([*self._said_anew(life), *self._back(case, life)])
        since = 0
        for place, restart in enumerate(restarts):
            since = max(since, restart.since)
            due_at = self._oracle.deadline(case.agent, since, case.limit)
            begin = max(first, spoke, restart.known, bisect_right(self._watermarks, max(restart.at, due_at)))
            following = restarts[place + 1 :]
            end = min(last, following[0].known) if following else last
            away = [[bisect_left(self._decided, moment) for moment in pause] for pause in life.pauses]
            for low, high in [*away, *case.silent]:
                if low <= begin < high:
                    begin = end
                elif begin < low:
                    end = min(end, low)
            while begin < end and (
                self._oracle.in_maintenance[begin] or self._is_late(case.agent, life, self._oracle.as_of[begin], begin)
            ):
                begin += 1
            if begin < end and not any(low <= begin and end <= high for low, high in case.stuck):
                judgement.missed_stuck.append(
                    f"{case.agent.name} says the same since {shown(since)}, due {shown(due_at)}, "
                    f"from {shown(self._decided[begin])} on"
                )

    def _check_ends(self, case: _Case, life: Life, said: Sequence[tuple[int, int]], judgement: Judgement) -> None:
        """Find who was stuck still although it had said something new."""
        last, before = bisect_left(self._decided, life.end), FOREVER
        for received_at, changed_at in said:
            begin = bisect_right(self._watermarks, received_at)
            is_new, before = changed_at > before, changed_at
            if not is_new or begin >= last or not any(low < begin < high for low, high in case.stuck):
                continue
            if self._oracle.deadline(case.agent, changed_at, case.limit) >= self._watermarks[begin]:
                judgement.late_unstuck.append(f"{case.agent.name} said something new at {shown(changed_at)}")

    def _said_anew(self, life: Life) -> Iterator[_Restart]:
        """Yield from when on at the latest it says the same, or is ok, in the order in which that was stored."""
        newest, doing, said_at, is_pending = 0, None, 0, True
        applied = sorted((beat.stored_at or FOREVER, place) for place, beat in enumerate(life.beats))
        for _, place in applied:
            beat, words, at = life.beats[place], _words(life.beats[place]), _said_at(life, life.beats[place])
            is_newest, newest = at >= newest, max(newest, at)
            is_first = is_pending and beat.seen_at > life.begin
            is_pending = is_pending and not is_first
            if is_first or (words and (not is_newest or words != doing)):
                yield _Restart(bisect_left(self._decided, beat.received_at), beat.received_at, newest)
            if words and at >= said_at:
                said_at, doing = at, words

    def _back(self, case: _Case, life: Life) -> Iterator[_Restart]:
        """Yield the returns of an agent from silences and pauses."""
        for _, end in life.pauses:
            yield _Restart(bisect_left(self._decided, end), end, end)
        for known, _, high in self._returns(case, life):
            yield _Restart(known, self._decided[known - 1], high)

    def _returns(self, case: _Case, life: Life) -> Iterator[tuple[int, int, int]]:
        """Yield which sweep may know of a return from a silence, and of when the sign was, at least and at most."""
        for _, back in case.silent:
            if back < len(self._decided):
                begin, end = self._decided[back - 1], self._decided[back]
                seen = [beat.seen_at for beat in life.beats if begin <= (beat.stored_at or 0) <= end]
                if seen:
                    yield back, min(seen), max(seen)


def _words(beat: Arrival) -> tuple[str | None, ...] | None:
    """Return what a heartbeat says of what its agent does; None if nothing."""
    message = beat.message
    words = tuple(getattr(message, name) for name in ("progress", "work_item_id", "status"))
    return words if any(words) else None


def _said_at(life: Life, beat: Arrival) -> int:
    """Return of when it is what a heartbeat says: what waited when the session was opened says it of that moment."""
    return max(beat.seen_at, life.begin)


def _news(life: Life) -> Iterator[tuple[int, int]]:
    """Yield for each heartbeat with words when Redis had it, and since when, by then, the agent says the same."""
    told: list[tuple[int, int, tuple[str | None, ...]]] = []
    changed_at = 0
    for place, beat in enumerate(life.beats):
        if (words := _words(beat)) is None:
            continue
        said = (_said_at(life, beat), place, words)
        if not told or said > told[-1]:
            changed_at = said[0] if not told or told[-1][2] != words else changed_at
            told.append(said)
        else:
            insort(told, said, key=lambda each: each[:2])
            first = len(told) - 1
            while first and told[first - 1][2] == told[-1][2]:
                first -= 1
            changed_at = told[first][0]
        yield beat.received_at, changed_at


def judge(plan: Plan, oracle: Oracle, said: Said) -> Judgement:
    """Return what is true of all that was said: of who is degraded, and of who is stuck."""
    judgement = oracle.judge(said)
    StuckOracle(plan, oracle).judge(said, judgement)
    return judgement

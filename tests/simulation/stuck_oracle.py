"""Oracle of stuck agents: those whose heartbeats report the same for too many intervals.

It works from what really happened, like `simulation.oracle`. As of the watermark W of a sweep, an agent that is ok

  must not be found stuck  if, by everything that had reached Redis before W, its report changed, or it recovered or was
                           resumed, within the limit before W; or if it was late by everything received so far;
  must be found stuck      if, by everything that had reached Redis when the sweep decided, its report was unchanged for
                           longer than the limit;
  must cease to be stuck   if a heartbeat that had reached Redis before W changed its report.

For heartbeats that are stored in another order, the time may count from the newest one stored: later, never earlier.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from simulation.model import Arrival, Plan, SimulatedAgent
from simulation.oracle import Oracle
from simulation.sessions import Session
from simulation.timeline import FOREVER
from simulation.verdicts import Change, Findings, Flag, Verdicts, shown, spans_of


class _Restart(NamedTuple):
    """Where the time starts again: the first sweep that may know it, the receipt, and the time that counts."""

    known: int
    at: int
    since: int


@dataclass(slots=True)
class _Agent:
    """An agent with its sessions and verdicts; spans are from one sweep to the first one after."""

    agent: SimulatedAgent
    sessions: Sequence[Session]
    limit: int
    degraded: list[tuple[int, int]]
    stuck: list[tuple[int, int]]


class StuckOracle:
    """Checks which agents are stuck in one plan."""

    def __init__(self, plan: Plan, oracle: Oracle) -> None:
        self._plan = plan
        self._oracle = oracle
        self._decided = oracle.decided
        self._watermarks = oracle.watermarks

    def check(self, verdicts: Verdicts, findings: Findings) -> None:
        """Check all verdicts that agents are stuck."""
        for agent in self._plan.agents:
            changes = verdicts.stuck.get(agent.number, [])
            limit = self._plan.stuck_after if agent.stuck_after is None else agent.stuck_after
            if agent.interval_seconds is None or not limit:
                findings.false_stuck += [
                    f"{agent.name}, which can never be stuck" for change in changes if change.holds
                ]
                continue
            degraded = spans_of(verdicts.degraded.get(agent.number, []), len(self._decided))
            case = _Agent(
                agent, self._oracle.sessions[agent.number], limit, degraded, spans_of(changes, len(self._decided))
            )
            self._check_agent(case, changes, findings)

    def _check_agent(self, case: _Agent, changes: Sequence[Change], findings: Findings) -> None:
        changed = [list(_change_times(session)) for session in case.sessions]
        for change in changes:
            if change.holds and not self._was_stuck(case, changed, change.sweeps, findings):
                findings.false_stuck.append(f"{case.agent.name} at {shown(self._decided[change.sweeps])}")
        for session, times in zip(case.sessions, changed, strict=True):
            self._check_missed(case, session, findings)
            self._check_ends(case, session, times, findings)

    def _was_stuck(
        self, case: _Agent, changed: Sequence[Sequence[tuple[int, int]]], sweep: int, findings: Findings
    ) -> bool:
        """Return whether an agent that a sweep found stuck really was."""
        watermark, decided_at = self._oracle.as_of[sweep], self._decided[sweep]
        if self._oracle.in_maintenance[sweep] or any(low <= sweep < high for low, high in case.degraded):
            return False
        for session, times in zip(case.sessions, changed, strict=True):
            place = bisect_left(times, (watermark, 0))
            if not place or not (session.begin <= decided_at and session.end >= watermark):
                continue
            ended = (low for known, low, _ in self._silences_ended(case, session) if known <= sweep)
            since = max([times[place - 1][1], *ended, *session.resumed_by(decided_at)])
            due_at = self._oracle.deadline(case.agent, since, case.limit)
            is_paused = any(start < decided_at < end for start, end in session.pauses)
            if due_at < watermark and not is_paused and not self._is_late(case.agent, session, decided_at + 1, sweep):
                findings.stuck.append(Flag(due_at, decided_at, 0))
                return True
        return False

    def _is_late(self, agent: SimulatedAgent, session: Session, before: int, sweep: int) -> bool:
        """Return whether an agent was late as of a sweep, by the heartbeats received before a time."""
        since = max([session.seen_by(before), *session.resumed_by(self._decided[sweep])])
        return self._oracle.deadline(agent, since, 1) < self._oracle.as_of[sweep]

    def _check_missed(self, case: _Agent, session: Session, findings: Findings) -> None:
        """Find times in which the agent was stuck and not found, or found late."""
        first = bisect_right(self._watermarks, session.begin)
        last = bisect_left(self._decided, session.end)
        # A heartbeat that overtook the registration by too much is never stored.
        received = (
            beat.received_at for beat in session.heartbeats if _report_of(beat) and beat.received_at >= session.begin
        )
        reported_from = bisect_left(self._decided, next(received, FOREVER))
        restarts = sorted([*self._changes(session), *self._recoveries(case, session)])
        since = 0
        for place, restart in enumerate(restarts):
            since = max(since, restart.since)
            due_at = self._oracle.deadline(case.agent, since, case.limit)
            begin = max(first, reported_from, restart.known, bisect_right(self._watermarks, max(restart.at, due_at)))
            following = restarts[place + 1 :]
            end = min(last, following[0].known) if following else last
            away = [[bisect_left(self._decided, moment) for moment in pause] for pause in session.pauses]
            for low, high in [*away, *case.degraded]:
                if low <= begin < high:
                    begin = end
                elif begin < low:
                    end = min(end, low)
            while begin < end and (
                self._oracle.in_maintenance[begin]
                or self._is_late(case.agent, session, self._oracle.as_of[begin], begin)
            ):
                begin += 1
            if begin < end and not any(low <= begin and end <= high for low, high in case.stuck):
                findings.missed_stuck.append(
                    f"{case.agent.name} is unchanged since {shown(since)}, due {shown(due_at)}, "
                    f"from {shown(self._decided[begin])} on"
                )

    def _check_ends(self, case: _Agent, session: Session, times: Sequence[tuple[int, int]], findings: Findings) -> None:
        """Find times in which the agent was still stuck although its report had changed."""
        last, before = bisect_left(self._decided, session.end), FOREVER
        for received_at, changed_at in times:
            begin = bisect_right(self._watermarks, received_at)
            is_new, before = changed_at > before, changed_at
            if not is_new or begin >= last or not any(low < begin < high for low, high in case.stuck):
                continue
            if self._oracle.deadline(case.agent, changed_at, case.limit) >= self._watermarks[begin]:
                findings.late_unstuck.append(f"{case.agent.name} changed its report at {shown(changed_at)}")

    def _changes(self, session: Session) -> Iterator[_Restart]:
        """Yield the latest times from which the report is unchanged, or the agent is ok, in the order of storing.

        A heartbeat that was stored before its registration, or before an earlier registration or end, counts with the
        next sweep that applies it, or not at all.
        """
        newest, current, reported_at, is_pending = 0, None, 0, True
        applied = sorted(
            (self._applied_at(session, heartbeat), place) for place, heartbeat in enumerate(session.heartbeats)
        )
        for _, place in applied:
            heartbeat = session.heartbeats[place]
            report, at = _report_of(heartbeat), _reported_at(session, heartbeat)
            is_newest, newest = at >= newest, max(newest, at)
            is_early = (heartbeat.stored_at or 0) < session.settled_at
            is_first = is_pending and heartbeat.seen_at > session.begin
            is_pending = is_pending and not is_first
            if is_first or (report and (not is_newest or report != current or is_early)):
                yield _Restart(bisect_left(self._decided, heartbeat.received_at), heartbeat.received_at, newest)
            if report and at >= reported_at:
                reported_at, current = at, None if is_early else report

    def _applied_at(self, session: Session, heartbeat: Arrival) -> int:
        """Find the latest time at which a heartbeat was applied."""
        stored_at = FOREVER if heartbeat.stored_at is None else heartbeat.stored_at
        if stored_at >= session.settled_at:
            return stored_at
        place = bisect_left(self._decided, session.settled_at)
        return self._decided[place] if place < len(self._decided) else FOREVER

    def _recoveries(self, case: _Agent, session: Session) -> Iterator[_Restart]:
        """Yield the ends of silences and pauses."""
        for _, end in session.pauses:
            yield _Restart(bisect_left(self._decided, end), end, end)
        for known, _, high in self._silences_ended(case, session):
            yield _Restart(known, self._decided[known - 1], high)

    def _silences_ended(self, case: _Agent, session: Session) -> Iterator[tuple[int, int, int]]:
        """Yield each recovery: the first sweep that may know it, and the earliest and latest time of its heartbeat."""
        for _, back in case.degraded:
            if back < len(self._decided):
                begin, end = self._decided[back - 1], self._decided[back]
                seen = [
                    heartbeat.seen_at for heartbeat in session.heartbeats if begin <= (heartbeat.stored_at or 0) <= end
                ]
                if seen:
                    yield back, min(seen), max(seen)


def _report_of(heartbeat: Arrival) -> tuple[str | None, ...] | None:
    """Return the fields that count as the report of a heartbeat; None if it has none of them."""
    message = heartbeat.message
    report = tuple(getattr(message, name) for name in ("progress", "work_item_id", "status"))
    return report if any(report) else None


def _reported_at(session: Session, heartbeat: Arrival) -> int:
    """Return the time of a heartbeat's report; one that waited while the session was opened counts from there."""
    return heartbeat.seen_at if heartbeat.received_at < session.begin else max(heartbeat.seen_at, session.begin)


def _change_times(session: Session) -> Iterator[tuple[int, int]]:
    """Yield for each heartbeat with a report its receipt, and since when the report was unchanged by then."""
    reports: list[tuple[int, int, tuple[str | None, ...]]] = []
    changed_at = 0
    for place, heartbeat in enumerate(session.heartbeats):
        if (report := _report_of(heartbeat)) is None:
            continue
        entry = (_reported_at(session, heartbeat), place, report)
        if not reports or entry > reports[-1]:
            changed_at = entry[0] if not reports or reports[-1][2] != report else changed_at
            reports.append(entry)
        else:
            insort(reports, entry, key=lambda each: each[:2])
            first = len(reports) - 1
            while first and reports[first - 1][2] == reports[-1][2]:
                first -= 1
            changed_at = reports[first][0]
        yield heartbeat.received_at, changed_at


def check_verdicts(plan: Plan, oracle: Oracle, verdicts: Verdicts) -> Findings:
    """Check all verdicts of a run."""
    findings = oracle.check(verdicts)
    StuckOracle(plan, oracle).check(verdicts, findings)
    return findings

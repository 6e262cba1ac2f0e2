"""Oracle: the correct verdicts of a plan, worked out from what really happened.

It knows when each message reached Redis, when each left the inbox, and when sweeps ran. It shares no code with what it
checks, and keeps no state between sweeps. As of the watermark W of a sweep, an agent

  must be degraded      if W is after its deadline, by everything that had reached Redis when the sweep decided;
  must not be degraded  if its deadline, by everything that had reached Redis before W, is after W.

The deadline is the end of the allowed silence, with outages and pulse gaps excluded. No agent may be flagged during a
pause or maintenance; silence counts again from the end of a pause, and of the first maintenance window that it meets.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from simulation.model import MISSED, Plan, SimulatedAgent
from simulation.sessions import Session, find_sessions
from simulation.timeline import (
    FOREVER,
    TURNED_BACK,
    find_outages,
    find_pulse_gaps,
    find_watermarks,
    find_windows,
)
from simulation.verdicts import Change, Findings, Flag, Verdicts, shown, spans_of
from simulation.wall_clock import slots_of


class Oracle:
    """Correct verdicts of one plan, worked out from what really happened."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.decided = [sweep.decided_at for sweep in plan.sweeps]
        self._read = sorted(sweep.read_at for sweep in plan.sweeps)
        self.as_of = find_watermarks(plan)
        self.watermarks = list(accumulate(self.as_of, max))
        self.outages = find_outages(plan)
        self._pulse_gaps = find_pulse_gaps(plan)
        self._excluded = sorted([*self.outages, *self._pulse_gaps])
        self._windows = find_windows(plan)
        self.in_maintenance = [any(s <= sweep.read_at < e for s, e in self._windows) for sweep in plan.sweeps]
        self._excluded_or_maintenance = sorted([*self._excluded, *self._windows])
        self.sessions = find_sessions(plan)

    def check(self, verdicts: Verdicts) -> Findings:
        """Check all verdicts that agents are degraded."""
        findings = Findings()
        for agent in self._plan.agents:
            self._check_agent(agent, verdicts.degraded.get(agent.number, []), findings)
        return findings

    def _check_agent(self, agent: SimulatedAgent, changes: Sequence[Change], findings: Findings) -> None:
        sessions = self.sessions[agent.number]
        for change in changes:
            if change.holds:
                self._check_flag(agent, sessions, change.sweeps, findings)
        degraded = spans_of(changes, len(self.decided))
        for session in sessions:
            self._check_session(agent, session, degraded, findings)

    def _check_flag(self, agent: SimulatedAgent, sessions: list[Session], sweep: int, findings: Findings) -> None:
        """Check that the agent had missed its deadline as of the sweep's watermark."""
        watermark, decided_at = self.as_of[sweep], self.decided[sweep]
        for session in sessions:
            if not (session.begin <= decided_at and session.end >= watermark) or self.in_maintenance[sweep]:
                continue
            due_at = self.deadline(agent, max([session.seen_by(watermark), *session.resumed_by(decided_at)]))
            if due_at < watermark and not any(start < decided_at < end for start, end in session.pauses):
                behind = self.as_of[sweep - 1] if sweep else watermark
                lag = self._plan.sweeps[sweep - 1].read_at - behind if sweep else 0
                findings.flags.append(Flag(due_at, decided_at, lag))
                return
        findings.false_flags.append(f"{agent.name} at {shown(decided_at)}, as of {shown(watermark)}")

    def _check_session(
        self, agent: SimulatedAgent, session: Session, degraded: list[tuple[int, int]], findings: Findings
    ) -> None:
        # Sweeps need not know the session before the watermark has passed its registration, nor after its end.
        first = bisect_right(self.watermarks, session.begin)
        last = bisect_left(self.decided, session.end)
        self._check_silences(agent, session, (first, last), degraded, findings)
        if degraded:
            self._check_recoveries(agent, session, (first, last), degraded, findings)

    def _check_silences(
        self,
        agent: SimulatedAgent,
        session: Session,
        sweeps: tuple[int, int],
        degraded: list[tuple[int, int]],
        findings: Findings,
    ) -> None:
        """Find missed flags: silence counts from each heartbeat, and from the end of each pause."""
        restarts = self._restarts(session)
        since = 0
        for place, (at, seen_at, known) in enumerate(restarts):
            since = max(since, seen_at)
            next_at, _, next_known = restarts[place + 1] if place + 1 < len(restarts) else (FOREVER, FOREVER, FOREVER)
            due_at = self._due_by_clock(agent, at, since)
            if due_at is None or next_at <= due_at:
                continue  # received before any watermark could pass the deadline
            # The deadline of a heartbeat that waited for long may be before its receipt, or before an earlier one.
            begin = max(sweeps[0], known, bisect_right(self.watermarks, max(at, due_at)))
            end = min(sweeps[1], next_known)
            for pause in session.pauses:
                paused, resumed = (bisect_left(self.decided, moment) for moment in pause)
                if paused <= begin < resumed:
                    begin = end
                elif begin < paused:
                    end = min(end, paused)
            while begin < end and (self.in_maintenance[begin] or self.as_of[begin] <= due_at):
                begin += 1
            if begin < end and not any(low <= begin and end <= high for low, high in degraded):
                findings.missed_flags.append(
                    f"{agent.name} silent since {shown(since)}, due {shown(due_at)}, "
                    f"from {shown(self.decided[begin])} on"
                )

    def _restarts(self, session: Session) -> list[tuple[int, int, int]]:
        """List where silence starts: the receipt, the time that counts, and the first sweep that may know it."""
        restarts = [(at, seen_at, bisect_left(self.decided, at)) for at, seen_at in session.seen]
        restarts += [(end, end, bisect_left(self.decided, end)) for _, end in session.pauses if end < session.end]
        return sorted(restarts)

    def _check_recoveries(
        self,
        agent: SimulatedAgent,
        session: Session,
        sweeps: tuple[int, int],
        degraded: list[tuple[int, int]],
        findings: Findings,
    ) -> None:
        """Find late recoveries: degraded although a recent heartbeat was received."""
        for place, (received_at, seen_at) in enumerate(session.seen):
            next_at = session.seen[place + 1][0] if place + 1 < len(session.seen) else FOREVER
            # Maintenance doesn't make an agent recover.
            due_at = self._end_of_silence(agent, seen_at, self.outages, agent.missed_limit or MISSED)
            begin = max(sweeps[0], bisect_right(self.watermarks, received_at))
            end = min(sweeps[1], bisect_right(self.watermarks, next_at), bisect_left(self.watermarks, due_at))
            # The deadline after a pause may be earlier on a schedule.
            resumed = (
                bisect_left(self.decided, resumed_at) for _, resumed_at in session.pauses if resumed_at > seen_at
            )
            end = min([end, *resumed])
            if self._is_ambiguous(received_at):
                continue
            if begin < end and any(low < end and begin < high for low, high in degraded):
                findings.late_recoveries.append(
                    f"{agent.name} seen {shown(seen_at)}, due {shown(due_at)}, was still or again degraded"
                )

    def _due_by_clock(self, agent: SimulatedAgent, at: int, since: int) -> int | None:
        """Find the latest deadline if Redis's clock was set back in between; None if the heartbeat's time is ambiguous.

        By that clock, the silence is shorter. But after a step back of at least ten minutes, times that are later than
        the clock count as the present, as sweeps repair them.
        """
        if self._is_ambiguous(at):
            return None
        due_at, extra = self.deadline(agent, since), 0
        for step in self._plan.clock.steps:
            if not since < step.at <= due_at:
                continue
            place = bisect_left(self._read, step.at)
            if place == len(self._read):
                return None
            shown = [self._plan.clock.at(moment) for moment in self._read[max(0, place - 1) : place + 1]]
            if shown[0] - shown[-1] >= TURNED_BACK and since > step.at - step.back:
                since = self._read[place]
            else:
                extra += step.back
            # Earlier gaps are returned again when the clock reaches their times again.
            repeated = (gap for gap in self._pulse_gaps if step.at - step.back < gap[1] <= step.at)
            extra += sum(end - start for start, end in repeated)
            due_at = self.deadline(agent, since, extra=extra)
        return due_at

    def _is_ambiguous(self, at: int) -> bool:
        """Return whether a receipt may count from a later time, as the clock was behind an earlier time."""
        return any(step.at <= at < step.at + step.back for step in self._plan.clock.steps)

    def deadline(self, agent: SimulatedAgent, since: int, missed: int | None = None, extra: int = 0) -> int:
        """Work out the deadline of a silence: after `missed` intervals (default: the agent's limit), plus `extra`.

        `extra` is in milliseconds. Silence counts again from the end of the first maintenance window that it meets, but
        this doesn't put the deadline earlier. Later windows are excluded.
        """
        missed = missed or agent.missed_limit or MISSED
        due_at = self._end_of_silence(agent, since, self._excluded, missed, extra)
        for start, end in self._windows:
            if end > since:
                later = self._end_of_silence(agent, end, self._excluded_or_maintenance, missed, extra)
                return max(due_at, later) if start <= due_at else due_at
        return due_at

    def _end_of_silence(
        self,
        agent: SimulatedAgent,
        since: int,
        excluded: Sequence[tuple[int, int]],
        missed: int,
        extra: int = 0,
    ) -> int:
        """Work out when the allowed silence is over, with some spans excluded."""
        grace = round(agent.grace_seconds * 1000)
        if agent.interval_seconds is not None:
            left = missed * agent.interval_seconds * 1000 + grace
        else:
            slots = slots_of(agent, self._plan)
            left = slots[bisect_right(slots, since + grace) + missed - 1] + grace - since
        left += extra
        moment = since
        for start, end in excluded:
            if end <= moment:
                continue
            counted = max(0, start - moment)
            if counted >= left:
                break
            left -= counted
            moment = end
        return moment + left

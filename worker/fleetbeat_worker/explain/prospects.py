"""What would change a verdict next, and when. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from fleetbeat_worker.explain.deadline_sum import Arithmetic, exact
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.rules.maintenance_windows import Window

Prospect = tuple[str, "datetime | None"]
"""What comes next, in words, and when that is; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Prospects:
    """What is known of the time to come."""

    arithmetic: Arithmetic
    as_of: datetime
    paused_until: datetime | None = None
    in_maintenance: bool = False
    coming: Window | None = None
    """The next maintenance that is known of."""

    def next(self, state: State) -> Prospect:
        """Return what would change the verdict next."""
        if state is State.ENDED:
            return "nothing is expected of it; a new registration opens it again", None
        if state is State.PAUSED:
            until = self.paused_until
            when = f"at {exact(until)}" if until else "when somebody does it (fleetbeat agents resume)"
            return f"resumed {when}; its clock starts anew then", until
        if state is State.DEGRADED:
            return "ok again with the next heartbeat that is recent enough", None
        if self.in_maintenance:
            return f"nothing until maintenance ends; {self._afterwards()}", None
        return self._missed(state)

    def _missed(self, state: State) -> Prospect:
        due, late_at = self.arithmetic.deadline_at, self.arithmetic.late_at
        if due < self.as_of:
            return f"degraded at the next sweep: its deadline was {exact(due)}", due
        text, at = f"degraded at {exact(due)} unless a heartbeat comes", due
        if self.coming is not None and self.coming.starts_at < due:
            text, at = self._spared(self.coming, due), self.coming.starts_at
        if state is State.OK and self.as_of < late_at < at:
            return f"late at {exact(late_at)}, {text}", late_at
        return text, at

    def _spared(self, window: Window, due: datetime) -> str:
        until = f" (until {exact(window.ends_at)})" if window.ends_at else ""
        begins = f"as maintenance begins before, at {exact(window.starts_at)}{until}"
        return f"not degraded at {exact(due)}, {begins}; {self._afterwards()}"

    def _afterwards(self) -> str:
        again = self.arithmetic.start.why == "end of maintenance"
        return "its deadline moves by the time that it took" if again else "its clock starts anew then"

"""A fleet on a simulated clock, through the real batches and the real sweep."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_shared.redis_keys import stream_of
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.accounting import Account
from fleetbeat_worker.broker.entries import RawEntry, decode
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.broker.pulse import Pulse
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.ingest.lane import apply_entries
from fleetbeat_worker.ingest.transaction import store_heartbeats
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.sweep.transaction import NO_PULSE, SweepReport, judge_fleet

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def at(number: float) -> datetime:
    """Return a moment, in seconds after noon."""
    return NOON + timedelta(seconds=number)


class Simulation:
    """Sends messages and sweeps at given seconds after noon; `settings` are those of its workers."""

    def __init__(self, engine: Engine, **settings: Any) -> None:
        self.engine = engine
        self.settings = Settings(**settings)
        self._messages = 0

    def register(self, name: str, when: float, session_id: UUID | None = None, **promise: Any) -> UUID:
        """Register an agent, every 10 s with 1 s of grace unless something else is promised; return its session."""
        promise = promise or {"interval_seconds": 10.0, "grace_seconds": 1.0}
        session_id = session_id or self._new_id(when)
        self._store(
            Register(id=self._new_id(when), session_id=session_id, sent_at=at(when), agent_name=name, **promise),
            when,
        )
        return session_id

    def beat(self, session_id: UUID, when: float, *, waited: float = 0.0, clock_off: float = 0.0, **said: Any) -> None:
        """Let a heartbeat arrive that waited for some seconds, of an agent whose clock is off by some."""
        made = when - waited + clock_off
        buffered = {"buffered_seconds": waited} if waited else {}
        message = Heartbeat(id=self._new_id(made), session_id=session_id, sent_at=at(made), **buffered, **said)
        self._store(message, when)

    def end(self, session_id: UUID, when: float, **said: Any) -> None:
        """Let an agent say goodbye."""
        self._store(Deregister(id=self._new_id(when), session_id=session_id, sent_at=at(when), **said), when)

    def sweep(
        self, when: float, *, watermark: float | None = None, backlog: int = 0, pulse: Pulse = NO_PULSE
    ) -> SweepReport:
        """Sweep, with workers that are behind if a watermark is given."""
        horizon = Horizon(at(when), at(when if watermark is None else watermark), backlog)
        with writing(self.engine) as connection:
            account = Account(at(when), None, 0)
            return judge_fleet(connection, horizon, account, self.settings, periodic=True, pulse=pulse)

    def _store(self, message: Register | Heartbeat | Deregister, when: float) -> None:
        now = to_milliseconds(at(when))
        raw = RawEntry(f"{now}-{self._messages}", message.to_wire())
        entries = decode([raw], now, stream_of(message.kind))
        if isinstance(message, Heartbeat):
            store_heartbeats(self.engine, entries, now, self.settings)
            return
        with writing(self.engine) as connection:
            apply_entries(connection, entries, now, self.settings)

    def _new_id(self, when: float) -> UUID:
        self._messages += 1
        return UUID(int=to_milliseconds(at(when)) << 80 | 0x7 << 76 | 0b10 << 62 | self._messages)

"""The invariant of ingest under all that can go wrong, in any order, against a plain model.

Producers send, workers ingest and die, workers stand still and go on when others have taken over, Redis's clock steps.
Afterwards each message that Redis acknowledged is in SQL once, or set aside with a reason, and the inbox is empty.
`pytest tests/unit/ingest/test_state_machine.py --hypothesis-profile long` takes tens of thousands of steps.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from uuid import UUID

import hypothesis
import pytest
from fakeredis import FakeRedis, FakeServer
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule
from sqlalchemy import select

from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import CLOCK_STEP_MILLISECONDS, Entry, Inbox
from fleetbeat_worker.database.engine import open_engine, reading
from fleetbeat_worker.database.tables import Agent, Event, Liveness, StoredHeartbeat
from fleetbeat_worker.ingest import job as ingest, transaction as transactions
from fleetbeat_worker.ingest.job import Ingest
from fleetbeat_worker.ingest.transaction import store_entries
from fleetbeat_worker.sweep.job import sweep
from helpers import backlog, deregister, heartbeat, register, rejected, send, stored_ids

SETTINGS = Settings(batch_size=8, linger_seconds=0.001, lease_seconds=30.0)
POINTS: dict[str, tuple[Any, str]] = {
    "before the transaction": (ingest, "store_entries"),
    "locked": (transactions, "open_batch"),
    "written": (transactions, "write_batch"),
    "committed": (ingest, "store_entries"),
    "acknowledged": (Inbox, "acknowledge"),
}
"""Where a worker can die: after what is called there, but for the first."""
CLOCKS = ("fakeredis._helpers.time", "fakeredis.model._stream.time", "fakeredis.commands_mixins.server_mixin.time")


class Died(BaseException):
    """What ends a worker as SIGKILL does: nothing that it might still do is done."""


class Clock:
    """Redis's clock; it stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1_780_000_000.0

    def time(self) -> float:
        """Return the time, as `time.time` does."""
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class Fleet(RuleBasedStateMachine):
    """Producers, workers, and a Redis whose clock is ours."""

    template: Path
    """A database with the schema."""
    sessions = Bundle("sessions")
    messages = Bundle("messages")
    held = Bundle("held")
    """Batches in the hands of workers that stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()
        self.clock = Clock()
        for place in CLOCKS:
            self.patches.enter_context(patch(place, self.clock))
        for name in ("BLOCK_SECONDS", "PACE_SECONDS", "PUT_RIGHT_SECONDS", "FIRST_PAUSE_SECONDS"):
            self.patches.enter_context(patch.object(ingest, name, 0.001))
        self.redis = FakeRedis(server=FakeServer())
        folder = Path(self.patches.enter_context(TemporaryDirectory()))
        self.engine = open_engine(f"sqlite:///{shutil.copy(self.template, folder)}")
        self.patches.callback(self.engine.dispose)
        self.inbox = Inbox(self.redis)
        self.inbox.create_group()
        self.sent: dict[str, Register | Heartbeat | Deregister | bytes] = {}
        """What Redis acknowledged, by the entry's id: the model."""
        self.latest = self.clock.now
        """The latest time that Redis's clock ever showed."""
        self.was_set_back = False
        self.watermark: datetime | None = None
        self.workers = 0

    def teardown(self) -> None:
        """Let everything come to rest, then look at it."""
        try:
            self.recover()
            self.check()
        finally:
            self.redis.close()
            self.patches.close()

    # Producers

    @initialize(target=sessions)
    def begin(self) -> UUID:
        """Have one session at least."""
        return self.register_agent()

    @rule(target=sessions)
    def register_agent(self) -> UUID:
        """Register an agent."""
        message = register(f"agent-{len(self.sent)}")
        self.send(message)
        return message.session_id

    @rule(target=messages, session=sessions, progress=st.booleans())
    def beat(self, session: UUID, *, progress: bool) -> Heartbeat:
        """Send a heartbeat."""
        message = heartbeat(session, progress=f"step {len(self.sent)}" if progress else None)
        self.send(message)
        return message

    @rule(session=sessions, number=st.integers(2, 25))
    def beat_often(self, session: UUID, number: int) -> None:
        """Send more than a batch takes."""
        for _ in range(number):
            self.send(heartbeat(session))

    @rule(target=messages, session=sessions, again=st.booleans())
    def end_or_register_again(self, session: UUID, *, again: bool) -> Register | Deregister:
        """End a session, or open it anew."""
        message = register(f"agent-{session}", session) if again else deregister(session)
        self.send(message)
        return message

    @rule(message=messages)
    def send_the_same_again(self, message: Register | Heartbeat | Deregister) -> None:
        """Send a message twice, as a producer does that got no answer."""
        self.send(message)

    @rule(target=sessions)
    def beat_before_registration(self) -> UUID:
        """Let a heartbeat overtake its registration."""
        message = register(f"agent-{len(self.sent)}")
        self.send(heartbeat(message.session_id))
        self.send(message)
        return message.session_id

    @rule()
    def send_what_is_no_use(self) -> None:
        """Send what is no message, and a heartbeat of nobody."""
        self.send(b"\xff")
        self.send(heartbeat(register().session_id))

    def send(self, message: Register | Heartbeat | Deregister | bytes) -> None:
        """Send a message, and note it."""
        (entry_id,) = send(self.redis, message)
        self.sent[entry_id] = message

    # Workers

    @rule()
    def work(self) -> None:
        """Run an ingest job to its end."""
        self.run_job(self.new_worker())

    @rule(crash=st.sampled_from(sorted(POINTS)), after=st.integers(0, 3), comes_back=st.booleans())
    def work_and_die(self, crash: str, after: int, *, comes_back: bool) -> None:
        """Run an ingest job that dies at a point of some batch."""
        worker = self.new_worker()
        with self.dying(crash, after):
            self.run_job(worker)
        if comes_back:  # RQ's worker lives on, and runs the next job under its name
            self.run_job(worker)

    @rule(target=held, count=st.integers(1, 12))
    def stand_still(self, count: int) -> Any:
        """Take a batch, and store it much later, or never."""
        entries = self.inbox.read(self.new_worker(), count, 0.001)
        return entries or multiple()

    @rule(entries=consumes(held), acknowledges=st.booleans())
    def go_on(self, entries: list[Entry], *, acknowledges: bool) -> None:
        """Store what was taken, also if others have done so meanwhile."""
        store_entries(self.engine, entries, self.inbox.horizon().now, SETTINGS)
        if acknowledges:
            self.inbox.acknowledge([entry.id for entry in entries], "standing still")

    @rule()
    def sweep(self) -> None:
        """Sweep; the watermark never goes back, and nothing is lost."""
        report = sweep(self.redis, self.engine, SETTINGS)
        if report.watermark is not None:
            assert self.watermark is None or report.watermark >= self.watermark
            self.watermark = report.watermark
        assert report.trimmed == 0
        assert report.lost_backlog is None

    def new_worker(self) -> str:
        """Return a name that no worker had."""
        self.workers += 1
        return f"worker-{self.workers}"

    def run_job(self, worker: str) -> None:
        """Run an ingest job."""
        Ingest(self.redis, self.engine, SETTINGS, worker).run(10.0)

    @contextmanager
    def dying(self, crash: str, after: int) -> Iterator[None]:
        """Let the process die at a point of a batch, after some batches."""
        left = [after]

        def die() -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Died

        owner, name = POINTS[crash]
        real = getattr(owner, name)

        def act(*arguments: Any) -> Any:
            if crash == "before the transaction":
                die()
            done = real(*arguments)
            if crash != "before the transaction":
                die()
            return done

        with suppress(Died), patch.object(owner, name, act):
            yield

    # Time

    @rule(seconds=st.sampled_from([0.001, 0.5, 31.0, 3600.0, 86400.0]))
    def let_time_pass(self, seconds: float) -> None:
        """Move the clock forward."""
        self.clock.now += seconds
        self.latest = max(self.latest, self.clock.now)

    @rule(seconds=st.sampled_from([0.1, 5.0, 45.0]))
    def set_the_clock_back(self, seconds: float) -> None:
        """Move the clock back."""
        self.was_set_back = True
        # By more, nobody knows the order of what several workers hold.
        self.clock.now = max(self.clock.now - seconds, self.latest - CLOCK_STEP_MILLISECONDS / 1000 + 1)

    # The end

    def recover(self) -> None:
        """Let workers work, undisturbed, until nothing is left."""
        for _ in range(40):
            self.clock.now += SETTINGS.lease_seconds + 1
            self.run_job(self.new_worker())
            sweep(self.redis, self.engine, SETTINGS)
            if not backlog(self.redis):
                break

    def check(self) -> None:
        """Fail unless each message is where it belongs, once."""
        assert backlog(self.redis) == 0
        assert self.inbox.demand(1.0).pending == 0
        assert self.inbox.account().lost == 0
        set_aside = {row.entry_id: row.reason for row in rejected(self.engine)}
        stored = set(stored_ids(self.engine))
        times = Counter(message.id for message in self.sent.values() if not isinstance(message, bytes))
        accepted = {entry_id: message for entry_id, message in self.sent.items() if entry_id not in set_aside}
        for entry_id, message in self.sent.items():
            reason = set_aside.get(entry_id)
            if isinstance(message, bytes):
                assert reason is not None
            elif isinstance(message, Heartbeat):
                assert (message.id in stored) != (reason is not None) or times[message.id] > 1
                assert message.id in stored or reason is not None
        assert stored <= {message.id for message in self.sent.values() if isinstance(message, Heartbeat)}
        assert set(set_aside) <= set(self.sent)
        self.check_events(stored)
        self.check_sessions(accepted)

    def check_events(self, stored: set[UUID]) -> None:
        """Fail unless each heartbeat with progress, and no other, has its event."""
        with reading(self.engine) as connection:
            told = Counter(connection.execute(select(Event.message_id).where(Event.type == "heartbeat")).scalars())
        beats = {message.id: message for message in self.sent.values() if isinstance(message, Heartbeat)}
        assert told == Counter({beat for beat in stored if beats[beat].progress})

    def check_sessions(self, accepted: dict[str, Any]) -> None:
        """Fail unless each session stands as its last registration or end left it, and was last seen when it beat."""
        lifecycle = {m.session_id: m for m in accepted.values() if not isinstance(m, bytes | Heartbeat)}
        query = select(Agent.session_id, Agent.ended_at, Liveness.last_seen_at, Liveness.state)
        seen: dict[UUID, datetime] = {}
        beats = Counter((m.id, m.session_id) for m in accepted.values() if isinstance(m, Heartbeat))
        beat_twice = {session_id for (_, session_id), times in beats.items() if times > 1}
        with reading(self.engine) as connection:
            agents = connection.execute(query.join(Liveness, Liveness.session_id == Agent.session_id)).all()
            for session_id, seen_at in connection.execute(select(StoredHeartbeat.session_id, StoredHeartbeat.seen_at)):
                seen[session_id] = max(seen_at, seen.get(session_id, seen_at))
        assert {session_id for session_id, *_ in agents} == set(lifecycle)
        for session_id, ended_at, last_seen_at, state in agents:
            is_open = isinstance(lifecycle[session_id], Register)
            assert (ended_at is None, state != "ended") == (is_open, is_open)
            assert (last_seen_at is None) == (session_id not in seen)
            # What is sent or delivered a second time has no second row; nor has its time when the clock was set back.
            if last_seen_at is not None and (session_id in beat_twice or self.was_set_back):
                assert last_seen_at >= seen[session_id]
            else:
                assert last_seen_at == seen.get(session_id)


@pytest.fixture(autouse=True)
def _template(sqlite_template: Path) -> None:
    Fleet.template = sqlite_template


TestFleet = Fleet.TestCase
if hypothesis.settings.get_current_profile_name() == "long":
    TestFleet.settings = hypothesis.settings(max_examples=1000, stateful_step_count=50, deadline=None)
else:
    # The same steps each time: who changes something shall meet what the change broke, and nothing else.
    TestFleet.settings = hypothesis.settings(max_examples=15, stateful_step_count=40, deadline=None, derandomize=True)

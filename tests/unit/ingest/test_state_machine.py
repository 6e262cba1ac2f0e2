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
from fleetbeat_shared.redis_keys import INBOX
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker import consumer, lane as lane_module
from fleetbeat_worker.broker.entries import CLOCK_STEP_MILLISECONDS, Entry, decode
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.broker.lane import Lane
from fleetbeat_worker.database.engine import open_engine, reading
from fleetbeat_worker.database.tables import Agent, Event, Liveness, StoredHeartbeat
from fleetbeat_worker.ingest import job as ingest, lane, transaction as transactions
from fleetbeat_worker.ingest.job import Ingest
from fleetbeat_worker.ingest.lane import apply_lane
from fleetbeat_worker.ingest.transaction import store_heartbeats
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.sweep.job import sweep
from helpers import backlog, deregister, heartbeat, register, rejected, send, stored_ids

SETTINGS = Settings(batch_size=8, linger_seconds=0.001, lease_seconds=30.0)
POINTS: dict[str, tuple[Any, str]] = {
    "before the transaction": (ingest, "store_heartbeats"),
    "locked": (transactions, "open_batch"),
    "written": (transactions, "write_changes"),
    "committed": (ingest, "store_heartbeats"),
    "acknowledged": (Inbox, "acknowledge"),
    "before the lane": (ingest, "apply_lane"),
    "lane taken": (Lane, "take"),
    "lane locked": (lane, "open_sessions"),
    "lane written": (lane, "write_changes"),
    "lane committed": (lane, "flush"),
    "lane removed": (Lane, "remove"),
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
        for owner, name in (
            (ingest, "BLOCK_SECONDS"),
            (ingest, "FIRST_PAUSE_SECONDS"),
            (consumer, "PACE_SECONDS"),
            (lane_module, "PIECE"),
        ):
            self.patches.enter_context(patch.object(owner, name, 3 if name == "PIECE" else 0.001))
        self.redis = FakeRedis(server=FakeServer())
        folder = Path(self.patches.enter_context(TemporaryDirectory()))
        self.engine = open_engine(f"sqlite:///{shutil.copy(self.template, folder)}")
        self.patches.callback(self.engine.dispose)
        self.inbox = Inbox(self.redis)
        self.inbox.create_group()
        self.sent: dict[str, Register | Heartbeat | Deregister | bytes] = {}
        """What Redis acknowledged, by the entry's key: the model."""
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
        """Let a heartbeat come before its registration, as no producer does."""
        message = register(f"agent-{len(self.sent)}")
        self.send(heartbeat(message.session_id))
        self.send(message)
        return message.session_id

    @rule(number=st.integers(2, 9))
    def take_a_name(self, number: int) -> None:
        """Register sessions that take a name from each other, some with a delegate."""
        for _ in range(number):
            message = register("of many")
            self.send(message)
            self.send(register(f"delegate-{len(self.sent)}", parent_id=message.session_id))

    @rule()
    def send_what_is_no_use(self) -> None:
        """Send what is no message, a heartbeat and an end of nobody, and what belongs to the other stream."""
        self.send(b"\xff")
        self.send(heartbeat(register().session_id))
        self.send(deregister(register().session_id))
        self.send(register().to_wire())

    def send(self, message: Register | Heartbeat | Deregister | bytes) -> None:
        """Send a message, and note it."""
        (entry_id,) = send(self.redis, message)
        self.sent[entry_id if isinstance(message, bytes | Heartbeat) else f"{entry_id}:sessions"] = message

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
        found = self.inbox.read(self.new_worker(), count, 0.001)
        apply_lane(Lane(self.redis, "standing still"), self.redis, self.engine, SETTINGS, 1000)
        return decode(found, self.now(), INBOX) if found else multiple()

    @rule(entries=consumes(held), acknowledges=st.booleans())
    def go_on(self, entries: list[Entry], *, acknowledges: bool) -> None:
        """Store what was taken, also if others have done so meanwhile."""
        store_heartbeats(self.engine, entries, self.now(), SETTINGS)
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

    def now(self) -> int:
        """Return Redis's time in milliseconds."""
        return to_milliseconds(self.inbox.horizon().now)

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
        self.check_events(stored, accepted)
        self.check_sessions(accepted)

    def check_events(self, stored: set[UUID], accepted: dict[str, Any]) -> None:
        """Fail unless each heartbeat with progress, each registration and each end has one event, and no other has."""
        with reading(self.engine) as connection:
            told = Counter(connection.execute(select(Event.message_id).where(Event.message_id.is_not(None))).scalars())
        beats = {message.id: message for message in self.sent.values() if isinstance(message, Heartbeat)}
        others = {message.id for message in accepted.values() if isinstance(message, Register | Deregister)}
        assert told == Counter(others | {beat for beat in stored if beats[beat].progress})

    @staticmethod
    def model(accepted: dict[str, Any]) -> dict[UUID, bool]:
        """Return which sessions there are, and whether each is open: a copy changes nothing, a name has one session."""
        is_open: dict[UUID, bool] = {}
        names: dict[UUID, str] = {}
        applied = set()
        for message in accepted.values():
            if isinstance(message, bytes | Heartbeat) or message.id in applied:
                continue
            applied.add(message.id)
            if isinstance(message, Register):
                is_open |= {key: False for key, name in names.items() if name == message.agent_name}
                names[message.session_id] = message.agent_name
            is_open[message.session_id] = isinstance(message, Register)
        return is_open

    def check_sessions(self, accepted: dict[str, Any]) -> None:
        """Fail unless each session stands as registrations and ends left it, and was last seen when it beat."""
        is_open = self.model(accepted)
        query = select(Agent.session_id, Agent.ended_at, Liveness.last_seen_at, Liveness.state)
        seen: dict[UUID, datetime] = {}
        beats = Counter((m.id, m.session_id) for m in accepted.values() if isinstance(m, Heartbeat))
        beat_twice = {session_id for (_, session_id), times in beats.items() if times > 1}
        with reading(self.engine) as connection:
            agents = connection.execute(query.join(Liveness, Liveness.session_id == Agent.session_id)).all()
            for session_id, seen_at in connection.execute(select(StoredHeartbeat.session_id, StoredHeartbeat.seen_at)):
                seen[session_id] = max(seen_at, seen.get(session_id, seen_at))
        assert {session_id: ended_at is None for session_id, ended_at, *_ in agents} == is_open
        for session_id, ended_at, last_seen_at, state in agents:
            assert (state == "ended") == (ended_at is not None)
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

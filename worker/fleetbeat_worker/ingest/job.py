"""The job that moves messages from the inbox to SQL.

It takes a batch, stores it in one transaction, acknowledges it, and so on until the inbox stayed empty for a while, its
time is up, or other work waits. What a dead worker held is taken over in smaller and smaller units:

    delivery count   who died with it                        taken
    0                nobody: it was laid down in order        with others, as many as fit in a batch
    1                a worker, with a whole batch             with a few others
    2 to 4           a worker, with a few; then with it alone alone
    5                three workers running, with it alone     not at all: set aside as poison
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from threading import Event as ThreadEvent, Thread

from redis import Redis
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeout,
)
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.messages import Reason
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.errand import Errand
from fleetbeat_worker.broker.inbox import Entry, Inbox, Pending, is_missing
from fleetbeat_worker.broker.wire import Understood, understand
from fleetbeat_worker.database.engine import flush, writing
from fleetbeat_worker.ingest.transaction import follow_up, put_right, set_aside, store_entries
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import (
    BATCH_MESSAGES,
    BATCH_SECONDS,
    DATABASE_FAILURES,
    TAKEN_OVER,
    count,
    observe,
)
from fleetbeat_worker.telemetry.problems import ProblemReporter

SUSPECTS_TOGETHER = 32
"""How many entries are taken together after a whole batch died."""
DIED_TOGETHER = 1
DIED_ALONE_THRICE = 5

BLOCK_SECONDS = 0.2
"""How long one wait for messages lasts: between two, the job looks whether it should end."""
PACE_SECONDS = 0.05
"""Batches that aren't full follow each other no faster: twenty commits a second cost little, fifty cost twice that."""
FAIR_SHARE_SECONDS = 0.5
"""How long a job that finds the database there works before it makes room."""
DATABASE_IS_BACK = "The database takes messages again."
PUT_RIGHT_SECONDS = 1.0
"""How long after a message of an unknown session the registration that it overtook is looked for again."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
"""Between two looks whether the database, or Redis, is there again."""
REDIS_PATIENCE_SECONDS = 60.0
"""How long a stored batch waits to be acknowledged when Redis is away; afterwards it is delivered again, in vain."""


OBJECTS_UNTIL_COLLECTION = 200_000
"""A batch makes some thousand objects, none in a circle: looking for circles took a fifth of its time."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Entries that are stored and acknowledged together."""

    entries: list[Entry]
    deliveries: int
    """The delivery count that they had before they were taken."""
    understood: Understood | None = None
    """What they hold, if that is known already."""

    @property
    def ids(self) -> list[str]:
        """The entries' ids."""
        return [entry.id for entry in self.entries]


class Ahead:
    """The next entries; fetched and understood by a thread, if a database server stores the ones before meanwhile."""

    def __init__(self, inbox: Inbox, errand: Errand | None = None, done: Sequence[str] = ()) -> None:
        """Prepare to fetch what an errand was sent for; without one there is nothing."""
        self._inbox = inbox
        self._errand = errand
        self.done = done
        """The entries that the errand acknowledges."""
        self._thread: Thread | None = None
        self._found: tuple[list[Entry], bool, Understood] | RedisError | None = None

    def begin(self) -> None:
        """Begin, unless that was done."""
        if self._errand is not None and self._thread is None:
            self._thread = Thread(target=self._fetch, args=(self._errand,), name="ahead", daemon=True)
            self._thread.start()

    def _fetch(self, errand: Errand) -> None:
        try:
            entries, is_all = self._inbox.fetch(errand)
        except RedisError as error:
            self._found = error
        else:
            self._found = entries, is_all, understand(entries)

    def result(self) -> tuple[list[Entry], bool, Understood] | None:
        """Return the entries, whether they are all that came, and what they hold. Raises redis-py's errors."""
        if self._thread is not None:
            self._thread.join()
        elif self._errand is not None:
            self._fetch(self._errand)
        if isinstance(self._found, RedisError):
            raise self._found
        return self._found


class Flushing:
    """Entries that are committed and on their way to the disk, in a thread: only then are they acknowledged."""

    def __init__(self, engine: Engine, ids: list[str]) -> None:
        """Begin."""
        self._engine = engine
        self.ids = ids
        self._failure: DatabaseUnavailable | None = None
        self._thread = Thread(target=self._flush, name="flush", daemon=True)
        self._thread.start()

    def _flush(self) -> None:
        try:
            flush(self._engine)
        except DatabaseUnavailable as error:
            self._failure = error

    def wait(self) -> None:
        """Wait until they are there. Raises DatabaseUnavailable when the disk fails."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure


class Ingest:
    """One run of the job, in one process."""

    def __init__(  # noqa: PLR0913 - what it works with, and the two who may end it
        self,
        client: Redis,
        engine: Engine,
        settings: Settings,
        consumer: str,
        *,
        stop: Callable[[], bool] = lambda: False,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take from the inbox under the name `consumer`.

        Between batches, `stop` is asked whether to end early, and `make_room` whether other work waits; as long as the
        database is away that can't be done either.
        """
        self._client = client
        self._inbox = Inbox(client)
        self._engine = engine
        self._settings = settings
        self._consumer = consumer
        self._stop = stop
        self._make_room = make_room
        self._held: list[str] = []
        self._ahead: Unit | None = None
        self._stored: list[str] = []
        self._flushing: Flushing | None = None
        self._own_may_be_pending = True
        self._look_for_expired_at = 0.0
        self._put_right_at: float | None = None
        self._taken_at = 0.0
        self._paced_from = 0.0
        self._problem = ProblemReporter("database", "ingest")
        self._database_is_there = False
        self._database_pause = 0.0
        self._share_ends_at = 0.0
        self._ends_at = 0.0
        self.stored = 0
        """Entries that this run stored (or set aside)."""

    def run(self, seconds: float) -> int:
        """Work for some seconds at most; return how many entries were stored.

        Raises redis-py's errors when Redis is away.
        """
        self._ends_at = time.monotonic() + seconds
        quiet_since = time.monotonic()
        with _few_collections(), self._leases_renewed():
            while True:
                if not self._database_ready():
                    quiet_since = time.monotonic()
                elif unit := self._next_unit(min(BLOCK_SECONDS, max(0.0, self._ends_at - time.monotonic()))):
                    self._process(unit)
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since >= self._settings.linger_seconds and self._put_right_at is None:
                    self._problem.resolve(DATABASE_IS_BACK)  # nothing is left that it could refuse
                    break
                self._put_right_when_due()
                if self._is_over() or self._gives_way():
                    break
            self._ends_at = 0.0  # so that nothing more is sent for
            self._acknowledge()
            if self._ahead is not None:  # laid down, it would wait until somebody looks for it
                unit, self._ahead = self._ahead, None
                self._process(unit)
        self._inbox.leave(self._consumer)
        return self.stored

    def _is_over(self) -> bool:
        return time.monotonic() >= self._ends_at or self._stop()

    def _gives_way(self) -> bool:
        """Return whether other work waits and this one had its share.

        Sweeps that take longer than their interval would leave no room for any message otherwise, and a job that stores
        one batch costs several times what the batch does.
        """
        has_had_share = self._database_is_there and time.monotonic() >= self._share_ends_at
        return has_had_share and self._make_room()

    def _next_unit(self, block_seconds: float) -> Unit | None:
        if self._ahead is not None:
            unit, self._ahead = self._ahead, None
            return unit
        try:
            return self._recovered_unit() or self._fresh_unit(block_seconds)
        except ResponseError as error:
            if not is_missing(error):
                raise
            # Redis came back without its data, or nobody has been here before.
            self._inbox.create_group()
            return None

    def _recovered_unit(self) -> Unit | None:
        """Return entries that this consumer's earlier life, or another that died, left behind."""
        size = self._settings.batch_size
        lease = self._settings.lease_seconds
        while self._own_may_be_pending:
            pending = self._inbox.pending_of(self._consumer, size)
            if not pending:
                self._own_may_be_pending = False
            elif unit := self._take_over(pending, 0.0):
                return unit
        while time.monotonic() >= self._look_for_expired_at:
            pending = self._inbox.expired(lease, size)
            if not pending:
                self._look_for_expired_at = time.monotonic() + lease / 3
            elif unit := self._take_over(pending, lease):
                return unit
        return None

    def _take_over(self, pending: Sequence[Pending], idle_seconds: float) -> Unit | None:
        deliveries = pending[0].deliveries
        size = {0: len(pending), DIED_TOGETHER: SUSPECTS_TOGETHER}.get(deliveries, 1)
        ids = [item.id for item in pending[:size] if item.deliveries == deliveries]
        entries = self._inbox.take_over(self._consumer, ids, idle_seconds)
        if deliveries:
            logger.warning("Messages of a worker that died are taken over", extra={"count": len(entries)})
            count(TAKEN_OVER, len(entries))
        return Unit(entries, deliveries) if entries else None

    def _fresh_unit(self, block_seconds: float) -> Unit | None:
        time.sleep(max(0.0, min(PACE_SECONDS, self._paced_from + PACE_SECONDS - time.monotonic())))
        entries = self._inbox.read(self._consumer, self._settings.batch_size, block_seconds)
        self._taken_at = time.monotonic()
        return Unit(entries, 0) if entries else None

    def _process(self, unit: Unit) -> None:
        self._held = unit.ids
        ahead = Ahead(self._inbox)
        try:
            now = self._now()  # before Redis is busy with what is sent for
            ahead = self._send_for_more(unit)
            self._store(unit, now, ahead.begin)
            self._settle()  # of the batch before this one, which had its time
        except DatabaseUnavailable as error:
            # That is no fault of the messages: they are laid down with the delivery count that they had.
            self._lay_down(unit, ahead)
            self._trouble_with_database(error)
        except Exception as error:  # Redis failed us, say, or a table is missing: no process died of it
            self._lay_down(unit, ahead)
            if isinstance(error, SQLAlchemyError):
                time.sleep(LONGEST_PAUSE_SECONDS)  # the dispatcher sends the next job at once
            raise
        else:
            # Only now: a database whose disk is full, or of which a table is locked, answers all the same.
            self._database_pause = 0.0
            self._problem.resolve(DATABASE_IS_BACK)
            self.stored += len(unit.entries)
            self._paced_from = 0.0 if self._is_full(unit) or unit.deliveries else self._taken_at
            self._ahead = self._fetch(ahead)
            self._flushing = Flushing(self._engine, unit.ids)
            if self._ahead is None:
                self._acknowledge()
        finally:
            self._held = self._ahead.ids if self._ahead is not None else []

    def _send_for_more(self, unit: Unit) -> Ahead:
        """Let Redis bring the next entries while SQL takes these, and acknowledge the last ones.

        Not beside what a dead worker left: the death of this one would be blamed on both. Nor when its turn has come.
        """
        looks_for_others = self._own_may_be_pending or time.monotonic() >= self._look_for_expired_at
        if not looks_for_others and not unit.deliveries and self._is_full(unit) and not self._is_over():
            with suppress(RedisConnectionError, RedisTimeout):
                errand = self._inbox.send_for(self._consumer, self._settings.batch_size, self._stored)
                done, self._stored = self._stored, []
                return Ahead(self._inbox, errand, done)
        self._acknowledge()
        return Ahead(self._inbox)

    def _fetch(self, ahead: Ahead) -> Unit | None:
        """Return what was sent for, if it came; then what was to be acknowledged with it has been."""
        try:
            found = ahead.result()
        except RedisError as error:
            logger.debug("Entries that were sent for didn't come: %s", type(error).__name__)
            self._own_may_be_pending = True  # Redis may have handed them out all the same
            self._stored += ahead.done
            return None
        if found is None:
            return None
        entries, is_all, understood = found
        self._own_may_be_pending = not is_all
        return Unit(entries, 0, understood) if entries else None

    def _is_full(self, unit: Unit) -> bool:
        return len(unit.entries) >= self._settings.batch_size

    def _settle(self) -> None:
        """Wait for what is on its way to the disk; what doesn't get there is laid down and stored again."""
        if self._flushing is None:
            return
        flushing, self._flushing = self._flushing, None
        try:
            flushing.wait()
        except DatabaseUnavailable:
            lease = self._settings.lease_seconds
            self._patiently(lambda: self._inbox.release(self._consumer, flushing.ids, lease, 0))
            raise
        self._stored += flushing.ids

    def _acknowledge(self) -> None:
        """Acknowledge what was stored and not acknowledged yet."""
        try:
            self._settle()
        finally:
            if self._stored:
                self._patiently(lambda: self._inbox.acknowledge(self._stored, self._consumer))
                self._stored = []

    def _lay_down(self, unit: Unit, ahead: Ahead) -> None:
        """Lay down entries for anybody to take, and those that were sent for."""
        more = self._fetch(ahead)
        unit = Unit(unit.entries + (more.entries if more else []), unit.deliveries)
        self._held = []  # first, so that their leases aren't renewed meanwhile
        lease = self._settings.lease_seconds
        self._patiently(lambda: self._inbox.release(self._consumer, unit.ids, lease, unit.deliveries))
        self._own_may_be_pending = True

    def _store(self, unit: Unit, now: datetime, meanwhile: Callable[[], None]) -> None:
        started_at = time.monotonic()
        if unit.deliveries >= DIED_ALONE_THRICE:
            detail = "three times running, a process died while it worked on this message alone"
            batches = [set_aside(self._engine, entry, now, Reason.POISON, detail) for entry in unit.entries]
        else:
            batches = store_entries(self._engine, unit.entries, now, self._settings, unit.understood, meanwhile)
        observe(BATCH_SECONDS, time.monotonic() - started_at)
        observe(BATCH_MESSAGES, len(unit.entries))
        if any(batch.replies for batch in batches):
            flush(self._engine)  # whoever waits is told what is certain
        for batch in batches:
            follow_up(self._client, batch)
            if any(row["awaits_session_id"] for row in batch.rejected):
                self._put_right_at = time.monotonic() + PUT_RIGHT_SECONDS
            if any(agent.promised for agent in batch.agents.values()):  # registered, or opened anew
                self._put_right_at = time.monotonic()

    def _put_right_when_due(self) -> None:
        if self._put_right_at is None or time.monotonic() < self._put_right_at:
            return
        self._put_right_at = None
        try:
            put_right(self._engine, self._client, self._now(), self._settings)
        except DatabaseUnavailable as error:
            logger.debug("Left to the next sweep: %s", error)

    def _now(self) -> datetime:
        return self._inbox.horizon().now

    def _database_ready(self) -> bool:
        """Make sure of the database before anything is taken; wait a little if it is away.

        Nobody holds messages while waiting: a worker that is killed then takes none of them down with it.
        """
        if self._database_is_there:
            return True
        time.sleep(self._database_pause)
        try:
            with writing(self._engine) as connection:
                connection.execute(text("SELECT 1"))
        except DatabaseUnavailable as error:
            self._trouble_with_database(error)
            return False
        self._database_is_there = True
        self._share_ends_at = time.monotonic() + FAIR_SHARE_SECONDS
        return True

    def _trouble_with_database(self, error: DatabaseUnavailable) -> None:
        count(DATABASE_FAILURES)
        self._problem.report(f"{error} Messages wait in the inbox.")
        self._database_is_there = False
        self._database_pause = min(self._database_pause * 2 or FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)

    def _patiently(self, act: Callable[[], None]) -> None:
        """Do something that Redis must hear, however long it takes to come back (within reason)."""
        gives_up_at = time.monotonic() + REDIS_PATIENCE_SECONDS
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return act()
            except (RedisConnectionError, RedisTimeout):
                if time.monotonic() + pause > gives_up_at:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    @contextmanager
    def _leases_renewed(self) -> Iterator[None]:
        """Renew the leases of what is held, from a thread: a transaction may take longer than a lease."""
        done = ThreadEvent()

        def renew() -> None:
            while not done.wait(self._settings.lease_seconds / 3):
                held = self._held
                if held:
                    try:
                        self._inbox.renew(self._consumer, held)
                    except RedisError as error:
                        logger.debug("Leases can't be renewed now: %s", type(error).__name__)

        thread = Thread(target=renew, name="leases", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@contextmanager
def _few_collections() -> Iterator[None]:
    before = gc.get_threshold()
    gc.freeze()  # what was there before, such as imported modules, isn't looked through again and again
    gc.set_threshold(OBJECTS_UNTIL_COLLECTION, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()

"""The job that moves messages from the inbox and the lane to SQL.

It applies what waits in the lane, takes a batch from the inbox, applies what came into the lane before it, stores the
batch in one transaction, acknowledges it, and so on until nothing came for a while, its time is up, or other work
waits.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.messages import Reason
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.consumer import Consumer, Prefetch, Unit
from fleetbeat_worker.broker.lane import Lane
from fleetbeat_worker.database.engine import flush, writing
from fleetbeat_worker.ingest.lane import apply_lane
from fleetbeat_worker.ingest.transaction import POISON, follow_up, set_aside, store_heartbeats
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import BATCH_MESSAGES, BATCH_SECONDS, DATABASE_FAILURES, count, observe
from fleetbeat_worker.telemetry.problems import ProblemReporter

BLOCK_SECONDS = 0.2
"""How long one wait for messages lasts: between two, the job looks at the lane, and whether it should end."""
LANE_WHILE_HOLDING = 500
"""How many entries of the lane are applied at most while heartbeats are in hand: they are released where more wait."""
FAIR_SHARE_SECONDS = 0.5
"""How long a job that finds the database there works before it makes room."""
DATABASE_IS_BACK = "The database takes messages again."
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
"""Between two looks whether the database is there again."""
OBJECTS_UNTIL_COLLECTION = 200_000
"""A batch makes some thousand objects, none in a circle: looking for circles took a fifth of its time."""


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
        """Take from the inbox and the lane under the name `consumer`.

        Between batches, `stop` is asked whether to end early, and `make_room` whether other work waits; as long as the
        database is away that can't be done either.
        """
        self._client = client
        self._engine = engine
        self._settings = settings
        self._consumer = Consumer(client, consumer, settings)
        self._lane = Lane(client, consumer)
        self._stop = stop
        self._make_room = make_room
        self._ahead: Unit | None = None
        self._stored: list[str] = []
        self._flushing: Flushing | None = None
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
        with _few_collections(), self._consumer.leases_renewed():
            while True:
                if self._work():
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since >= self._settings.linger_seconds:
                    self._problem.resolve(DATABASE_IS_BACK)  # nothing is left that it could refuse
                    break
                if self._is_over() or self._gives_way():
                    break
            self._ends_at = 0.0  # so that nothing more is prefetched
            self._acknowledge()
            if self._ahead is not None:  # released, it would wait until another job looks for it
                unit, self._ahead = self._ahead, None
                self._process(unit)
        self._consumer.leave()
        return self.stored

    def _work(self) -> bool:
        """Store what comes next; tell whether there was anything to do, or the database is away."""
        if not self._database_ready():
            return True
        unit, self._ahead = self._ahead, None
        if unit is None:
            # With empty hands: if a message of the lane kills this process, no heartbeat is blamed for it.
            try:
                if self._apply_lane(1):
                    return True
            except DatabaseUnavailable as error:
                self._trouble_with_database(error)
                return True
            except SQLAlchemyError:
                time.sleep(LONGEST_PAUSE_SECONDS)  # the dispatcher sends the next job at once
                raise
            unit = self._consumer.take(min(BLOCK_SECONDS, max(0.0, self._ends_at - time.monotonic())))
        if unit is None:
            return False
        self._process(unit)
        return True

    def _apply_lane(self, backlog: int) -> int:
        applied = apply_lane(self._lane, self._client, self._engine, self._settings, backlog)
        self.stored += applied
        return applied

    def _is_over(self) -> bool:
        return time.monotonic() >= self._ends_at or self._stop()

    def _gives_way(self) -> bool:
        """Return whether other work waits and this one had its share.

        Sweeps that take longer than their interval would leave no room for any message otherwise, and a job that stores
        one batch costs several times what the batch does.
        """
        has_had_share = self._database_is_there and time.monotonic() >= self._share_ends_at
        return has_had_share and self._make_room()

    def _process(self, unit: Unit) -> None:
        self._consumer.held = unit.ids
        prefetch: Prefetch | None = None
        if unit.lane_backlog > LANE_WHILE_HOLDING:
            self._release(unit, None)  # and comes back to it when the lane is applied
            return
        try:
            self._apply_lane(unit.lane_backlog)  # what was registered before these heartbeats is there, too
            prefetch = self._prefetch(unit)
            self._store(unit, prefetch)
            self._settle()  # of the batch before this one, which had its time
        except DatabaseUnavailable as error:
            # That is no fault of the messages: they are released with the delivery count that they had.
            self._release(unit, prefetch)
            self._trouble_with_database(error)
        except Exception as error:  # Redis failed us, say, or a table is missing: no process died of it
            self._release(unit, prefetch)
            if isinstance(error, SQLAlchemyError):
                time.sleep(LONGEST_PAUSE_SECONDS)  # the dispatcher sends the next job at once
            raise
        else:
            # Only now: a database whose disk is full, or of which a table is locked, answers all the same.
            self._database_pause = 0.0
            self._problem.resolve(DATABASE_IS_BACK)
            self.stored += len(unit.entries)
            self._ahead = self._fetched(prefetch)
            self._flushing = Flushing(self._engine, unit.ids)
            if self._ahead is None:
                self._acknowledge()
        finally:
            self._consumer.held = self._ahead.ids if self._ahead is not None else ()

    def _prefetch(self, unit: Unit) -> Prefetch | None:
        """Let Redis bring the next entries while SQL takes these, and acknowledge the last ones, with them or alone."""
        prefetch = None if self._is_over() else self._consumer.prefetch(unit, self._stored)
        if prefetch is None:
            self._acknowledge()
        else:
            self._stored = []
        return prefetch

    def _fetched(self, prefetch: Prefetch | None) -> Unit | None:
        """Wait for what was prefetched, if it came; then what was to be acknowledged with it has been."""
        if prefetch is None:
            return None
        try:
            return self._consumer.fetched(prefetch)
        except RedisError as error:
            logger.debug("Entries that were prefetched didn't come: %s", type(error).__name__)
            self._stored += prefetch.done
            return None

    def _settle(self) -> None:
        """Wait for what is on its way to the disk; what doesn't get there is released and stored again."""
        if self._flushing is None:
            return
        flushing, self._flushing = self._flushing, None
        try:
            flushing.wait()
        except DatabaseUnavailable:
            self._consumer.release(flushing.ids, 0)
            raise
        self._stored += flushing.ids

    def _acknowledge(self) -> None:
        """Acknowledge what was stored and not acknowledged yet."""
        try:
            self._settle()
        finally:
            if self._stored:
                self._consumer.acknowledge(self._stored)
                self._stored = []

    def _release(self, unit: Unit, prefetch: Prefetch | None) -> None:
        """Release entries for any worker to take, and those that were prefetched."""
        more = self._fetched(prefetch)
        self._consumer.release(unit.ids + (more.ids if more else []), unit.deliveries)

    def _store(self, unit: Unit, prefetch: Prefetch | None) -> None:
        started_at = time.monotonic()
        if unit.is_poison:
            done = [set_aside(self._engine, entry, unit.now, Reason.POISON, POISON) for entry in unit.entries]
        else:
            meanwhile = None if prefetch is None else prefetch.begin
            done = store_heartbeats(self._engine, unit.entries, unit.now, self._settings, meanwhile)
        observe(BATCH_SECONDS, time.monotonic() - started_at)
        observe(BATCH_MESSAGES, len(unit.entries))
        if any(changes.replies for changes in done):
            flush(self._engine)  # whoever waits is told what is certain
        for changes in done:
            follow_up(self._client, changes)

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

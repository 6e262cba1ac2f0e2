"""Consumer: takes entries from the inbox in units, renews their leases, acknowledges them or releases them.

What a dead worker held is taken over in smaller and smaller units:

    delivery count   who died with it                         taken
    0                no worker: it was released in order       with others, as many as fit in a batch
    1                a worker, with a whole batch              with a few others
    2 to 4           a worker, with a few; then with it alone  alone
    5                three workers running, with it alone      not decoded: set aside as poison
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

from redis import Redis
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeout,
)

from fleetbeat_shared.redis_keys import GROUP, INBOX, SESSIONS
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.accounting import take_out_command
from fleetbeat_worker.broker.entries import Entry, RawEntry, decode, entries_read, leave_undecoded, size_of
from fleetbeat_worker.broker.inbox import READ_BYTES, READ_STEP, Inbox, Pending, is_missing
from fleetbeat_worker.broker.server import milliseconds_of
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import TAKEN_OVER, count

SUSPECTS_TOGETHER = 32
"""How many entries are taken together after a whole batch died."""
DIED_TOGETHER = 1
DIED_ALONE_THRICE = 5

PACE_SECONDS = 0.05
"""Batches that aren't full follow each other no faster: twenty commits a second cost little, fifty cost twice that."""
REDIS_PATIENCE_SECONDS = 60.0
"""How long a stored batch waits to be acknowledged when Redis is away; afterwards it is delivered again, and changes
nothing."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
"""Between two tries to reach Redis."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Entries that are stored and acknowledged together."""

    entries: list[Entry]
    deliveries: int
    """The delivery count that they had before they were taken."""
    now: int
    """Redis's time after they were read, in milliseconds."""
    lane_backlog: int
    """How many registrations and deregistrations waited after they were read: those before them are among these."""

    @property
    def ids(self) -> list[str]:
        """The entries' ids."""
        return [entry.id for entry in self.entries]

    @property
    def is_poison(self) -> bool:
        """Whether it is an entry with which three workers running died alone: it isn't decoded."""
        return self.deliveries >= DIED_ALONE_THRICE


class Prefetch:
    """The next entries, which Redis hands out while this process stores the ones before.

    All commands are sent at once, and each answer is read when it is wanted. Reading and acknowledging a batch takes
    Redis 3 µs for each entry, an eighth of all the time that ingest takes. A second thread that waits for it wins
    nothing, as it takes Python's lock from the one that stores: measured, 44,000/s with it and without it, and 49,000/s
    so.
    """

    def __init__(self, client: Redis, name: str, count: int, done: Sequence[str]) -> None:
        """Acknowledge the entries `done`, and ask for `count` others. Raises redis-py's errors."""
        self._client = client
        self.done = done
        self._thread: Thread | None = None
        self._found: tuple[Unit, bool] | RedisError | None = None
        acknowledge = take_out_command(INBOX, done, name) if done else ("PING",)
        reads = [
            ("XREADGROUP", "GROUP", GROUP, name, "COUNT", min(READ_STEP, count - start), "STREAMS", INBOX, ">")
            for start in range(0, count, READ_STEP)
        ]
        self._reads = len(reads)
        self._unread = len(reads) + 3
        self._pool: Any = client.connection_pool
        self._connection: Any = self._pool.get_connection()
        try:
            commands = [acknowledge, *reads, ("XLEN", SESSIONS), ("TIME",)]
            packed = self._connection.pack_commands(commands)  # type: ignore[no-untyped-call] # redis-py has no hint there
            self._connection.send_packed_command(packed)  # type: ignore[no-untyped-call] # nor there
        except BaseException:
            self._end()
            raise

    def begin(self) -> None:
        """Read and decode in a thread from now on: a database server stores the ones before meanwhile."""
        if self._thread is None:
            self._thread = Thread(target=self._read, name="prefetch", daemon=True)
            self._thread.start()

    def result(self) -> tuple[Unit, bool]:
        """Wait for the entries, and tell whether they are all that Redis handed out: of large ones some stay pending.

        When this raises ResponseError none was handed out; with redis-py's other errors that is unknown.
        """
        if self._thread is None:
            self._read()
        else:
            self._thread.join()
        if not isinstance(self._found, tuple):
            raise self._found or RedisError
        return self._found

    def _read(self) -> None:
        found: list[RawEntry] = []
        size = 0
        try:
            try:
                self._answer()  # of the acknowledgement
                for _ in range(self._reads):
                    if size >= READ_BYTES:
                        break
                    step = entries_read(self._answer())
                    found += step
                    size += size_of(step)
                is_all = size < READ_BYTES
                backlog_and_time = (self._answer(), self._answer()) if is_all else None
            finally:
                self._end()
            self._found = _unit(self._client, found, 0, backlog_and_time), is_all
        except RedisError as error:
            self._found = error

    def _answer(self) -> Any:  # noqa: ANN401 - Redis's answer, as it comes
        try:
            answer = self._connection.read_response()
        except ResponseError:
            self._unread -= 1
            raise
        self._unread -= 1
        return answer

    def _end(self) -> None:
        """Give the connection back; closed, if an answer wasn't read, which would be taken for another command's."""
        if self._unread:
            self._connection.disconnect()
        self._pool.release(self._connection)


class Consumer:
    """Takes entries from the inbox under one name. Its methods raise redis-py's errors."""

    def __init__(self, client: Redis, name: str, settings: Settings) -> None:
        self._client: Any = client  # redis-py's hints can't tell its sync answers from its async ones
        self._inbox = Inbox(client)
        self._name = name
        self._size = settings.batch_size
        self._lease_seconds = settings.lease_seconds
        self._own_may_be_pending = True
        self._look_for_expired_at = 0.0
        self._paced_from = 0.0
        self.held: Sequence[str] = ()
        """The entries whose leases are renewed."""

    def take(self, block_seconds: float) -> Unit | None:
        """Take entries that a dead worker left, or others, waiting for the first one for a time."""
        try:
            return self._take_recovered() or self._take_fresh(block_seconds)
        except ResponseError as error:
            if not is_missing(error):
                raise
            # Redis came back without its data, or no worker has been here before.
            self._inbox.create_group()
            return None

    def _take_recovered(self) -> Unit | None:
        """Take entries that this consumer's earlier life, or another that died, left behind."""
        while self._own_may_be_pending:
            pending = self._inbox.pending_of(self._name, self._size)
            if not pending:
                self._own_may_be_pending = False
            elif unit := self._take_over(pending, 0.0):
                return unit
        while clock.monotonic() >= self._look_for_expired_at:
            pending = self._inbox.expired(self._lease_seconds, self._size)
            if not pending:
                self._look_for_expired_at = clock.monotonic() + self._lease_seconds / 3
            elif unit := self._take_over(pending, self._lease_seconds):
                return unit
        return None

    def _take_over(self, pending: Sequence[Pending], idle_seconds: float) -> Unit | None:
        deliveries = pending[0].deliveries
        size = {0: len(pending), DIED_TOGETHER: SUSPECTS_TOGETHER}.get(deliveries, 1)
        ids = [item.id for item in pending[:size] if item.deliveries == deliveries]
        found = self._inbox.take_over(self._name, ids, idle_seconds)
        if deliveries:
            logger.warning("Messages of a worker that died are taken over", extra={"count": len(found)})
            count(TAKEN_OVER, len(found))
        return self._unit(found, deliveries)

    def _take_fresh(self, block_seconds: float) -> Unit | None:
        clock.sleep(max(0.0, min(PACE_SECONDS, self._paced_from + PACE_SECONDS - clock.monotonic())))
        found = self._inbox.read(self._name, self._size, block_seconds)
        self._paced_from = 0.0 if len(found) >= self._size else clock.monotonic()
        return self._unit(found, 0)

    def _unit(self, found: Sequence[RawEntry], deliveries: int) -> Unit | None:
        try:
            return _unit(self._client, found, deliveries) if found else None
        except RedisError:  # it went away between the two: no process died
            self.release([entry.id for entry in found], deliveries)
            raise

    def prefetch(self, unit: Unit, done: Sequence[str]) -> Prefetch | None:
        """Acknowledge the entries `done` and ask for the next ones, while `unit` is stored; None if it isn't the time.

        Not beside what a dead worker left: the death of this one would be blamed on both. Nor when its turn has come.
        """
        looks_for_others = self._own_may_be_pending or clock.monotonic() >= self._look_for_expired_at
        if looks_for_others or unit.deliveries or len(unit.entries) < self._size:
            return None
        with suppress(RedisConnectionError, RedisTimeout):
            return Prefetch(self._client, self._name, self._size, done)
        return None

    def fetched(self, prefetch: Prefetch) -> Unit | None:
        """Wait for what was asked for. Raises redis-py's errors; then nobody knows what Redis handed out."""
        self._own_may_be_pending = True
        unit, is_all = prefetch.result()
        self._own_may_be_pending = not is_all
        return unit if unit.entries else None

    def release(self, ids: Sequence[str], deliveries: int) -> None:
        """Give entries back, for any worker to take at once, with the delivery count that they had before."""
        self.held = ()  # first, so that their leases aren't renewed meanwhile
        _until_redis_answers(lambda: self._inbox.release(self._name, ids, self._lease_seconds, deliveries))
        self._own_may_be_pending = True

    def acknowledge(self, ids: Sequence[str]) -> None:
        """Remove entries that are stored, however long it takes Redis to come back (within reason)."""
        _until_redis_answers(lambda: self._inbox.acknowledge(ids, self._name))

    def leave(self) -> None:
        """Remove this consumer unless entries are in its hands."""
        self._inbox.leave(self._name)

    @contextmanager
    def leases_renewed(self) -> Iterator[None]:
        """Renew the leases of what is held, from a thread: a transaction may take longer than a lease."""
        done = Event()

        def renew() -> None:
            while not done.wait(self._lease_seconds / 3):
                if held := self.held:
                    try:
                        self._inbox.renew(self._name, held)
                    except RedisError as error:
                        logger.debug("Leases can't be renewed now: %s", type(error).__name__)

        thread = Thread(target=renew, name="leases", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _unit(
    client: Redis, found: Sequence[RawEntry], deliveries: int, backlog_and_time: tuple[int, Any] | None = None
) -> Unit:
    """Decode entries, unless they are poison, as of what Redis said of the lane and the time after they were read."""
    if backlog_and_time is None:
        with client.pipeline(transaction=False) as pipe:
            pipe.xlen(SESSIONS)
            pipe.time()
            lane_backlog, time = pipe.execute()
    else:
        lane_backlog, time = backlog_and_time
    now = milliseconds_of(time)
    if deliveries >= DIED_ALONE_THRICE:
        return Unit(leave_undecoded(found, now, INBOX), deliveries, now, lane_backlog)
    return Unit(decode(found, now, INBOX), deliveries, now, lane_backlog)


def _until_redis_answers(act: Callable[[], None]) -> None:
    gives_up_at = clock.monotonic() + REDIS_PATIENCE_SECONDS
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return act()
        except (RedisConnectionError, RedisTimeout):
            if clock.monotonic() + pause > gives_up_at:
                raise
            clock.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

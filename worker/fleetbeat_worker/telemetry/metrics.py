"""Metrics: their names and meanings, and how to count.

Counting does nothing unless `keep_counters` was called before the process was forked: only a pool with a port for
metrics does that.
"""

from __future__ import annotations

from bisect import bisect_left
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate

from fleetbeat_shared.messages import Reason
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.telemetry.shared_counters import Counters


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter with up to two labels."""

    name: str
    meaning: str
    label: str | None = None
    values: tuple[str, ...] = ("",)
    second_label: str | None = None
    second_values: tuple[str, ...] = ("",)

    @property
    def width(self) -> int:
        """How many numbers it needs: one for each value, or for each pair of values."""
        return len(self.values) * len(self.second_values)

    def place(self, value: str, second_value: str) -> int:
        """Derive the index of the number for these values."""
        return self.values.index(value) * len(self.second_values) + self.second_values.index(second_value)


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram: the number of measurements in each bucket, and their sum."""

    name: str
    meaning: str
    bounds: tuple[float, ...]
    """The upper bounds of the buckets; there is one more bucket beyond the last."""

    @property
    def width(self) -> int:
        """How many numbers it needs: the buckets, the one beyond, the sum."""
        return len(self.bounds) + 2


@dataclass(frozen=True, slots=True)
class Gauge:
    """A gauge, read at each scrape, with at most one label."""

    name: str
    meaning: str
    label: str | None = None
    values: tuple[str, ...] = ()
    """Values that are shown as 0 when none is read."""


INGESTED = Counter(
    "fleetbeat_ingested_total",
    "Messages stored in SQL; one that is delivered twice counts once.",
    "kind",
    ("heartbeat", "register", "deregister"),
)
REJECTED = Counter(
    "fleetbeat_rejected_total",
    "Messages set aside in rejected_messages.",
    "reason",
    tuple(reason.value for reason in Reason),
)
TAKEN_OVER = Counter("fleetbeat_taken_over_total", "Messages taken over from a worker that died.")
BATCH_SECONDS = Histogram(
    "fleetbeat_batch_seconds",
    "Time to store a batch of messages, its transaction included.",
    (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
BATCH_MESSAGES = Histogram(
    "fleetbeat_batch_messages", "Messages in a batch.", (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
)
DATABASE_RETRIES = Counter(
    "fleetbeat_database_retries_total", "Transactions that lost against another and were retried."
)
DATABASE_FAILURES = Counter("fleetbeat_database_failures_total", "How often a worker found the database unavailable.")
SWEEPS = Counter("fleetbeat_sweeps_total", "Sweeps that ended.", "result", ("done", "failed"))
SWEEP_SECONDS = Histogram(
    "fleetbeat_sweep_seconds",
    "Duration of the sweeps that succeeded.",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
DEGRADED = Counter("fleetbeat_degraded_total", "How often an agent became degraded.")
RECOVERED = Counter("fleetbeat_recovered_total", "How often a degraded agent recovered.")
NOTIFICATIONS = Counter(
    "fleetbeat_notifications_total",
    "Attempts to send notifications: sent, to be retried, given up after a day (dead), or without a target (unrouted).",
    "kind",
    tuple(kind.value for kind in NoticeKind),
    "outcome",
    ("sent", "retried", "dead", "unrouted"),
)
RESTARTS = Counter("fleetbeat_process_restarts_total", "Processes of the pool that ended and were restarted.")

COUNTED: tuple[Counter | Histogram, ...] = (
    INGESTED,
    REJECTED,
    TAKEN_OVER,
    BATCH_SECONDS,
    BATCH_MESSAGES,
    DATABASE_RETRIES,
    DATABASE_FAILURES,
    SWEEPS,
    SWEEP_SECONDS,
    DEGRADED,
    RECOVERED,
    NOTIFICATIONS,
    RESTARTS,
)
"""What each pool counts, for itself alone."""

UP = Gauge("fleetbeat_up", "Whether Redis and the database answered (1) or not (0).", "target", ("redis", "sql"))
BACKLOG = Gauge("fleetbeat_backlog", "Messages in Redis that are not in SQL yet.")
LAG_SECONDS = Gauge("fleetbeat_lag_seconds", "Age of the oldest message that is not in SQL yet.")
PENDING = Gauge("fleetbeat_pending", "Messages of the backlog that a worker has read.")
LOST = Gauge("fleetbeat_lost_messages", "Messages that other programs removed from Redis before they were in SQL.")
JOBS = Gauge("fleetbeat_jobs", "RQ jobs.", "state", ("waiting", "started", "failed"))
WORKERS = Gauge(
    "fleetbeat_workers", "RQ workers on all machines, by RQ's word for what they do.", "state", ("idle", "busy")
)
AGENTS = Gauge(
    "fleetbeat_agents",
    "Sessions of agents, by their state in SQL.",
    "state",
    tuple(state.value for state in State if state is not State.LATE),
)
LAST_SWEEP = Gauge("fleetbeat_last_sweep_timestamp_seconds", "When the last sweep ended, by Redis's clock.")
WATERMARK = Gauge(
    "fleetbeat_watermark_timestamp_seconds", "The watermark: the time up to which all messages are judged."
)
OUTBOX = Gauge(
    "fleetbeat_unsent_notifications",
    "Notifications that are not sent yet (waiting) or given up (dead).",
    "state",
    ("waiting", "dead"),
)
OLDEST_NOTICE = Gauge(
    "fleetbeat_oldest_notification_timestamp_seconds",
    "When the oldest waiting notification was written; absent if none waits.",
)

GAUGES = (UP, BACKLOG, LAG_SECONDS, PENDING, LOST, JOBS, WORKERS, AGENTS, LAST_SWEEP, WATERMARK, OUTBOX, OLDEST_NOTICE)
"""What every pool shows, for the whole fleet."""

_ENDS = list(accumulate(metric.width for metric in COUNTED))
PLACES = {metric.name: end - metric.width for metric, end in zip(COUNTED, _ENDS, strict=True)}
"""Index of each metric's first number."""

_counters: ContextVar[Counters | None] = ContextVar("counters", default=None)


def keep_counters() -> Counters:
    """Count from now on, in this process and in all that are forked from it. Raises OSError."""
    counters = Counters(_ENDS[-1])
    _counters.set(counters)
    return counters


def count(counter: Counter, amount: float = 1, value: str = "", second_value: str = "") -> None:
    """Add to a counter, under the values of its labels. From the main thread only."""
    counters = _counters.get()
    if counters is not None and amount:
        counters.add(PLACES[counter.name] + counter.place(value, second_value), amount)


def observe(histogram: Histogram, value: float) -> None:
    """Add a measurement to a histogram. From the main thread only."""
    counters = _counters.get()
    if counters is not None:
        place = PLACES[histogram.name]
        counters.add(place + bisect_left(histogram.bounds, value), 1)
        counters.add(place + histogram.width - 1, value)

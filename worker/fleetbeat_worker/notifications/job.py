"""The job that tells people: it takes what is due from the outbox, sends it, and writes down what came of it.

At least once: a job takes its notifications for a time, sends, and writes each delivery down at once. If it dies
between sending and writing, the next one sends again, with the same key.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Row

from fleetbeat_shared.errors import SettingsError
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.notifications import outbox as store
from fleetbeat_worker.notifications.delivery import Outcome, Round, deliver
from fleetbeat_worker.notifications.messages import Message, compose
from fleetbeat_worker.notifications.targets import Target, parse_targets, targets_for
from fleetbeat_worker.notifications.wording import Facts
from fleetbeat_worker.rules.backoff import backoff_seconds
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import NOTIFICATIONS, count

TAKEN_AT_ONCE = 20
"""How many notifications one job sends: what many changes at once make people read comes to them in portions."""
LEASE = timedelta(seconds=120)
"""How long a job has its notifications to itself: longer than it may run."""
FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 3600.0
"""How long to wait after a failure: twice as long each time, up to an hour."""
JITTER = 0.25
"""By which part of it the pause is shorter or longer, so that not all come at once to a receiver that is back."""
LONGEST_FAILURE = 500


@dataclass(slots=True)
class NotifyReport:
    """What one job did."""

    sent: int = 0
    retried: int = 0
    """How many failed, and are tried again."""
    dead: int = 0
    unrouted: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """Why, by target."""


@dataclass(slots=True)
class _Parcel:
    """A notification in this job's hands."""

    row: Row[Any]
    targets: Sequence[Target]
    """All that it is for."""
    open: int = 0
    """How many of them have no outcome yet."""
    failures: dict[str, str] = field(default_factory=dict)
    untried: bool = False

    @property
    def attempts(self) -> int:
        return int(self.row.attempts) + 1  # the row was read before it was taken

    @property
    def fingerprints(self) -> list[str]:
        return [target.fingerprint for target in self.targets]


def notify(
    engine: Engine, notify_urls: str, clock: Callable[[], datetime], stop: Callable[[], bool] = lambda: False
) -> NotifyReport:
    """Send what is due, at most so many notifications; return what came of them.

    `clock` gives Redis's time. Raises DatabaseUnavailable: what was sent and not written down is sent again. Raises
    SettingsError.
    """
    targets = parse_targets(notify_urls)
    report = NotifyReport()
    with writing(engine) as connection:
        if not targets:
            _count_unrouted(report, store.leave_unrouted(connection, clock()))
            return report
        rows = store.take_due(connection, clock(), LEASE, TAKEN_AT_ONCE)
    _Run(engine, targets, clock, report).send(rows, stop)
    if report.failures:
        told = {"tried_again": report.retried, "dead": report.dead, "failures": report.failures}
        logger.warning("Notifications could not be sent", extra=told)
    return report


def _count_unrouted(report: NotifyReport, by_kind: dict[str, int]) -> None:
    for kind, number in by_kind.items():
        report.unrouted += number
        count(NOTIFICATIONS, number, kind, "unrouted")


class _Run:
    def __init__(
        self, engine: Engine, targets: Sequence[Target], clock: Callable[[], datetime], report: NotifyReport
    ) -> None:
        self._engine = engine
        self._targets = targets
        self._clock = clock
        self._report = report

    def send(self, rows: Sequence[Row[Any]], stop: Callable[[], bool]) -> None:
        parcels = {row.id: _Parcel(row, self._wanted(row)) for row in rows}
        unrouted = [number for number, parcel in parcels.items() if not parcel.targets]
        if unrouted:
            with writing(self._engine) as connection:
                _count_unrouted(self._report, store.leave_unrouted(connection, self._clock(), unrouted))
        for outcome in deliver(self._rounds(parcels), stop):
            self._take_down(parcels[outcome.notice_id], outcome)

    def _wanted(self, row: Row[Any]) -> list[Target]:
        return targets_for(self._targets, row.agent_name, row.project, fleet_wide=row.agent_name is None)

    def _rounds(self, parcels: dict[int, _Parcel]) -> list[Round]:
        """Return what each target gets, without what it has already."""
        by_target: dict[Target, list[tuple[int, Message]]] = defaultdict(list)
        for number, parcel in parcels.items():
            missing = [target for target in parcel.targets if target.fingerprint not in (parcel.row.delivered or {})]
            if parcel.targets and not missing:  # who lacked it is no target any more
                self._record(parcel, None)
            message = self._compose(parcel) if missing else None
            if message is not None:
                parcel.open = len(missing)
                for target in missing:
                    by_target[target].append((number, message))
        rounds = (self._round(target, messages, parcels) for target, messages in by_target.items())
        return [one for one in rounds if one is not None]

    def _round(
        self, target: Target, messages: Sequence[tuple[int, Message]], parcels: dict[int, _Parcel]
    ) -> Round | None:
        from fleetbeat_worker.notifications.apprise_sender import Sender  # it brings Apprise

        try:
            return Round(Sender(target), messages)
        except SettingsError as error:  # told when the workers started; the other targets get theirs
            for number, _ in messages:
                self._take_down(parcels[number], Outcome(number, target, str(error)))
            return None

    def _compose(self, parcel: _Parcel) -> Message | None:
        row = parcel.row
        try:
            kind = NoticeKind(row.kind)
            facts = Facts(kind, row.key, row.agent_name, row.project, row.created_at, row.detail)
            return compose(facts, self._clock())
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            # A later version's, say. It must not keep the others from being told.
            parcel.failures["text"] = f"No text can be made of it ({type(error).__name__})."
            self._put_off(parcel)
            return None

    def _take_down(self, parcel: _Parcel, outcome: Outcome) -> None:
        parcel.open -= 1
        if outcome.failure is not None:
            parcel.failures[outcome.target.title] = outcome.failure
        elif not outcome.tried:
            parcel.untried = True
        else:
            self._record(parcel, outcome.target.fingerprint)
        if parcel.open:
            return
        if parcel.failures:
            self._put_off(parcel)
        elif parcel.untried:
            with writing(self._engine) as connection:
                store.give_back(connection, parcel.row.id, parcel.attempts, self._clock())

    def _record(self, parcel: _Parcel, receiver: str | None) -> None:
        with writing(self._engine) as connection:
            done = store.record_delivery(connection, parcel.row.id, parcel.fingerprints, receiver, self._clock())
        if done:
            self._report.sent += 1
            count(NOTIFICATIONS, 1, parcel.row.kind, "sent")

    def _put_off(self, parcel: _Parcel) -> None:
        row, now = parcel.row, self._clock()
        dead = now >= row.expires_at
        again = min(now + pause_after(parcel.attempts), row.expires_at)  # the last try is at the very end
        failure = "; ".join(f"{title}: {why}" for title, why in parcel.failures.items())[:LONGEST_FAILURE]
        with writing(self._engine) as connection:
            ours = store.put_off(connection, row, again, failure, dead=dead)
        if ours:
            self._report.dead += dead
            self._report.retried += not dead
            self._report.failures |= parcel.failures
            count(NOTIFICATIONS, 1, row.kind, "dead" if dead else "retried")


def pause_after(attempts: int) -> timedelta:
    """Return how long to wait after so many tries that failed."""
    seconds = backoff_seconds(attempts, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
    return timedelta(seconds=seconds * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - no secret

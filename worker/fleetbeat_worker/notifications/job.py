"""The notify job: claims due notifications from the outbox, sends them, and records each result.

Delivery is at least once: the job claims notifications for a limited time, and records each delivery at once. If it
dies between sending and recording, the next job sends again, with the same key.
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
from fleetbeat_worker.notifications import outbox
from fleetbeat_worker.notifications.delivery import Delivery, Outcome, deliver
from fleetbeat_worker.notifications.messages import Message, compose
from fleetbeat_worker.notifications.targets import Target, parse_targets, select_targets
from fleetbeat_worker.notifications.wording import Facts
from fleetbeat_worker.rules.backoff import backoff_seconds
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import NOTIFICATIONS, count

CLAIMED_AT_ONCE = 20
"""How many notifications one job sends: people get the messages about many changes in portions."""
LEASE = timedelta(seconds=120)
"""How long a claim lasts: longer than a job may run."""
FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 3600.0
"""The back-off after failures."""
JITTER = 0.25
"""The share by which a pause is shorter or longer, so that a receiver that is back doesn't get all at once."""
FAILURE_LIMIT = 500
"""How many characters of a failure are stored."""


@dataclass(slots=True)
class NotifyReport:
    """The result of one job."""

    sent: int = 0
    retried: int = 0
    """How many failed, and will be tried again."""
    dead: int = 0
    unrouted: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """The last failure of each target."""


@dataclass(slots=True)
class _Claimed:
    """A notification that this job has claimed."""

    row: Row[Any]
    targets: Sequence[Target]
    """All targets that match it."""
    open: int = 0
    """How many of them have no outcome yet."""
    failures: dict[str, str] = field(default_factory=dict)
    untried: bool = False

    @property
    def attempts(self) -> int:
        return int(self.row.attempts) + 1  # the row was read before it was claimed

    @property
    def fingerprints(self) -> list[str]:
        return [target.fingerprint for target in self.targets]


def notify(
    engine: Engine, notify_urls: str, clock: Callable[[], datetime], stop: Callable[[], bool] = lambda: False
) -> NotifyReport:
    """Send due notifications, at most `CLAIMED_AT_ONCE`.

    `clock` returns Redis's time. Raises DatabaseUnavailable: notifications whose delivery isn't recorded are sent
    again. Raises SettingsError.
    """
    targets = parse_targets(notify_urls)
    report = NotifyReport()
    with writing(engine) as connection:
        if not targets:
            _count_unrouted(report, outbox.mark_unrouted(connection, clock()))
            return report
        rows = outbox.claim_due(connection, clock(), LEASE, CLAIMED_AT_ONCE)
    _Run(engine, targets, clock, report).send(rows, stop)
    if report.failures:
        fields = {"tried_again": report.retried, "dead": report.dead, "failures": report.failures}
        logger.warning("Notifications could not be sent", extra=fields)
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
        claimed = {row.id: _Claimed(row, select_targets(self._targets, row.agent_name, row.project)) for row in rows}
        unrouted = [notice_id for notice_id, notice in claimed.items() if not notice.targets]
        if unrouted:
            with writing(self._engine) as connection:
                _count_unrouted(self._report, outbox.mark_unrouted(connection, self._clock(), unrouted))
        for outcome in deliver(self._deliveries(claimed), stop):
            self._record(claimed[outcome.notice_id], outcome)

    def _deliveries(self, claimed: dict[int, _Claimed]) -> list[Delivery]:
        """Compose the messages for each target, without those that it has received already."""
        by_target: dict[Target, list[tuple[int, Message]]] = defaultdict(list)
        for notice_id, notice in claimed.items():
            missing = [target for target in notice.targets if target.fingerprint not in (notice.row.delivered or {})]
            if notice.targets and not missing:  # the target that lacked it was removed
                self._record_delivery(notice, None)
            message = self._compose(notice) if missing else None
            if message is not None:
                notice.open = len(missing)
                for target in missing:
                    by_target[target].append((notice_id, message))
        deliveries = (self._delivery(target, messages, claimed) for target, messages in by_target.items())
        return [delivery for delivery in deliveries if delivery is not None]

    def _delivery(
        self, target: Target, messages: Sequence[tuple[int, Message]], claimed: dict[int, _Claimed]
    ) -> Delivery | None:
        from fleetbeat_worker.notifications.apprise_sender import Sender  # it imports Apprise

        try:
            return Delivery(Sender(target), messages)
        except SettingsError as error:  # workers refuse to start with it; the other targets get theirs
            for notice_id, _ in messages:
                self._record(claimed[notice_id], Outcome(notice_id, target, str(error)))
            return None

    def _compose(self, notice: _Claimed) -> Message | None:
        row = notice.row
        try:
            kind = NoticeKind(row.kind)
            facts = Facts(kind, row.key, row.agent_name, row.project, row.created_at, row.detail)
            return compose(facts, self._clock())
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            # For example, of a later version. It must not delay the others.
            notice.failures["text"] = f"Its text can't be composed ({type(error).__name__})."
            self._record_failure(notice)
            return None

    def _record(self, notice: _Claimed, outcome: Outcome) -> None:
        notice.open -= 1
        if outcome.failure is not None:
            notice.failures[outcome.target.title] = outcome.failure
        elif not outcome.tried:
            notice.untried = True
        else:
            self._record_delivery(notice, outcome.target.fingerprint)
        if notice.open:
            return
        if notice.failures:
            self._record_failure(notice)
        elif notice.untried:
            with writing(self._engine) as connection:
                outbox.release(connection, notice.row.id, notice.attempts, self._clock())

    def _record_delivery(self, notice: _Claimed, fingerprint: str | None) -> None:
        with writing(self._engine) as connection:
            done = outbox.record_delivery(connection, notice.row.id, notice.fingerprints, fingerprint, self._clock())
        if done:
            self._report.sent += 1
            count(NOTIFICATIONS, 1, notice.row.kind, "sent")

    def _record_failure(self, notice: _Claimed) -> None:
        row, now = notice.row, self._clock()
        dead = now >= row.expires_at
        due_at = min(now + pause_after(notice.attempts), row.expires_at)  # the last attempt is at the very end
        failure = "; ".join(f"{title}: {reason}" for title, reason in notice.failures.items())[:FAILURE_LIMIT]
        with writing(self._engine) as connection:
            ours = outbox.record_failure(connection, row, due_at, failure, dead=dead)
        if ours:
            self._report.dead += dead
            self._report.retried += not dead
            self._report.failures |= notice.failures
            count(NOTIFICATIONS, 1, row.kind, "dead" if dead else "retried")


def pause_after(attempts: int) -> timedelta:
    """Derive the pause after a number of failed attempts, with jitter."""
    seconds = backoff_seconds(attempts, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
    return timedelta(seconds=seconds * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - no secret

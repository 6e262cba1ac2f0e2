"""The notify job against real receivers: a webhook and a mail server that can fail, hang and come back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_worker.database.engine import open_engine, reading, writing
from fleetbeat_worker.database.tables import Notification
from fleetbeat_worker.notifications import apprise_sender, job
from fleetbeat_worker.notifications.delivery import Delivery, Outcome
from fleetbeat_worker.notifications.job import CLAIMED_AT_ONCE, LEASE, notify
from fleetbeat_worker.notifications.notice import Notice
from fleetbeat_worker.notifications.outbox import TRIED_FOR, add_notices, read_outbox, request_retry
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.spans import to_milliseconds
from processes import die, end_of, fork
from receivers import HttpReceiver, SmtpReceiver, dribbler, http_receiver, smtp_receiver

NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


class Clock:
    """Redis's time, as a test sets it."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now

    def advance(self, span: timedelta) -> None:
        """Advance the time."""
        self.now += span


@pytest.fixture
def clock() -> Clock:
    """Return a clock that shows noon."""
    return Clock()


@pytest.fixture
def webhook() -> Iterator[HttpReceiver]:
    """Return a real webhook."""
    with http_receiver() as receiver:
        yield receiver


@pytest.fixture
def mail() -> Iterator[SmtpReceiver]:
    """Return a real mail server."""
    with smtp_receiver() as receiver:
        yield receiver


def add(engine: Engine, *names: str, kind: NoticeKind = NoticeKind.DEGRADED, **detail: Any) -> list[str]:
    """Add notices about agents, as a sweep at noon does; return their keys."""
    detail = {"since": "2026-11-26T11:59:00+00:00", "progress": "page 7"} | detail
    notices = []
    for name in names:
        session = new_message_id()
        notices.append(
            Notice(kind, f"{kind.value}:{session}:{to_milliseconds(NOON)}", detail, session, name, "billing")
        )
    with writing(engine) as connection:
        add_notices(connection, notices, to_milliseconds(NOON))
    return [notice.key for notice in notices]


def rows(engine: Engine) -> list[Any]:
    with reading(engine) as connection:
        return list(connection.execute(select(Notification.__table__).order_by(Notification.id)).all())


def row(engine: Engine) -> Any:
    (found,) = rows(engine)
    return found


def test_each_target_gets_a_notification_once(
    database: Engine, webhook: HttpReceiver, mail: SmtpReceiver, clock: Clock
) -> None:
    """A webhook and a mail server get it with its key; then it is sent, and another job finds nothing."""
    (key,) = add(database, "torv")
    urls = f"{webhook.url()}\n{mail.url}"
    assert notify(database, urls, clock).sent == 1
    assert notify(database, urls, clock).sent == 0
    (payload,), (letter,) = webhook.taken, mail.mails
    assert payload["key"] == key
    assert payload["kind"] == "degraded"
    assert payload["agent"] == "torv"
    assert payload["title"] == letter["Subject"] == "torv is degraded: silent since 2026-11-26 11:59:00 UTC"
    body = letter.get_body(("plain", "html")).get_content()  # type: ignore[union-attr]
    for text in (payload["message"], body):
        assert "page 7" in text
        assert "fleetbeat explain torv" in text
        assert key in text
    found = row(database)
    assert (found.state, found.sent_at, found.attempts, found.failure) == ("sent", NOON, 1, None)
    assert len(found.delivered) == 2


def test_a_failure_is_retried(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """A receiver that answers 500 gets the same notification after a pause, which doubles with each failure."""
    (key,) = add(database, "torv")
    webhook.status = 500
    pauses = []
    for attempt in (1, 2, 3):
        report = notify(database, webhook.url(), clock)
        assert (report.sent, report.retried) == (0, 1)
        found = row(database)
        assert (found.state, found.attempts) == ("waiting", attempt)
        assert "500" in found.failure
        pauses.append((found.due_at - clock.now).total_seconds())
        clock.advance(timedelta(seconds=1))
        notify(database, webhook.url(), clock)
        assert len(webhook.tries) == attempt
        clock.now = found.due_at
    for pause, plain in zip(pauses, (10, 20, 40), strict=True):
        assert plain * 0.75 <= pause <= plain * 1.25
    webhook.status = 200
    clock.advance(timedelta(minutes=1))  # the pauses alone may be less than what counts as late
    assert notify(database, webhook.url(), clock).sent == 1
    assert {payload["key"] for payload in webhook.tries} == {key}
    assert "late" in webhook.taken[0]["message"]
    assert row(database).state == "sent"


def test_only_failed_targets_are_retried(
    database: Engine, webhook: HttpReceiver, mail: SmtpReceiver, clock: Clock
) -> None:
    """A target that has the notification doesn't get it again when another one fails."""
    add(database, "torv")
    webhook.status = 503
    urls = f"{webhook.url()} {mail.url}"
    assert notify(database, urls, clock).retried == 1
    webhook.status = 200
    clock.now = row(database).due_at
    assert notify(database, urls, clock).sent == 1
    assert len(webhook.taken) == len(mail.mails) == 1


def test_a_removed_target_is_not_waited_for(
    database: Engine, webhook: HttpReceiver, mail: SmtpReceiver, clock: Clock
) -> None:
    """A notification that only a removed target lacks counts as sent."""
    add(database, "torv")
    webhook.status = 503
    notify(database, f"{webhook.url()} {mail.url}", clock)
    clock.now = row(database).due_at
    assert notify(database, mail.url, clock).sent == 1
    assert (row(database).state, len(mail.mails)) == ("sent", 1)


def test_a_job_that_is_killed_after_sending_sends_again(
    database: Engine, database_url: str, webhook: HttpReceiver, clock: Clock
) -> None:
    """After kill -9 between sending and recording, the next job sends it again with the same key, after the lease."""
    (key,) = add(database, "torv")
    database.dispose()

    def main() -> None:
        def killed(*_: object) -> None:
            die()

        job.outbox.record_delivery = killed  # type: ignore[assignment] # in the child alone
        notify(open_engine(database_url), webhook.url(), clock)

    assert end_of(fork(main)) == -9
    assert [payload["key"] for payload in webhook.taken] == [key]
    assert row(database).state == "waiting"
    assert notify(database, webhook.url(), clock).sent == 0  # the first job might be alive
    clock.advance(LEASE)
    assert notify(database, webhook.url(), clock).sent == 1
    assert [payload["key"] for payload in webhook.taken] == [key, key]
    assert row(database).attempts == 2


def test_two_jobs_at_once_send_each_once(
    database: Engine, database_url: str, webhook: HttpReceiver, clock: Clock
) -> None:
    """Of two jobs that run at once, one claims each notification."""
    keys = add(database, *(f"agent-{number}" for number in range(3 * CLAIMED_AT_ONCE)))
    database.dispose()

    def main() -> None:
        engine = open_engine(database_url)
        while notify(engine, webhook.url(), clock).sent:
            pass

    for process in [fork(main) for _ in range(2)]:
        assert end_of(process) == 0
    assert sorted(payload["key"] for payload in webhook.taken) == sorted(keys)
    assert {found.state for found in rows(database)} == {"sent"}


def test_a_receiver_that_hangs_delays_no_other(
    database: Engine, webhook: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one receiver answers byte by byte, the other one gets everything; the slow one has failed."""
    monkeypatch.setattr(apprise_sender, "SEND_SECONDS", 2.0)  # enough for the other one, however busy the machine is
    names = [f"agent-{number}" for number in range(5)]
    add(database, *names)
    with dribbler() as hanging:
        report = notify(database, f"{hanging} {webhook.url()}", clock)
    assert report.retried == 5
    assert [payload["agent"] for payload in webhook.taken] == names
    assert all(len(found.delivered) == 1 and found.state == "waiting" for found in rows(database))
    failures = [found.failure.partition(": ")[2] for found in rows(database)]
    assert failures[:3] == ["No answer within 2 s."] * 3
    assert all(failure.startswith("Not sent after 3 failures in a row") for failure in failures[3:])


def test_a_job_that_is_stopped_releases_the_rest(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """Notifications that it hasn't tried are due at once, and the claim counts as no attempt."""
    add(database, *(f"agent-{number}" for number in range(5)))
    webhook.hang()
    stopping: list[bool] = []

    def stop() -> bool:
        if stopping:
            webhook.go_on()  # by now the job has polled it
        elif webhook.tries:
            stopping.append(True)
        return bool(stopping)

    assert notify(database, webhook.url(), clock, stop).sent == 1
    untouched = [found for found in rows(database) if found.state == "waiting"]
    assert [(found.attempts, found.due_at) for found in untouched] == [(0, NOON)] * 4
    assert notify(database, webhook.url(), clock).sent == 4
    assert len(webhook.taken) == 5


def test_a_notification_is_dead_after_a_day(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """The last attempt is at the end of the day; a requested retry starts a new day."""
    add(database, "torv")
    webhook.status = 404
    tried_at = []
    while row(database).state == "waiting" and len(tried_at) < 50:
        tried_at.append(clock.now)
        notify(database, webhook.url(), clock)
        clock.now = row(database).due_at
    assert row(database).state == "dead"
    assert tried_at[-1] == NOON + TRIED_FOR
    tries = len(webhook.tries)
    clock.advance(timedelta(hours=3))
    notify(database, webhook.url(), clock)
    assert len(webhook.tries) == tries
    with reading(database) as connection:
        assert (read_outbox(connection).waiting, read_outbox(connection).dead) == (0, 1)
    with writing(database) as connection:
        assert request_retry(connection, [row(database).id], clock.now) == 1
    notify(database, webhook.url(), clock)
    assert row(database).state == "waiting"
    webhook.status = 200
    clock.now = row(database).due_at
    assert notify(database, webhook.url(), clock).sent == 1


def test_a_retry_requested_during_an_attempt_stays_in_effect(
    database: Engine, webhook: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When that attempt fails, even if it was the last one, the notification is due at once."""
    add(database, "torv")
    webhook.status = 404
    clock.advance(TRIED_FOR)
    deliver = job.deliver

    def deliver_and_request_retry(rounds: Sequence[Delivery], stop: Callable[[], bool]) -> Iterator[Outcome]:
        for outcome in deliver(rounds, stop):
            with writing(database) as connection:
                assert request_retry(connection, [outcome.notice_id], clock.now) == 1
            yield outcome

    with monkeypatch.context() as patch:
        patch.setattr(job, "deliver", deliver_and_request_retry)
        assert notify(database, webhook.url(), clock).dead == 0
    found = row(database)
    assert (found.state, found.due_at, found.expires_at) == ("waiting", clock.now, clock.now + TRIED_FOR)
    webhook.status = 200
    assert notify(database, webhook.url(), clock).sent == 1


def test_unrouted(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """A notification without a matching target, or without any target, is unrouted."""
    add(database, "torv")
    assert notify(database, "", clock).unrouted == 1
    add(database, "sindri")
    assert notify(database, f"agent:hint-*={webhook.url()}", clock).unrouted == 1
    assert [found.state for found in rows(database)] == ["unrouted", "unrouted"]
    assert webhook.tries == []


def test_an_unknown_kind_stops_no_other(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """A notification of a kind that this version doesn't know is retried, and the others are sent."""
    add(database, "torv", "sindri")
    with writing(database) as connection:
        connection.execute(Notification.__table__.update().where(Notification.id == 1).values(kind="eclipse"))  # type: ignore[attr-defined]
    report = notify(database, webhook.url(), clock)
    assert (report.sent, report.retried) == (1, 1)
    assert [payload["agent"] for payload in webhook.taken] == ["sindri"]


class _Recorder(logging.Handler):
    """Records whatever reaches the root logger."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Record one record."""
        self.records.append(f"{record.getMessage()} {vars(record)}")


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Return everything that is logged, at any level."""
    handler, root = _Recorder(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler.records
    root.setLevel(before)
    root.removeHandler(handler)


def test_secrets_of_urls_are_not_shown(
    database: Engine, webhook: HttpReceiver, clock: Clock, logged: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither the log nor SQL contains a password, a path or any other part of a URL, also of a malformed one."""
    webhook.status = 500
    secrets = ("hunter-two", "T0K3N-in-the-path", "s3cret-value")
    url = f"json://fleet:{secrets[0]}@127.0.0.1:{webhook.port}/{secrets[1]}?-sig={secrets[2]}"
    away = f"mailto://{secrets[1]}:{secrets[0]}@127.0.0.1:1?from=a@b.example&to=a@b.example&mode=insecure"
    add(database, "torv")
    assert notify(database, f"{url} {away} slack://{secrets[1]} eclipse://{secrets[2]}", clock).retried == 1
    failed = row(database)
    assert "500" in failed.failure
    webhook.status = 200
    clock.now = failed.due_at
    assert notify(database, url, clock).sent == 1
    everything = "".join(logged) + "".join(capfd.readouterr()) + repr([tuple(failed), tuple(row(database))])
    assert "could not be sent" in everything
    for secret in secrets:
        assert secret not in everything


def test_a_malformed_target_delays_no_other(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """A URL that Apprise can't use is a failure of that target only, with a reason."""
    add(database, "torv")
    assert notify(database, f"eclipse://x {webhook.url()}", clock).retried == 1
    assert len(webhook.taken) == 1
    assert "target 1 (eclipse) can't be used" in row(database).failure


def test_agents_can_not_forge_lines(database: Engine, mail: SmtpReceiver, clock: Clock) -> None:
    """Line breaks in an agent's name and texts add no header to a mail, and no line to its text."""
    add(database, "torv\r\nBcc: all@example.org", progress="done\n\nKey: forged\r\nDetails: http://evil.example")
    assert notify(database, mail.url, clock).sent == 1
    (letter,) = mail.mails
    assert letter["Bcc"] is None
    assert letter["Subject"].startswith("torv Bcc: all@example.org is degraded")
    text = letter.get_body(("plain", "html")).get_content()  # type: ignore[union-attr]
    assert not any(line.strip().startswith(("Key: forged", "Details: http")) for line in text.splitlines())

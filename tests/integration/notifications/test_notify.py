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
from fleetbeat_worker.notifications import apprise_sender as sending, job as module
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
    """Redis's time, as the tests say."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now

    def advance(self, span: timedelta) -> None:
        """Let time pass."""
        self.now += span


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands at noon."""
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


def lay_down(engine: Engine, *names: str, kind: NoticeKind = NoticeKind.DEGRADED, **detail: Any) -> list[str]:
    """Write notices of agents as a sweep would at noon; return their keys."""
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


def test_a_webhook_and_a_mailbox_get_a_message_once(
    database: Engine, webhook: HttpReceiver, mail: SmtpReceiver, clock: Clock
) -> None:
    """A notification reaches each of its targets once, with its key, and is sent then; another job finds nothing."""
    (key,) = lay_down(database, "torv")
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


def test_a_failure_is_tried_again(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """A receiver that answers 500 gets the same message again after the pause and not before; the pause grows."""
    (key,) = lay_down(database, "torv")
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
    clock.advance(timedelta(minutes=1))  # the pauses alone may be less than what is told as late
    assert notify(database, webhook.url(), clock).sent == 1
    assert {payload["key"] for payload in webhook.tries} == {key}
    assert "late" in webhook.taken[0]["message"]
    assert row(database).state == "sent"


def test_who_has_it_gets_it_no_more(database: Engine, webhook: HttpReceiver, mail: SmtpReceiver, clock: Clock) -> None:
    """When one target fails, only that one is tried again."""
    lay_down(database, "torv")
    webhook.status = 503
    urls = f"{webhook.url()} {mail.url}"
    assert notify(database, urls, clock).retried == 1
    webhook.status = 200
    clock.now = row(database).due_at
    assert notify(database, urls, clock).sent == 1
    assert len(webhook.taken) == len(mail.mails) == 1


def test_a_target_that_is_gone_is_waited_for_no_longer(
    database: Engine, webhook: HttpReceiver, mail: SmtpReceiver, clock: Clock
) -> None:
    """A notification that only a removed target lacked counts as sent."""
    lay_down(database, "torv")
    webhook.status = 503
    notify(database, f"{webhook.url()} {mail.url}", clock)
    clock.now = row(database).due_at
    assert notify(database, mail.url, clock).sent == 1
    assert (row(database).state, len(mail.mails)) == ("sent", 1)


def test_a_job_that_is_killed_after_sending_sends_again(
    database: Engine, database_url: str, webhook: HttpReceiver, clock: Clock
) -> None:
    """After kill -9 between sending and writing, the next job sends once more when the lease is over: the same key."""
    (key,) = lay_down(database, "torv")
    database.dispose()

    def main() -> None:
        def killed(*_: object) -> None:
            die()

        module.outbox.record_delivery = killed  # type: ignore[assignment] # in the child alone
        notify(open_engine(database_url), webhook.url(), clock)

    assert end_of(fork(main)) == -9
    assert [payload["key"] for payload in webhook.taken] == [key]
    assert row(database).state == "waiting"
    assert notify(database, webhook.url(), clock).sent == 0  # it might be alive still
    clock.advance(LEASE)
    assert notify(database, webhook.url(), clock).sent == 1
    assert [payload["key"] for payload in webhook.taken] == [key, key]
    assert row(database).attempts == 2


def test_two_jobs_at_once_send_each_once(
    database: Engine, database_url: str, webhook: HttpReceiver, clock: Clock
) -> None:
    """Of two jobs that run at once, each notification is taken by one."""
    keys = lay_down(database, *(f"agent-{number}" for number in range(3 * CLAIMED_AT_ONCE)))
    database.dispose()

    def main() -> None:
        engine = open_engine(database_url)
        while notify(engine, webhook.url(), clock).sent:
            pass

    for process in [fork(main) for _ in range(2)]:
        assert end_of(process) == 0
    assert sorted(payload["key"] for payload in webhook.taken) == sorted(keys)
    assert {found.state for found in rows(database)} == {"sent"}


def test_a_receiver_that_hangs_keeps_nobody_waiting(
    database: Engine, webhook: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one receiver answers a letter at a time, the other one gets all; the slow one has failed."""
    monkeypatch.setattr(sending, "SEND_SECONDS", 2.0)  # enough for the other one, however busy the machine is
    names = [f"agent-{number}" for number in range(5)]
    lay_down(database, *names)
    with dribbler() as hanging:
        report = notify(database, f"{hanging} {webhook.url()}", clock)
    assert report.retried == 5
    assert [payload["agent"] for payload in webhook.taken] == names
    assert all(len(found.delivered) == 1 and found.state == "waiting" for found in rows(database))
    failures = [found.failure.partition(": ")[2] for found in rows(database)]
    assert failures[:3] == ["It didn't answer within 2 s."] * 3
    assert all(failure.startswith("Not sent, as 3 before it failed") for failure in failures[3:])


def test_a_job_that_is_asked_to_stop_gives_back_the_rest(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """What a job hadn't come to when other work waited isn't tried: it is due at once, and not counted as a failure."""
    lay_down(database, *(f"agent-{number}" for number in range(5)))
    webhook.hang()
    asked: list[bool] = []

    def stop() -> bool:
        if asked:
            webhook.go_on()  # by now it has heard that it should stop
        elif webhook.tries:
            asked.append(True)
        return bool(asked)

    assert notify(database, webhook.url(), clock, stop).sent == 1
    untouched = [found for found in rows(database) if found.state == "waiting"]
    assert [(found.attempts, found.due_at) for found in untouched] == [(0, NOON)] * 4
    assert notify(database, webhook.url(), clock).sent == 4
    assert len(webhook.taken) == 5


def test_dead_after_a_day(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """What can't be sent for a day is dead after a last try at its end, not before; on request it has a new day."""
    lay_down(database, "torv")
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


def test_a_retry_that_is_asked_for_during_a_try_stands(
    database: Engine, webhook: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure of the try that was under way, even of the last one, makes nothing of it: it is due at once."""
    lay_down(database, "torv")
    webhook.status = 404
    clock.advance(TRIED_FOR)
    deliver = module.deliver

    def deliver_while_somebody_asks(rounds: Sequence[Delivery], stop: Callable[[], bool]) -> Iterator[Outcome]:
        for outcome in deliver(rounds, stop):
            with writing(database) as connection:
                assert request_retry(connection, [outcome.notice_id], clock.now) == 1
            yield outcome

    with monkeypatch.context() as patch:
        patch.setattr(module, "deliver", deliver_while_somebody_asks)
        assert notify(database, webhook.url(), clock).dead == 0
    found = row(database)
    assert (found.state, found.due_at, found.expires_at) == ("waiting", clock.now, clock.now + TRIED_FOR)
    webhook.status = 200
    assert notify(database, webhook.url(), clock).sent == 1


def test_for_nobody(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """Without a URL, and without one whose pattern fits, a notification is unrouted and waits for nobody."""
    lay_down(database, "torv")
    assert notify(database, "", clock).unrouted == 1
    lay_down(database, "sindri")
    assert notify(database, f"agent:hint-*={webhook.url()}", clock).unrouted == 1
    assert [found.state for found in rows(database)] == ["unrouted", "unrouted"]
    assert webhook.tries == []


def test_one_that_no_text_can_be_made_of(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """A notification of a kind that this version doesn't know keeps no other from being sent."""
    lay_down(database, "torv", "sindri")
    with writing(database) as connection:
        connection.execute(Notification.__table__.update().where(Notification.id == 1).values(kind="eclipse"))  # type: ignore[attr-defined]
    report = notify(database, webhook.url(), clock)
    assert (report.sent, report.retried) == (1, 1)
    assert [payload["agent"] for payload in webhook.taken] == ["sindri"]


class _All(logging.Handler):
    """Takes down whatever reaches the root logger."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take down one record."""
        self.told.append(f"{record.getMessage()} {vars(record)}")


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Return all that is logged, at whatever level."""
    handler, root = _All(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler.told
    root.setLevel(before)
    root.removeHandler(handler)


def test_secrets_stay_in_the_url(
    database: Engine, webhook: HttpReceiver, clock: Clock, told: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither the log nor SQL shows a part of a URL: not its password, nor its path, nor one that is malformed."""
    webhook.status = 500
    secrets = ("hunter-two", "T0K3N-in-the-path", "s3cret-value")
    url = f"json://fleet:{secrets[0]}@127.0.0.1:{webhook.port}/{secrets[1]}?-sig={secrets[2]}"
    away = f"mailto://{secrets[1]}:{secrets[0]}@127.0.0.1:1?from=a@b.example&to=a@b.example&mode=insecure"
    lay_down(database, "torv")
    assert notify(database, f"{url} {away} slack://{secrets[1]} eclipse://{secrets[2]}", clock).retried == 1
    failed = row(database)
    assert "500" in failed.failure
    webhook.status = 200
    clock.now = failed.due_at
    assert notify(database, url, clock).sent == 1
    everything = "".join(told) + "".join(capfd.readouterr()) + repr([tuple(failed), tuple(row(database))])
    assert "could not be sent" in everything
    for secret in secrets:
        assert secret not in everything


def test_a_malformed_target_keeps_no_other_waiting(database: Engine, webhook: HttpReceiver, clock: Clock) -> None:
    """A URL that Apprise can't use is a failure of that target alone, which says what to do."""
    lay_down(database, "torv")
    assert notify(database, f"eclipse://x {webhook.url()}", clock).retried == 1
    assert len(webhook.taken) == 1
    assert "target 1 (eclipse) can't be used" in row(database).failure


def test_agents_can_forge_nothing(database: Engine, mail: SmtpReceiver, clock: Clock) -> None:
    """Line breaks in an agent's name and texts add no header to a mail, and no line to its text."""
    lay_down(database, "torv\r\nBcc: all@example.org", progress="done\n\nKey: forged\r\nLook: http://evil.example")
    assert notify(database, mail.url, clock).sent == 1
    (letter,) = mail.mails
    assert letter["Bcc"] is None
    assert letter["Subject"].startswith("torv Bcc: all@example.org is degraded")
    text = letter.get_body(("plain", "html")).get_content()  # type: ignore[union-attr]
    assert not any(line.strip().startswith(("Key: forged", "Look: http")) for line in text.splitlines())

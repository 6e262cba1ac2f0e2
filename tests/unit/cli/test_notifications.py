from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from command_line import answer, run
from fakeredis import FakeRedis
from sqlalchemy import Engine, select, update

from fleetbeat_shared.errors import SettingsError
from fleetbeat_shared.redis_keys import NOTICES_DUE
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli.worker import check_notify_urls
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.database.tables import Notification
from fleetbeat_worker.notifications.notice import Notice
from fleetbeat_worker.notifications.outbox import add_notices
from fleetbeat_worker.rules.enums import NoticeKind, NoticeState
from fleetbeat_worker.rules.spans import to_milliseconds
from receivers import http_receiver


def put_notification(engine: Engine, state: NoticeState, name: str | None = "torv", failure: str | None = None) -> int:
    """Store a notification of two days ago in a state; return its id."""
    then = datetime.now(UTC) - timedelta(days=2)
    kind = NoticeKind.DEGRADED if name else NoticeKind.OUTAGE
    with writing(engine) as opened:
        add_notices(opened, [Notice(kind, f"{state.value} {name}", {}, agent_name=name)], to_milliseconds(then))
        changes = {"state": state.value, "failure": failure, "sent_at": then, "attempts": 9}
        of_it = Notification.key == f"{state.value} {name}"
        opened.execute(update(Notification).where(of_it).values(changes))
        return int(opened.execute(select(Notification.id).where(of_it)).scalar_one())


def state_of(engine: Engine, number: int) -> str:
    with reading(engine) as opened:
        return str(opened.execute(select(Notification.state).where(Notification.id == number)).scalar_one())


def test_list_shows_results(engine: Engine) -> None:
    """`list` selects by state and agent, and shows the failure of dead ones; JSON has every column."""
    assert "No notifications" in run("notifications", "list").output
    put_notification(engine, NoticeState.SENT)
    dead = put_notification(engine, NoticeState.DEAD, "sin\x1b[31mdri", "target 1 (json): error=500")
    put_notification(engine, NoticeState.UNROUTED, None)
    text = run("notifications", "list").output
    assert "sindri" in text
    assert "\x1b" not in text
    assert "error=500" in text
    assert "1 notification could not be delivered" in text
    view = answer("notifications", "list", "--state", "dead")
    assert view["outbox"] == {"waiting": 0, "dead": 1, "oldest_at": None}
    (shown,) = view["notifications"]
    assert (shown["id"], shown["state"], shown["attempts"], shown["delivered_to"]) == (dead, "dead", 9, 0)
    assert [row["state"] for row in answer("notifications", "list", "--agent", "torv")["notifications"]] == ["sent"]


def test_retry_takes_ids_or_all_dead_ones(engine: Engine, redis: FakeRedis) -> None:
    """A retried notification is due at once, for a day, and is announced to the dispatcher."""
    dead = [put_notification(engine, NoticeState.DEAD, name) for name in ("a", "b", "c")]
    unrouted, sent = put_notification(engine, NoticeState.UNROUTED), put_notification(engine, NoticeState.SENT)
    assert answer("notifications", "retry", str(dead[0]), str(unrouted)) == {"retried": 2}
    assert state_of(engine, dead[1]) == "dead"
    assert answer("notifications", "retry", "--dead") == {"retried": 2}
    assert answer("notifications", "retry", "--dead") == {"retried": 0}
    assert {state_of(engine, number) for number in [*dead, unrouted]} == {"waiting"}
    assert int(redis.get(NOTICES_DUE) or 0) <= to_milliseconds(datetime.now(UTC))
    with reading(engine) as opened:
        expiry = opened.execute(select(Notification.expires_at).where(Notification.id == dead[0])).scalar_one()
    assert expiry > datetime.now(UTC) + timedelta(hours=23)
    refused = run("notifications", "retry", str(sent))
    assert (refused.exit_code, state_of(engine, sent)) == (1, "sent")
    missing = run("notifications", "retry", "77")
    assert missing.exit_code == 1
    assert "no notification 77; nothing was done" in missing.output
    for args in ([], [str(sent), "--dead"]):
        assert run("notifications", "retry", *args).exit_code == 2


def test_test_message_reports_each_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test` sends to every target, whatever its pattern, and exits with 1 if one refuses; no secret is shown."""
    with http_receiver() as receiver:
        monkeypatch.setenv("FLEETBEAT_NOTIFY_URLS", f"agent:x={receiver.url('s3cret')}")
        assert answer("notifications", "test")["targets"][0]["delivered"] is True
        receiver.status = 403
        result = run("notifications", "test")
        assert result.exit_code == 1
        assert "target 1 (json, agent:x): failed." in result.output
        assert "403" in result.output
        assert "s3cret" not in result.output
        assert [payload["kind"] for payload in receiver.tries] == ["test", "test"]
    monkeypatch.delenv("FLEETBEAT_NOTIFY_URLS")
    unset = run("notifications", "test")
    assert unset.exit_code == 1
    assert "FLEETBEAT_NOTIFY_URLS is not set" in unset.output


@pytest.mark.parametrize("url", ["eclipse://s3cret", "slack://s3cret", "mailto://s3cret"])
def test_workers_refuse_an_unusable_target(url: str) -> None:
    """A worker doesn't start with a URL that Apprise can't use; it says which, and nothing of it."""
    with pytest.raises(SettingsError) as caught:
        check_notify_urls(Settings(notify_urls=f"json://fine {url}"))
    assert "target 2" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    check_notify_urls(Settings(notify_urls="json://fine"))


def test_a_malformed_variable_ends_check_and_worker(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - it makes the database
    """Both exit with 2 and the variable's name at a malformed target."""
    monkeypatch.setenv("FLEETBEAT_NOTIFY_URLS", "s3cret")
    for command in ("check", "worker"):
        result = run(command)
        assert result.exit_code == 2
        assert "FLEETBEAT_NOTIFY_URLS: target 1 is not a URL" in result.output
        assert "s3cret" not in result.output


def test_check_and_queue_count_dead_notifications(engine: Engine) -> None:
    """`check` warns of dead notifications; `queue` counts dead and waiting ones."""
    assert answer("queue")["notifications"] == {"waiting": 0, "dead": 0}
    assert "Notices" not in run("queue").output
    put_notification(engine, NoticeState.DEAD)
    put_notification(engine, NoticeState.WAITING)
    assert "1 notification could not be delivered within a day" in answer("check", code=3)["warning"]
    assert answer("queue")["notifications"] == {"waiting": 1, "dead": 1}
    assert "1 waiting, 1 dead" in run("queue").output

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakeredis import FakeRedis
from sqlalchemy import Engine, select, update

from fleetbeat_shared import connection
from fleetbeat_shared.errors import SettingsError
from fleetbeat_shared.redis_keys import NOTICES_DUE
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli import main
from fleetbeat_worker.cli.worker import check_notify_urls
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.database.tables import Notification
from fleetbeat_worker.notifications.notice import Notice
from fleetbeat_worker.notifications.outbox import add_notices
from fleetbeat_worker.rules.enums import NoticeKind, NoticeState
from fleetbeat_worker.rules.spans import to_milliseconds
from receivers import http_receiver


@pytest.fixture(autouse=True)
def _redis(monkeypatch: pytest.MonkeyPatch, redis: FakeRedis) -> None:
    """Let the commands use the Redis in memory."""
    monkeypatch.setattr(connection, "connect", lambda *_, **__: redis)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def answer(*args: str, code: int = 0) -> Any:
    result = run(*args, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def lay_down(engine: Engine, state: NoticeState, name: str | None = "torv", failure: str | None = None) -> int:
    """Write a notification of two days ago in a state; return its id."""
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


def test_the_list_says_what_came_of_each(engine: Engine) -> None:
    """`list` shows the latest by state and agent, with the failure of those that are dead; JSON has every fact."""
    assert "No notifications" in run("notifications", "list").output
    lay_down(engine, NoticeState.SENT)
    dead = lay_down(engine, NoticeState.DEAD, "sin\x1b[31mdri", "target 1 (json): error=500")
    lay_down(engine, NoticeState.UNROUTED, None)
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
    """A notification that is asked for again is due at once, for a day, and the dispatcher hears of it."""
    dead = [lay_down(engine, NoticeState.DEAD, name) for name in ("a", "b", "c")]
    unrouted, sent = lay_down(engine, NoticeState.UNROUTED), lay_down(engine, NoticeState.SENT)
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


def test_test_tells_what_each_target_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test` sends to every target, whatever its pattern, and exits 1 when one doesn't take it; no secret is shown."""
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
def test_workers_refuse_a_target_that_can_not_be_used(url: str) -> None:
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


def test_check_and_queue_tell_of_dead_ones(engine: Engine) -> None:
    """`check` warns of notifications that are dead; `queue` counts them, and those that wait."""
    assert answer("queue")["notifications"] == {"waiting": 0, "dead": 0}
    assert "Notices" not in run("queue").output
    lay_down(engine, NoticeState.DEAD)
    lay_down(engine, NoticeState.WAITING)
    assert "1 notification could not be delivered within a day" in answer("check", code=3)["warning"]
    assert answer("queue")["notifications"] == {"waiting": 1, "dead": 1}
    assert "1 waiting, 1 dead" in run("queue").output

from __future__ import annotations

import time

from acceptance.place import PATIENCE_SECONDS, Place
from fleetbeat_worker.database.engine import open_engine, writing
from fleetbeat_worker.notifications.notice import Notice
from fleetbeat_worker.notifications.outbox import add_notices
from fleetbeat_worker.rules.enums import NoticeKind
from helpers import eventually
from receivers import http_receiver


def lay_down(place: Place, key: str) -> None:
    """Write what a sweep would write of an agent that fell silent."""
    engine = open_engine(place.environment["FLEETBEAT_DATABASE_URL"])
    with writing(engine) as connection:
        add_notices(connection, [Notice(NoticeKind.DEGRADED, key, {}, agent_name="torv")], time.time_ns() // 1_000_000)
    engine.dispose()


def test_people_are_told_and_no_secret_is(pipeline: Place) -> None:
    """Workers and `--burst` send what was laid down, a failure is seen and retried; nothing shows the URL's token."""
    pipeline.run("fleetbeat", "db", "upgrade")
    with http_receiver() as receiver:
        pipeline.environment["FLEETBEAT_NOTIFY_URLS"] = receiver.url("T0K3N")
        said = [pipeline.run("fleetbeat", "notifications", "test").all]
        lay_down(pipeline, "first")
        said.append(pipeline.run("fleetbeat", "worker", "--burst", FLEETBEAT_LOG_LEVEL="DEBUG").all)
        receiver.status = 500
        lay_down(pipeline, "second")
        worker = pipeline.start("fleetbeat", "worker", FLEETBEAT_LOG_LEVEL="DEBUG")
        worker.says("Notifications could not be sent")
        failed = pipeline.json("fleetbeat", "notifications", "list", "--state", "waiting")["notifications"]
        pipeline.run("fleetbeat", "notifications", "retry", str(failed[0]["id"]))
        receiver.status = 200  # only now, or it might be sent by itself before
        eventually(lambda: len(receiver.taken) == 3, within_seconds=PATIENCE_SECONDS)
        worker.process.terminate()
        said += [worker.ends().all, pipeline.run("fleetbeat", "notifications", "list").all]
    assert [payload["kind"] for payload in receiver.taken] == ["test", "degraded", "degraded"]
    assert [payload["key"] for payload in receiver.taken[1:]] == ["first", "second"]
    assert "error=500" in failed[0]["failure"]
    assert "T0K3N" not in "".join(said)

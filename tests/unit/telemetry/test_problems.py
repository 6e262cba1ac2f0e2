from __future__ import annotations

import logging
import os
from contextvars import Context

import pytest
from pytest import LogCaptureFixture  # noqa: PT013 - a type

from fleetbeat_worker.telemetry.problems import REPEAT_SECONDS, ProblemLog, ProblemReporter, report_through


class Parent:
    """A parent that receives its children's reports, at a time and with living processes of our choice."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ended: set[int] = set()
        self.log = ProblemLog(clock=lambda: self.now, is_alive=lambda pid: pid not in self.ended)

    def report(self, pid: int, role: str = "ingest", kind: str = "database") -> None:
        """Report a failure of a process."""
        self.log.receive(kind, role, pid, "away", resolved=False)

    def resolve(self, pid: int, role: str = "ingest", kind: str = "database") -> None:
        """Report a success of a process."""
        self.log.receive(kind, role, pid, "back", resolved=True)


@pytest.fixture
def parent(caplog: LogCaptureFixture) -> Parent:
    caplog.set_level(logging.INFO, logger="fleetbeat")
    return Parent()


def test_one_line_for_all_then_one_a_minute(parent: Parent, caplog: LogCaptureFixture) -> None:
    """However many report the same problem, it is logged once, and again after a minute; another kind is another."""
    for pid in (1, 2, 1, 3):
        parent.report(pid)
    parent.report(1, kind="redis")
    assert caplog.messages == ["away", "away"]
    parent.now = REPEAT_SECONDS
    parent.report(2)
    parent.report(3)
    assert caplog.messages == ["away"] * 3


def test_a_problem_is_resolved_when_no_process_has_it(parent: Parent, caplog: LogCaptureFixture) -> None:
    """A process that was just started and meets no problem ends nothing; the last one that reported it does."""
    parent.resolve(9)
    assert caplog.messages == []
    parent.report(1)
    parent.report(2)
    parent.resolve(3)
    parent.resolve(1)
    assert caplog.messages == ["away"]
    parent.resolve(2)
    parent.resolve(2)
    assert caplog.messages == ["away", "back"]


def test_an_ended_process_has_no_problem(parent: Parent, caplog: LogCaptureFixture) -> None:
    """For one that ended a success of another in its role counts, and that of another role doesn't."""
    parent.report(1)
    parent.ended.add(1)
    parent.resolve(2, role="sweep")
    assert caplog.messages == ["away"]
    parent.resolve(3)
    assert caplog.messages == ["away", "back"]


def test_a_process_that_ends_after_others_succeeded(parent: Parent, caplog: LogCaptureFixture) -> None:
    """A report that is older than a success of its role ends with its process, even without further reports."""
    parent.report(1)
    parent.report(2)
    parent.now = 1.0
    parent.resolve(1)
    parent.log.drop_ended_processes()
    assert caplog.messages == ["away"]
    parent.ended.add(2)
    parent.log.drop_ended_processes()
    assert caplog.messages == ["away", "back"]


def test_a_process_outside_a_pool_logs_its_own_reports(caplog: LogCaptureFixture) -> None:
    """The first failure and the first success after it are logged, the ones between are not."""
    caplog.set_level(logging.INFO, logger="fleetbeat")
    reporter = ProblemReporter("database", "ingest")
    for act in (reporter.resolve, reporter.report, reporter.report, reporter.resolve, reporter.resolve):
        act(act.__name__)
    assert caplog.messages == ["report", "resolve"]


def test_reports_go_through_the_pipe(parent: Parent, caplog: LogCaptureFixture) -> None:
    """In a pool's process a report goes to the parent; a pipe that is full or closed stops no process."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)

    def report() -> None:
        report_through(writing)
        reporter = ProblemReporter("database", "ingest")
        reporter.report("away")
        reporter.resolve("back")
        reporter.resolve("back")
        assert caplog.messages == []
        os.write(writing, b"no JSON\n[]\n")
        parent.log.read(reading)
        assert caplog.messages == ["away", "back"]
        for _ in range(2000):
            reporter.report("x" * 10_000)
        parent.log.read(reading)
        assert len(caplog.messages) == 3
        os.close(reading)
        os.close(writing)
        reporter.report("away")

    Context().run(report)

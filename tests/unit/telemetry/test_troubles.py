from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pytest import LogCaptureFixture  # noqa: PT013 - a type

from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.problems import SAY_EVERY_SECONDS, Complaint, PipeRelay, Troubles, relay_through


class Stage:
    """A parent that hears its children, at a time and with living processes of our choice."""

    def __init__(self) -> None:
        self.now = 0.0
        self.dead: set[int] = set()
        self.troubles = Troubles(clock=lambda: self.now, lives=lambda pid: pid not in self.dead)

    def trouble(self, pid: int, role: str = "ingest", kind: str = "database") -> None:
        """Let a process tell of trouble."""
        self.troubles.hear(kind, role, pid, "away", is_over=False)

    def over(self, pid: int, role: str = "ingest", kind: str = "database") -> None:
        """Let a process tell of success."""
        self.troubles.hear(kind, role, pid, "again", is_over=True)


@pytest.fixture
def stage(caplog: LogCaptureFixture) -> Stage:
    caplog.set_level(logging.INFO, logger="fleetbeat")
    return Stage()


def test_one_line_for_all_then_one_a_minute(stage: Stage, caplog: LogCaptureFixture) -> None:
    """However many tell of the same trouble, it is said once, and once more after a minute; another kind is another."""
    for pid in (1, 2, 1, 3):
        stage.trouble(pid)
    stage.trouble(1, kind="redis")
    assert caplog.messages == ["away", "away"]
    stage.now = SAY_EVERY_SECONDS
    stage.trouble(2)
    stage.trouble(3)
    assert caplog.messages == ["away"] * 3


def test_it_is_over_when_it_is_over_for_all(stage: Stage, caplog: LogCaptureFixture) -> None:
    """One that was just started and meets no trouble ends nothing; the last one that complained does."""
    stage.over(9)
    assert caplog.messages == []
    stage.trouble(1)
    stage.trouble(2)
    stage.over(3)
    stage.over(1)
    assert caplog.messages == ["away"]
    stage.over(2)
    stage.over(2)
    assert caplog.messages == ["away", "again"]


def test_the_dead_complain_no_more(stage: Stage, caplog: LogCaptureFixture) -> None:
    """For one that died a success of another in its role counts, and that of another role doesn't."""
    stage.trouble(1)
    stage.dead.add(1)
    stage.over(2, role="sweep")
    assert caplog.messages == ["away"]
    stage.over(3)
    assert caplog.messages == ["away", "again"]


def test_one_that_dies_after_others_succeeded(stage: Stage, caplog: LogCaptureFixture) -> None:
    """A complaint that is older than a success of its role ends with its process, even if nobody tells of more."""
    stage.trouble(1)
    stage.trouble(2)
    stage.now = 1.0
    stage.over(1)
    stage.troubles.review()
    assert caplog.messages == ["away"]
    stage.dead.add(2)
    stage.troubles.review()
    assert caplog.messages == ["away", "again"]


@contextmanager
def relayed(writing_end: int) -> Iterator[None]:
    """Let this process tell through a pipe, as those of a pool do."""
    before = list(logger.handlers)
    relay_through(PipeRelay(writing_end))
    try:
        yield
    finally:
        logger.handlers[:] = before


def test_a_complaint_goes_through_the_pipe(stage: Stage, caplog: LogCaptureFixture) -> None:
    """In a pool's process a complaint is told to the parent; a pipe that is full or closed stops none."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    with relayed(writing):
        complaint = Complaint("database", "ingest")
        complaint.trouble("away")
        complaint.over("again")
        complaint.over("again")
        assert caplog.messages == []
        os.write(writing, b"no JSON\n[]\n")
        stage.troubles.read(reading)
        assert caplog.messages == ["away", "again"]
        for _ in range(2000):
            complaint.trouble("x" * 10_000)
        stage.troubles.read(reading)
        assert len(caplog.messages) == 3
        os.close(reading)
        os.close(writing)
        complaint.trouble("away")

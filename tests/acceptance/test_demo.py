from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from acceptance.command_server import CommandServer
from acceptance.place import PATIENCE_SECONDS, Place, Running
from helpers import eventually

DEMO_SECONDS = 60.0
"""What the demonstration may take at most."""


class Whole(NamedTuple):
    """A demonstration that is left to run."""

    place: Place
    demo: Running
    started_at: float


def leftovers(place: Place) -> list[str]:
    return [path.name for path in (place.directory / "tmp").iterdir()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, commands: CommandServer) -> Iterator[Whole]:
    """Start a demonstration that runs to its end while others are broken off."""
    place = Place(tmp_path_factory.mktemp("demo"), commands)
    try:
        yield Whole(place, place.start("fleetbeat", "demo"), time.monotonic())
    finally:
        place.end_all()


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_demonstration_can_be_broken_off(place: Place, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end the demonstration with all that it started, and without a traceback."""
    demo = place.start("fleetbeat", "demo")
    eventually(lambda: len(place.processes()) >= 8, within_seconds=PATIENCE_SECONDS)
    if number is signal.SIGINT:
        demo.press_ctrl_c()
    else:
        demo.process.terminate()
    done = demo.ends()
    assert done.exit_status != 0
    assert "Traceback" not in done.all
    eventually(place.is_empty, within_seconds=PATIENCE_SECONDS)
    assert leftovers(place) == []


def test_the_demonstration(whole: Whole) -> None:
    """In less than a minute an agent is seen to beat, be late, be degraded and recover; nothing is left behind."""
    done = whole.demo.ends(DEMO_SECONDS)
    assert time.monotonic() - whole.started_at < DEMO_SECONDS
    assert (done.exit_status, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    parts = [
        *("Four agents started: hint, torv, rams, kami", "4 agents: 4 ok", "kami was killed", "1 late", "late   kami"),
        *("two intervals", "1 degraded", "DEGRADED  kami", "started again", "4 agents: 4 ok", "The recorded events"),
        *("degraded", "recovered", "What to do next:"),
    ]
    at = 0
    for part in parts:
        found = done.stdout.find(part, at)
        assert found >= 0, f"{part!r} isn't there after:\n{done.stdout[:at]}"
        at = found
    assert whole.place.is_empty()
    assert leftovers(whole.place) == []

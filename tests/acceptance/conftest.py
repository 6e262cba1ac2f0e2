from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.command_server import CommandServer
from acceptance.place import QUICK, Place


@pytest.fixture
def place(tmp_path: Path, commands: CommandServer) -> Iterator[Place]:
    """Return a directory and an environment without any setting but short times."""
    made = Place(tmp_path, commands, **QUICK)
    yield made
    made.end_all()


@pytest.fixture
def pipeline(place: Place, redis_url: str) -> Place:
    """Return a place with a real, empty Valkey, and an SQLite file that is still to be made."""
    place.environment["FLEETBEAT_REDIS_URL"] = redis_url
    place.environment["FLEETBEAT_DATABASE_URL"] = f"sqlite:///{place.directory / 'fleet.db'}"
    return place


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, commands: CommandServer) -> Iterator[Place]:
    """Return a place where `fleetbeat up` runs, for all tests that only use it, each with agents of its own."""
    made = Place(tmp_path_factory.mktemp("fleet"), commands, **QUICK)
    try:
        made.start_up()
        yield made
    finally:
        made.end_all()

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from fakeredis import FakeRedis, FakeServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of whoever runs the tests out of them."""
    for variable in [name for name in os.environ if name.startswith("FLEETBEAT_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def redis() -> Iterator[FakeRedis]:
    """Return a client of an empty Redis in memory, of this test alone."""
    client = FakeRedis(server=FakeServer())
    yield client
    client.close()

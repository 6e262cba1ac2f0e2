from __future__ import annotations

import pytest

from fleetbeat_worker import database, ingest


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an ingest job look around more often, so that no test waits for it."""
    monkeypatch.setattr(ingest, "BLOCK_SECONDS", 0.02)
    monkeypatch.setattr(ingest, "PUT_RIGHT_SECONDS", 0.1)
    monkeypatch.setattr(ingest, "PACE_SECONDS", 0.002)
    monkeypatch.setattr(ingest, "LONGEST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(database, "BUSY_SECONDS", 1.0)

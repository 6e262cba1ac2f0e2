"""The faults that take whole pools of real workers, in their short form; `benchmarks/chaos.py` has the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHAOS = Path(__file__).parents[3] / "benchmarks" / "chaos.py"


def chaos(*options: str) -> list[dict[str, Any]]:
    """Return what became of a round's messages; fail if any was lost or doubled, or an agent flagged in error."""
    command = [sys.executable, CHAOS, "--rounds", "1", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["faults"]
    for one in found:
        assert one["stored"] + one["rejected"] == one["sent"]
        assert one["rejected"] > 0  # one message in ten is bad
    return found


def test_ten_workers_of_which_half_are_killed_and_half_ended() -> None:
    """Half-way through 1,000 messages five get SIGKILL and five SIGTERM: what was acknowledged is in SQL once."""
    (found,) = chaos(
        "--fault", "half-killed-half-ended", "--workers", "10", "--messages", "1000", "--database", "sqlite"
    )
    assert found["kills"] == 5


@pytest.mark.parametrize(
    "fault",
    [
        "scaled",
        "killed-after-commit",
        "deadly-messages",
        "dispatcher-killed",
        "database-locked",
        "database-away",
        "disk-full",
    ],
)
def test_nothing_is_lost_or_doubled(fault: str) -> None:
    """Workers come and go or die, the database is locked, away or full: all is in SQL once, no message wrongly blamed.

    Workers die after a commit, of deadly messages, or as the elected dispatcher, which another follows within 10 s.
    """
    chaos("--fault", fault, "--messages", "200", "--database", "sqlite")

"""The cost of one call to the caller: producer.py's first part, and how it runs what producer_calls.py does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from producer_calls import CALLS, OURS, PACES
from support import percentile, print_table, redis_that_is, shown

CONDITIONS = ("up", "down", "stopped", "black-holed")
PATIENCE_SECONDS = 20.0
"""How long the calls of a rival may take together."""


def answers(part: str, *arguments: object, url: str, within_seconds: float) -> list[Any]:
    """Return what a part of producer_calls.py prints, for a time; then its process is gone."""
    command = [sys.executable, str(Path(__file__).with_name("producer_calls.py")), part, *map(json.dumps, arguments)]
    with subprocess.Popen(command, env={**os.environ, "FLEETBEAT_REDIS_URL": url}, stdout=subprocess.PIPE) as process:
        late = threading.Timer(within_seconds, process.kill)
        late.start()
        try:
            assert process.stdout is not None  # noqa: S101 - for the type checker
            found = [json.loads(line) for line in process.stdout]
        finally:
            late.cancel()
            process.kill()
    if process.returncode not in {0, -signal.SIGKILL}:
        message = "A measured process failed; its error stands above."
        raise click.ClickException(message)
    return found


@dataclass
class Calls:
    """The calls of one caller, at one pace, with Redis in one condition."""

    caller: str
    pace: str
    condition: str
    nanoseconds: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, times: list[tuple[int, str | None]]) -> None:
        """Take what was measured. With Redis up nobody may fail: then the figures would mean nothing."""
        self.nanoseconds += [taken for taken, _ in times]
        self.errors += [error for _, error in times if error]
        if self.condition == "up" and (self.errors or not times):
            message = f"{self.caller} failed with Redis up ({', '.join(set(self.errors)) or 'no call'})."
            raise click.ClickException(message)

    def microseconds(self, share: float) -> float:
        """Return the time that this share of the calls didn't exceed."""
        return percentile(self.nanoseconds, share) / 1000

    def shown(self) -> str:
        """Return median and p99, or that there is none, and what was raised."""
        if not self.nanoseconds:
            return f"> {PATIENCE_SECONDS:.0f} s"
        raised = f" {'/'.join(sorted(set(self.errors)))}" if self.errors else ""
        return f"{shown(self.microseconds(0.5))} / {shown(self.microseconds(0.99))}{raised}"

    def to_json(self) -> dict[str, Any]:
        """Return the figures."""
        times = self.nanoseconds
        return {
            "caller": self.caller,
            "pace": self.pace,
            "condition": self.condition,
            "calls": len(times),
            "errors": sorted(set(self.errors)),
            "median_us": self.microseconds(0.5) if times else None,
            "p99_us": self.microseconds(0.99) if times else None,
        }


def measure_calls(count: int, runs: int) -> list[Calls]:
    """Time the calls of all, in all conditions. Where Redis is away, those who wait for it are asked once."""
    found = [
        Calls(caller, pace, condition)
        for caller in CALLS
        for pace in (PACES if caller == OURS else ["after sleep"])
        for condition in CONDITIONS
    ]
    for run in range(runs):
        for calls in found:
            patient = calls.caller == OURS or calls.condition == "up"
            if run and not patient:
                continue
            with redis_that_is(calls.condition) as url:
                calls.add(
                    answers(
                        "time_calls",
                        calls.caller,
                        _how_many(calls, count) if patient else 5,
                        calls.pace,
                        url=url,
                        within_seconds=600 if patient else PATIENCE_SECONDS,
                    )
                )
    return found


def _how_many(calls: Calls, count: int) -> int:
    return count * 20 if calls.pace == "in a row" else count  # long enough for the thread to be at it all the time


def report_calls(found: list[Calls]) -> None:
    """Print the table of calls."""
    rows = dict.fromkeys((calls.caller, calls.pace) for calls in found)
    print_table(
        "One call: median / p99 in microseconds, and what it raised",
        ("caller", *CONDITIONS),
        [
            (f"{caller}, {pace}", *(calls.shown() for calls in found if (calls.caller, calls.pace) == (caller, pace)))
            for caller, pace in rows
        ],
    )
    for pace in PACES:
        ours = [calls for calls in found if calls.caller == OURS and calls.pace == pace]
        medians = [calls.microseconds(0.5) for calls in ours]
        slowest = [calls.microseconds(0.99) for calls in ours]
        print(
            f"{pace}: at most {max(medians):.1f} (needed 25) and {max(slowest):.1f} (needed 150); slowest condition / "
            f"fastest {max(medians) / min(medians):.2f} (needed 2) and {max(slowest) / min(slowest):.2f}: ",
            end="",
        )
        same = max(medians) / min(medians) <= 2  # noqa: PLR2004 - as printed
        if pace == "after sleep":
            print("not judged")
            continue
        print("reached" if max(medians) <= 25 and max(slowest) <= 150 and same else "NOT REACHED")  # noqa: PLR2004

"""What heartbeats cost the agent that sends them, against what a user would pick instead.

Needs `pip install -c constraints.txt --group bench` for Celery and Dramatiq. What is measured, each in new processes:

  calls       the time of one session.progress(...) in the caller's thread, each after 0.5 to 1.5 ms of work, after
              1 ms of sleep, and in a row; beside rq.Queue.enqueue, Celery's delay and Dramatiq's send; with Redis up,
              down (refused), stopped (SIGSTOP) and black-holed (a port that accepts and swallows)
  throughput  messages/s from one thread into Redis; ours waits while its buffer is half full, and drops nothing
  sessions    10,000 sessions in one process: memory beyond the first, CPU, and how evenly their beats arrive
  one-shot    `fleetbeat-agent heartbeat` against `python -c "import redis"`, and `import fleetbeat_producer` against
              `import pydantic`; both put off much of their work, so that is shown with a first model and session too
  outage      100,000 calls while Redis is away: exceptions, memory, and whether each call is accounted for

How to read it: calls are in microseconds, median and 99th percentile over all calls of all runs, and the error
if they raised one; "> 20 s" means that not one call came back in that time. After a sleep a processor is slow at
anything, until its caches are warm: that is shown, as the others are measured so too, and not judged. Ratios are taken
within each run. All libraries have their default settings; none has hiredis, as agents have none.

Needed: calls of ours in 25 us (median) and 150 us (p99), their median in the slowest condition at most twice that in
the fastest; 15,000 messages/s and 8 times rq; 10,000 sessions in 100 MB and 10% of a core; one-shot at most 1.5 times
`import redis`; our import at most 30 ms more than pydantic's; every call accounted for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import click
from producer_calls import CALLS, OURS
from producer_costs import answers, measure_calls, report_calls
from support import (
    end_in_order,
    print_json,
    print_machine,
    print_table,
    redis_client,
    redis_that_is,
    shown,
    spread,
    verbatim,
)

from fleetbeat_shared.redis_keys import INBOX

_FIRST_MODEL = "from pydantic import BaseModel\nclass First(BaseModel): number: int"
_FIRST_SESSION = "from fleetbeat_producer import AgentSession; AgentSession('first', interval_seconds=30)"
SESSIONS = 10_000
INTERVAL_SECONDS = 30.0


def measure_throughput(runs: int, seconds: float) -> dict[str, list[float]]:
    """Return messages/s by caller."""
    found: dict[str, list[float]] = {name: [] for name in CALLS}
    for _ in range(runs):
        for name in CALLS:
            with redis_that_is("up") as url:
                found[name] += answers("sustain", name, seconds, url=url, within_seconds=600)
    return found


def report_throughput(found: dict[str, list[float]]) -> None:
    """Print the table of rates."""
    ratios = {
        name: [ours / theirs for ours, theirs in zip(found[OURS], rates, strict=True)] for name, rates in found.items()
    }
    print_table(
        "Messages/s of one process into Redis",
        ("caller", "per second", "ours is faster by", "needed"),
        [
            (
                name,
                spread(rates),
                "" if name == OURS else spread(ratios[name]),
                {OURS: "15,000", "rq Queue.enqueue": "8"}.get(name, ""),
            )
            for name, rates in found.items()
        ],
    )
    enough = median(found[OURS]) >= 15_000 and median(ratios["rq Queue.enqueue"]) >= 8  # noqa: PLR2004 - as above
    print("reached" if enough else "NOT REACHED")


def measure_sessions(seconds: float) -> dict[str, Any]:
    """Return what many sessions of one process take, and the largest number of beats of any second."""
    with redis_that_is("up") as url, closing(redis_client(url)) as client:
        (held,) = answers("hold_sessions", SESSIONS, INTERVAL_SECONDS, seconds, url=url, within_seconds=seconds + 300)
        seconds_of = [int(entry_id.partition(b"-")[0]) // 1000 for entry_id, _ in client.xrange(INBOX)]
    # The last full interval: the registrations are long through.
    last = max(seconds_of)
    per_second = [seconds_of.count(second) for second in range(last - int(INTERVAL_SECONDS), last)]
    return {
        "megabytes": held["memory"] / 1e6,
        "percent_of_a_core": held["core"] * 100,
        "beats_per_second": sum(per_second) / len(per_second),
        "most_in_a_second": max(per_second),
    }


def report_sessions(found: dict[str, Any]) -> None:
    """Print the table of sessions."""
    print_table(
        f"{SESSIONS:,} sessions in one process, a beat each {INTERVAL_SECONDS:.0f} s",
        ("what", "measured", "needed"),
        [
            ("memory, MB", shown(found["megabytes"]), "100"),
            ("CPU, % of a core", shown(found["percent_of_a_core"]), "10"),
            ("beats/s that arrived, mean", shown(found["beats_per_second"]), ""),
            ("beats/s that arrived, most", shown(found["most_in_a_second"]), "1.5 times the mean"),
        ],
    )
    reached = (
        found["megabytes"] < 100  # noqa: PLR2004 - as printed
        and found["percent_of_a_core"] < 10  # noqa: PLR2004 - as printed
        and found["most_in_a_second"] <= 1.5 * found["beats_per_second"]
    )
    print("reached" if reached else "NOT REACHED")


def measure_starts(runs: int) -> dict[str, list[float]]:
    """Return the seconds of whole processes, taken in turn."""
    agent = str(Path(sys.executable).parent / "fleetbeat-agent")
    commands = {
        "import redis": [sys.executable, "-c", "import redis"],
        "fleetbeat-agent heartbeat": [agent, "heartbeat", "--session", str(uuid4()), "--progress", "120 of 480 pages"],
        "import pydantic": [sys.executable, "-c", "import pydantic"],
        "import fleetbeat_producer": [sys.executable, "-c", "from fleetbeat_producer import AgentSession"],
        "pydantic and a first model": [sys.executable, "-c", _FIRST_MODEL],
        "fleetbeat_producer and a first session": [sys.executable, "-c", _FIRST_SESSION],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    with redis_that_is("up") as url:
        os.environ["FLEETBEAT_REDIS_URL"] = url
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody's installation is without its byte code
        for command in commands.values():
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for _ in range(runs):
            for name, command in commands.items():
                began = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                found[name].append(time.perf_counter() - began)
    return found


def report_starts(found: dict[str, list[float]]) -> None:
    """Print the table of starts."""
    ratio = median(found["fleetbeat-agent heartbeat"]) / median(found["import redis"])
    more = 1000 * (median(found["import fleetbeat_producer"]) - median(found["import pydantic"]))
    told = {
        "fleetbeat-agent heartbeat": (f"{ratio:.2f} times import redis", "1.5 times"),
        "import fleetbeat_producer": (f"{more:.0f} ms more than import pydantic", "30 ms more"),
    }
    print_table(
        "Whole processes, milliseconds",
        ("process", "milliseconds", "that is", "needed"),
        [
            (name, spread([1000 * second for second in seconds]), *told.get(name, ("", "")))
            for name, seconds in found.items()
        ],
    )
    print("reached" if ratio <= 1.5 and more <= 30 else "NOT REACHED")  # noqa: PLR2004 - as printed


def measure_outage(calls: int, seconds: float) -> dict[str, Any]:
    """Return what became of calls while Redis was away."""
    with redis_that_is("down") as url:
        (found,) = answers("call_without_redis", calls, seconds, url=url, within_seconds=seconds + 300)
    return {"calls": calls, **found}


def report_outage(found: dict[str, Any]) -> None:
    """Print the table of the outage."""
    most = int(found["seconds"] // 60) + 1
    print_table(
        f"{found['calls']:,} calls while Redis is away for {found['seconds']:.0f} s",
        ("what", "measured", "needed"),
        [
            ("exceptions", f"{found['raised']:,}", "0"),
            ("queued", f"{found['queued']:,}", ""),
            ("dropped", f"{found['dropped']:,}", ""),
            ("queued + sent + dropped", f"{found['accounted']:,}", f"{found['calls']:,}"),
            ("memory, MB", shown(found["memory"] / 1e6), "100"),
            ("warnings logged", f"{found['warnings']:,}", f"at most {most}"),
        ],
    )
    reached = not found["raised"] and found["accounted"] == found["calls"] and found["warnings"] <= most
    print("reached" if reached and found["memory"] < 100e6 else "NOT REACHED")  # noqa: PLR2004 - as printed


@click.command(help=verbatim(__doc__))
@click.option(
    "--only",
    type=click.Choice(["calls", "throughput", "sessions", "one-shot", "outage"]),
    multiple=True,
    help="Measure this; all if not given.",
)
@click.option("--calls", type=click.IntRange(100), default=3_000, show_default=True, help="Of each caller.")
@click.option("--seconds", type=click.FloatRange(1), default=5.0, show_default=True, help="Of each throughput.")
@click.option("--watch", type=click.FloatRange(31), default=60.0, show_default=True, help="Seconds with all sessions.")
@click.option("--outage", type=click.FloatRange(1), default=20.0, show_default=True, help="Seconds without Redis.")
@click.option(
    "--runs", type=click.IntRange(1), default=5, show_default=True, help="How often calls and rates are taken."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def main(  # noqa: PLR0913 - one for each option
    *, only: tuple[str, ...], calls: int, seconds: float, watch: float, outage: float, runs: int, as_json: bool
) -> None:
    """Measure, and print."""
    end_in_order()
    steps: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
        "calls": (lambda: measure_calls(calls, runs), report_calls),
        "throughput": (lambda: measure_throughput(runs, seconds), report_throughput),
        "sessions": (lambda: measure_sessions(watch), report_sessions),
        "one-shot": (lambda: measure_starts(5 * runs), report_starts),
        "outage": (lambda: measure_outage(100_000, outage), report_outage),
    }
    figures = {}
    for name, (measure, report) in steps.items():
        if not only or name in only:
            figures[name] = measure()
            if not as_json:
                report(figures[name])
    if as_json:
        if "calls" in figures:
            figures["calls"] = [calls.to_json() for calls in figures["calls"]]
        print_json("producer", figures)
    else:
        print_machine()


if __name__ == "__main__":
    main()

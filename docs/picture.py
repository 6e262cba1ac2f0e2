"""Picture of the dashboard: runs a small fleet on `fleetbeat up` and writes docs/dashboard.svg.

Run by `make picture`. It takes a minute, as the agents really fall silent. The picture shows what `fleetbeat dashboard`
printed, in its colours.
"""  # noqa: INP001 - a script, no package

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from fleetbeat_producer import register, send_heartbeat

PICTURE = Path(__file__).with_name("dashboard.svg")
WIDTH = 100
BIN = Path(sys.executable).parent

REPORTS: dict[str, dict[str, Any]] = {
    "kami": {
        "progress": "folding letters for March",
        "work_item_id": "POST-9",
        "status": "error",
        "error": "HTTP 502 from the letters service, third try",
        "open_tasks": 9,
        "stale_tasks": 3,
    },
    "rams": {
        "progress": "drawing plan 7",
        "work_item_id": "PLAN-7",
        "status": "busy",
        "summary": "waiting for a review",
        "open_tasks": 4,
        "stale_tasks": 1,
    },
    "sora": {"progress": "asking the search tool again", "work_item_id": "Q-88", "status": "busy", "open_tasks": 1},
    "hint": {
        "progress": "120 of 480 pages read",
        "work_item_id": "W-17",
        "status": "busy",
        "summary": "indexing the handbook",
        "open_tasks": 12,
    },
    "torv": {"progress": "morning digest sent", "status": "ok", "summary": "42 readers"},
}
"""What each agent's heartbeats report."""
PROMISES: dict[str, dict[str, Any]] = {
    "kami": {"interval_seconds": 20},
    "rams": {"interval_seconds": 30},
    "sora": {"interval_seconds": 30, "stuck_after": 1},
    "hint": {"interval_seconds": 60},
    "torv": {"schedule": "15 8 * * *"},
}
BEATS = ((0, "kami rams sora hint torv"), (8, "rams"), (35, "sora"), (38, "hint"))
"""Which agents beat how many seconds after the start: kami dies at once, rams later, sora repeats itself."""
SHOT_SECONDS = 43
"""When the picture is taken: sora is stuck after 31.5 s, rams late after 39.5 s, kami degraded after 41 s."""


def main() -> None:
    """Run the fleet, and write the picture."""
    with tempfile.TemporaryDirectory(prefix="fleetbeat-picture-") as directory, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        for name in [name for name in os.environ if name.startswith("FLEETBEAT_")]:
            del os.environ[name]
        os.environ |= {
            "FLEETBEAT_DATA_DIR": directory,
            "FLEETBEAT_REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "FLEETBEAT_SWEEP_SECONDS": "1",
            "FLEETBEAT_LOG_LEVEL": "ERROR",
        }
        pipeline = subprocess.Popen([BIN / "fleetbeat", "up", "--port", port], stdout=subprocess.PIPE)  # noqa: S603 - our own command
        try:
            if pipeline.stdout is None or not pipeline.stdout.readline():
                sys.exit("fleetbeat up did not start; its error is above.")
            play()
            PICTURE.write_text(drawn(shot()), encoding="utf-8")
        finally:
            pipeline.send_signal(signal.SIGINT)
            pipeline.communicate()


def play() -> None:
    """Let all agents beat at their times, and wait until the picture can be taken."""
    sessions = {name: register(name, **promise).session_id for name, promise in PROMISES.items()}
    began = time.monotonic()
    for seconds, names in BEATS:
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        for name in names.split():
            send_heartbeat(sessions[name], wait_seconds=10, **REPORTS[name])
    time.sleep(max(0.0, began + SHOT_SECONDS - time.monotonic()))


def shot() -> str:
    """Return what `fleetbeat dashboard` prints on a terminal with colours."""
    terminal = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm", "COLUMNS": str(WIDTH)}
    command = [BIN / "fleetbeat", "dashboard"]
    return subprocess.run(command, env=os.environ | terminal, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - our own command


def drawn(printed: str) -> str:
    """Return printed text as an SVG of a terminal window. No font is embedded: the reader's own monospace does."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere)
        console.print(Text.from_ansi(printed.rstrip()), no_wrap=True)
    style = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title="fleetbeat dashboard", code_format=style, unique_id="dashboard") + "\n"


if __name__ == "__main__":
    main()

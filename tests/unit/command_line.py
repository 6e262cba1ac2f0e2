"""Running the commands of `fleetbeat` in the tests' own process."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from fleetbeat_worker.cli import main


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def answer(*args: str, code: int = 0) -> Any:
    """Run a command that exits with `code`; return what it prints with `--json`."""
    result = run(*args, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)

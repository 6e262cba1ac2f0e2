"""Where the acceptance tests run the installed commands: a directory and an environment of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from acceptance.command_server import SCRIPTS, CommandServer
from fleetbeat_worker.broker.embedded_valkey import find_free_port
from helpers import eventually

PATIENCE_SECONDS = 40.0
"""How long a step may take on a machine that has much else to do; far more than any step needs."""
QUICK = {"FLEETBEAT_SWEEP_SECONDS": "0.5", "FLEETBEAT_LINGER_SECONDS": "0.2", "FLEETBEAT_LEASE_SECONDS": "2"}
"""Short times, so that no test waits for a default."""


@dataclass(frozen=True)
class Done:
    """What a user sees of a command that ended."""

    exit_status: int
    stdout: str
    stderr: str

    @property
    def all(self) -> str:
        """Return both outputs."""
        return self.stdout + self.stderr

    @property
    def json(self) -> Any:
        """Return the object that it printed."""
        return json.loads(self.stdout)


class Running:
    """A command that goes on, with what it has printed so far."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str], directory: Path, number: int) -> None:
        self._out, self._err = (directory / f"{number}.{name}" for name in ("stdout", "stderr"))
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                env=environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # a foreground group of its own, as a terminal would give it
            )

    @property
    def stdout(self) -> str:
        """Return what it has printed so far."""
        return self._out.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        """Return what it has logged so far."""
        return self._err.read_text(encoding="utf-8")

    def says(self, text: str) -> None:
        """Wait until it has printed a text."""

        def look() -> bool:
            if text in self.stdout + self.stderr:
                return True
            assert self.process.poll() is None, f"ended without {text!r}:\n{self.stdout}{self.stderr}"
            return False

        eventually(look, within_seconds=PATIENCE_SECONDS)

    def children(self) -> list[psutil.Process]:
        """Return all processes below it."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def press_ctrl_c(self) -> None:
        """Do what a terminal does: signal the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ends(self, within_seconds: float = PATIENCE_SECONDS) -> Done:
        """Wait until it ends."""
        status = self.process.wait(within_seconds)
        return Done(status, self.stdout, self.stderr)


class Place:
    """A directory and an environment; whatever runs there can be found and ended."""

    def __init__(self, directory: Path, commands: CommandServer, **variables: str) -> None:
        self._commands = commands
        self.directory = directory.resolve()
        # A folder below, so that a test's own files are none of those that the commands leave.
        temporary = self.directory / "tmp"
        temporary.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLEETBEAT_", "PYTHON"))}
        self.environment = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.directory),
            "TMPDIR": str(temporary),
            **variables,
        }
        self._started: list[Running] = []

    def run(self, *command: str, exits: int | None = 0, **variables: str) -> Done:
        """Run a command to its end, and hold it to an exit status."""
        told = self._run(command, self.environment | variables)
        assert "Traceback" not in told.all, told.all
        assert exits is None or told.exit_status == exits, (command, told)
        return told

    def _run(self, command: Sequence[str], environment: dict[str, str]) -> Done:
        if command[0] in SCRIPTS:
            return Done(*self._commands.run(command, environment, self.directory, PATIENCE_SECONDS))
        done = subprocess.run(
            command,
            env=environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def run_all(self, commands: Iterable[Sequence[str]], **variables: str) -> list[Done]:
        """Run commands, some at the same time, whatever their exit statuses; return what they printed, in order."""
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda command: self.run(*command, exits=None, **variables), commands))

    def json(self, *command: str, exits: int | None = 0) -> Any:
        """Run a command with --json, and return the object that it prints."""
        return self.run(*command, "--json", exits=exits).json

    def start(self, *command: str, **variables: str) -> Running:
        """Start a command that goes on; it ends with the test at the latest."""
        running = Running(command, self.environment | variables, self.directory, len(self._started))
        self._started.append(running)
        return running

    def processes(self) -> list[psutil.Process]:
        """Return what runs here, also what its parent left behind: every process works in this directory or below."""
        return [process for process in psutil.process_iter() if self._is_here(process)]

    def _is_here(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(self.directory)
        return False

    def is_empty(self) -> bool:
        """Return whether nothing runs here."""
        return not self.processes()

    def end_all(self) -> None:
        """End whatever runs here."""
        while found := self.processes():
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            with suppress(psutil.TimeoutExpired, psutil.NoSuchProcess):
                found[0].wait(0.05)
        for running in self._started:
            running.process.wait(PATIENCE_SECONDS)

    def start_up(self, *options: str, port: int | None = None) -> Running:
        """Start `fleetbeat up` on a free port, and wait until it runs."""
        port = port or find_free_port()
        self.environment["FLEETBEAT_REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
        up = self.start("fleetbeat", "up", "--port", str(port), *options)
        up.says("Fleetbeat is running.")
        return up

    def agent(self, name: str) -> dict[str, Any] | None:
        """Return the newest session of a name as the dashboard's JSON has it."""
        # Status 1 while nobody of the name is registered yet.
        found = self.json("fleetbeat", "dashboard", "--all", "--agent", name, exits=None)["agents"]
        return max(found, key=lambda agent: agent["registered_at"], default=None)

    def state(self, name: str) -> str | None:
        """Return the state of the newest session of a name, or None if there is none."""
        found = self.agent(name)
        return found["state"] if found else None

    def eventually_state(self, name: str, state: str) -> dict[str, Any]:
        """Wait until an agent is in a state."""
        look = lambda: (found := self.agent(name)) and found["state"] == state and found  # noqa: E731 - one look
        return eventually(look, within_seconds=PATIENCE_SECONDS)

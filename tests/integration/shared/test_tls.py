from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import pytest
import trustme

from acceptance.command_server import CommandServer
from acceptance.place import QUICK, Place
from processes import fork


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a CA that signed a server at 127.0.0.1 and a client, and another CA."""
    folder = tmp_path_factory.mktemp("certificates")
    ours, other = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other-ca.pem")
    for name, issued in (("server", ours.issue_cert("127.0.0.1")), ("agent", ours.issue_cert("agent.example"))):
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for part in issued.cert_chain_pems:
            part.write_to_path(folder / f"{name}.pem", append=True)
    return folder


@pytest.fixture
def port(redis_url: str, certificates: Path) -> Iterator[int]:
    """Return the port of a TLS server before a real Valkey; it accepts clients with a certificate of our CA."""
    inner = int(redis_url.rpartition(":")[2].partition("/")[0])
    listener = socket.create_server(("127.0.0.1", 0))
    process = fork(lambda: terminate_tls(listener, certificates, inner))
    found = listener.getsockname()[1]
    listener.close()
    yield found
    process.kill()
    process.join()


def terminate_tls(listener: socket.socket, certificates: Path, inner: int) -> None:
    """Serve until killed. No server of asyncio: it closes without an alert about the certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem"))
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    while True:
        accepted, _ = listener.accept()
        threading.Thread(target=serve, args=(accepted, context, inner)).start()


def serve(accepted: socket.socket, context: ssl.SSLContext, inner: int) -> None:
    with (
        suppress(OSError),
        context.wrap_socket(accepted, server_side=True) as outside,
        socket.create_connection(("127.0.0.1", inner)) as inside,
    ):
        while True:
            for source in [outside] if outside.pending() else select.select([outside, inside], [], [])[0]:
                data = source.recv(65_536)
                if not data:
                    return
                (inside if source is outside else outside).sendall(data)


@pytest.fixture
def place(tmp_path: Path, commands: CommandServer, sqlite_url: str) -> Iterator[Place]:
    made = Place(tmp_path, commands, **QUICK, FLEETBEAT_DATABASE_URL=sqlite_url)
    yield made
    made.end_all()


def url(port: int, host: str = "127.0.0.1", **options: Path) -> str:
    return f"rediss://{host}:{port}/0?{urlencode(options)}"


def ours(certificates: Path) -> dict[str, Path]:
    """Return the options that an agent or a worker needs."""
    return {
        "ssl_ca_certs": certificates / "ca.pem",
        "ssl_certfile": certificates / "agent.pem",
        "ssl_keyfile": certificates / "agent.key",
    }


def test_agents_and_workers_use_tls(place: Place, port: int, certificates: Path) -> None:
    """With a CA and a certificate in the URL, workers store an agent's heartbeat, and the agent gets the reply."""
    place.environment["FLEETBEAT_REDIS_URL"] = url(port, **ours(certificates))
    worker = place.start("fleetbeat", "worker")
    place.run("fleetbeat-agent", "register", "--name", "hint", "--every", "30s", "--stable")
    answer = place.json("fleetbeat-agent", "heartbeat", "--agent", "hint", "--progress", "in secret", "--wait", "20")
    assert answer["progress"] == "in secret"
    assert place.json("fleetbeat", "queue")["workers"]
    worker.process.terminate()
    assert worker.ends().exit_status == 0
    # What workers log names the place and none of the options.
    assert f"rediss://127.0.0.1:{port}/0" in worker.stderr
    assert "ssl_" not in worker.stderr


@pytest.mark.parametrize(
    "trouble",
    [
        ("127.0.0.1", {"ssl_ca_certs": "other-ca.pem"}, "certificate isn't trusted"),
        ("127.0.0.1", {"ssl_ca_certs": None}, "certificate isn't trusted"),
        ("localhost", {}, "certificate isn't trusted for this host"),
        ("127.0.0.1", {"ssl_certfile": None, "ssl_keyfile": None}, "it may require another client certificate"),
        ("127.0.0.1", {"ssl_ca_certs": "missing.pem"}, "can't be opened"),
        ("127.0.0.1", {"ssl_certfile": "missing.pem"}, "can't be opened"),
    ],
)
def test_tls_failures_are_described(
    place: Place, port: int, certificates: Path, trouble: tuple[str, dict[str, str | None], str]
) -> None:
    """An untrusted server, another host's certificate, a missing client certificate: each has a sentence of its own."""
    host, changes, expected = trouble
    kept = {name: path for name, path in ours(certificates).items() if name not in changes}
    changed = {name: certificates / file for name, file in changes.items() if file is not None}
    given = url(port, host, **kept, **changed)
    found = place.run("fleetbeat", "queue", "--redis-url", given, exits=75)
    assert expected in found.stderr
    assert "ssl_" not in found.all

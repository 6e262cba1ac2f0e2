from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from uuid import uuid4

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from acceptance.place import PATIENCE_SECONDS, Place, Running
from fleetbeat_worker.telemetry.exporter import SCRAPES_AT_ONCE
from helpers import eventually, heartbeat, register, send


def ask(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    """Return the status and the body of an answer."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def scrape(port: int) -> dict[str, float]:
    """Return every sample, named as Prometheus names it."""
    status, body = ask(port)
    assert status == 200
    samples = [sample for family in text_string_to_metric_families(body) for sample in family.samples]
    return {_key(sample.name, sample.labels): sample.value for sample in samples}


def _key(name: str, labels: dict[str, str]) -> str:
    said = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{said}}}" if said else name


def port_of(worker: Running) -> int:
    worker.says("Metrics are served")
    found = re.search(r'Metrics are served .*"port": (\d+)', worker.stderr)
    assert found is not None
    return int(found[1])


HEARTBEATS = 'fleetbeat_ingested_total{kind="heartbeat"}'


def test_two_workers_count_what_they_store(pipeline: Place, redis: Redis) -> None:
    """Under load and with processes killed, the counters are what is stored; without Redis they still answer."""
    session_id = uuid4()
    send(redis, register("torv", session_id, interval_seconds=3600), b"hello")
    worker = pipeline.start("fleetbeat", "worker", "-n", "2", "--metrics-port", "0", FLEETBEAT_BATCH_SIZE="100")
    port = port_of(worker)
    sent = 0
    for _ in range(20):
        send(redis, *(heartbeat(session_id) for _ in range(200)))
        sent += 200
    eventually(lambda: scrape(port)[HEARTBEATS] == sent, within_seconds=PATIENCE_SECONDS)
    found = scrape(port)
    assert found['fleetbeat_ingested_total{kind="register"}'] == 1
    assert found['fleetbeat_rejected_total{reason="not_json"}'] == 1
    assert found["fleetbeat_batch_messages_sum"] == sent + 1
    assert found['fleetbeat_agents{state="ended"}'] == 0
    assert sum(value for name, value in found.items() if name.startswith("fleetbeat_workers{")) == 2
    assert found['fleetbeat_up{target="redis"}'] == found['fleetbeat_up{target="sql"}'] == 1

    for child in psutil.Process(worker.process.pid).children():
        child.kill()  # the dispatcher, the controller, both workers and the exporter
    eventually(lambda: answers(port) and scrape(port)["fleetbeat_process_restarts_total"] == 5)
    send(redis, *(heartbeat(session_id) for _ in range(200)))
    eventually(lambda: scrape(port)[HEARTBEATS] == sent + 200, within_seconds=PATIENCE_SECONDS)

    server = psutil.Process(redis.info("server")["process_id"])
    server.suspend()
    try:
        found = eventually(lambda: (told := scrape(port))['fleetbeat_up{target="redis"}'] == 0 and told)
    finally:
        server.resume()
    assert found[HEARTBEATS] == sent + 200
    assert found['fleetbeat_up{target="sql"}'] == 1
    assert "fleetbeat_backlog" not in found
    eventually(lambda: scrape(port).get("fleetbeat_backlog") == 0, within_seconds=PATIENCE_SECONDS)
    worker.press_ctrl_c()
    done = worker.ends()
    assert done.exit_status == 0
    assert "Traceback" not in done.stderr
    assert not answers(port)


def answers(port: int) -> bool:
    with suppress(OSError):
        return ask(port, "/")[0] == 200
    return False


def test_workers_without_a_port_pay_for_nothing() -> None:
    """What serves metrics is imported only where they are served."""
    code = (
        "import sys, fleetbeat_worker.cli.worker, fleetbeat_worker.cli.up\n"
        "print(*sorted({'prometheus_client', 'fleetbeat_worker.telemetry.exporter', 'http.server'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_scrapers_that_hang_are_no_trouble(pipeline: Place) -> None:
    """Only some are answered at a time, and what isn't GET or isn't there is refused."""
    worker = pipeline.start("fleetbeat", "worker", "--metrics-port", "0")
    port = port_of(worker)
    eventually(lambda: answers(port), within_seconds=PATIENCE_SECONDS)
    assert "/metrics" in ask(port, "/")[1]
    assert [ask(port, "/etc/passwd")[0], ask(port, "/metrics", "POST")[0]] == [404, 501]
    with ExitStack() as stack:
        for _ in range(SCRAPES_AT_ONCE):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            slow.sendall(b"GET /metrics HT")
        eventually(lambda: not answers(port))
    eventually(lambda: answers(port), within_seconds=PATIENCE_SECONDS)
    assert scrape(port)["fleetbeat_process_restarts_total"] == 0


def test_a_port_that_is_taken(pipeline: Place) -> None:
    """The worker says so in a sentence and exits 1 before anything runs."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = pipeline.run("fleetbeat", "worker", "--burst", "--metrics-port", port, exits=1)
        same = pipeline.run("fleetbeat", "worker", "--burst", exits=1, FLEETBEAT_METRICS_PORT=port)
    told = f"Error: Metrics can't be served at 127.0.0.1, port {port} (Address already in use). Choose another"
    assert refused.stderr.startswith(told)
    assert same.stderr == refused.stderr
    assert pipeline.is_empty()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_port_is_free_for_the_next_pool(pipeline: Place, number: signal.Signals) -> None:
    """However a pool ended, the next one can have its port at once, though a worker may still end its batch."""
    first = pipeline.start("fleetbeat", "worker", "--metrics-port", "0")
    port = port_of(first)
    eventually(lambda: answers(port), within_seconds=PATIENCE_SECONDS)
    first.process.send_signal(number)
    first.ends()
    eventually(lambda: not answers(port), within_seconds=PATIENCE_SECONDS)
    pipeline.run("fleetbeat", "worker", "--burst", "--metrics-port", str(port))

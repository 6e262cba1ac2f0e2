"""The process of a pool that serves its metrics by HTTP.

Its parent opens the port before it forks: a port that is taken is told at the start, and one process that dies leaves
it to the next. Scrapers can be slow or many without any harm to the workers: some are answered at a time, each within a
time, and others are hung up on.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import keep_counters

if TYPE_CHECKING:
    from fleetbeat_worker.telemetry.exposition import Readings  # it brings prometheus_client

ReadGauges = Callable[[], "Readings"]

SCRAPES_AT_ONCE = 8
SCRAPE_SECONDS = 15.0
"""After this time a scraper is hung up on, whatever it does."""

_INDEX = b"<!doctype html><title>Fleetbeat</title><a href='/metrics'>Metrics</a>\n"


class Exporter:
    """A port that is open, and the counters of the pool that is forked afterwards."""

    def __init__(self, settings: Settings, port: int, open_gauges: Callable[[Settings], ReadGauges]) -> None:
        """Open the port, and count from now on. The process that serves it calls `open_gauges` once.

        Raises FleetbeatError when the port can't be had.
        """
        self._open_gauges = open_gauges
        host = settings.metrics_host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family)
            self._counters = keep_counters()
        except OSError as error:
            why = (error.strerror or type(error).__name__).partition(" (")[0]  # what follows names the place again
            message = f"Metrics can't be served at {host}, port {port} ({why}). Choose another --metrics-port."
            raise FleetbeatError(message) from error
        logger.info("Metrics are served", extra={"host": host, "port": self.port})

    @property
    def port(self) -> int:
        """The port, also if the system chose it."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Close the port in this process; another may go on to serve it."""
        self._listener.close()

    def run(self, settings: Settings) -> None:
        """Serve until the process is ended."""
        from fleetbeat_worker.telemetry.exposition import expose  # here, for only this process needs the library

        read_gauges = self._open_gauges(settings)
        _Server(self._listener, lambda accept: expose(self._counters.totals(), read_gauges(), accept)).serve_forever()


class _Server(ThreadingHTTPServer):
    """A server that is never busy with more than some scrapers."""

    def __init__(self, listener: socket.socket, answer: Callable[[str], tuple[bytes, str]]) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.answer = answer
        self._free = threading.BoundedSemaphore(SCRAPES_AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's
        """Answer in a thread, or hang up if there are enough."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as above
        """Answer within the time."""
        hang_up = threading.Timer(SCRAPE_SECONDS, _hang_up, (request,))
        hang_up.daemon = True
        hang_up.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            hang_up.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 - as above
        """Say why a scrape failed: most of all because the scraper went away."""
        logger.debug("A scrape failed", exc_info=True)


def _hang_up(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One request: GET, and no other."""

    server: _Server
    server_version = "fleetbeat"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with the metrics, or with a page that leads to them."""
        match urlsplit(self.path).path:
            case "/metrics":
                self._send(*self.server.answer(self.headers.get("Accept", "")))
            case "/":
                self._send(_INDEX, "text/html; charset=utf-8")
            case _:
                self.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, body: bytes, content_type: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - http.server's
        """Keep what a scraper asks for out of the log."""

"""Metrics exporter: the process of a pool that serves its metrics by HTTP.

Its parent opens the port before it forks: a port in use is an error at the start, and a process that is restarted has
the same port. Slow or many scrapers don't harm the workers: the number of scrapes at once and their time are limited,
and other connections are closed.
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
"""After this time a scraper's connection is closed."""

_INDEX = b"<!doctype html><title>Fleetbeat</title><a href='/metrics'>Metrics</a>\n"


class Exporter:
    """An open port, and the counters of the pool that is forked afterwards."""

    def __init__(self, settings: Settings, port: int, open_gauges: Callable[[Settings], ReadGauges]) -> None:
        """Open the port, and count from now on. The process that serves it calls `open_gauges` once.

        Raises FleetbeatError when the port can't be opened.
        """
        self._open_gauges = open_gauges
        host = settings.metrics_host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family)
            self._counters = keep_counters()
        except OSError as error:
            why = (error.strerror or type(error).__name__).partition(" (")[0]  # the rest repeats the address
            message = f"Metrics can't be served at {host}, port {port} ({why}). Choose another --metrics-port."
            raise FleetbeatError(message) from error
        logger.info("Metrics are served", extra={"host": host, "port": self.port})

    @property
    def port(self) -> int:
        """The port, also if the system has chosen it."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Close the port in this process; another one may still serve it."""
        self._listener.close()

    def run(self, settings: Settings) -> None:
        """Serve until the process is ended."""
        from fleetbeat_worker.telemetry.exposition import expose  # here, as only this process needs the library

        read_gauges = self._open_gauges(settings)
        _Server(self._listener, lambda accept: expose(self._counters.totals(), read_gauges(), accept)).serve_forever()


class _Server(ThreadingHTTPServer):
    """A server that answers a limited number of scrapers at once."""

    def __init__(self, listener: socket.socket, answer: Callable[[str], tuple[bytes, str]]) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.answer = answer
        self._free = threading.BoundedSemaphore(SCRAPES_AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's
        """Answer in a thread, or close the connection if there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as above
        """Answer within `SCRAPE_SECONDS`."""
        close_late = threading.Timer(SCRAPE_SECONDS, _shut_down, (request,))
        close_late.daemon = True
        close_late.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            close_late.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 - as above
        """Log why a scrape failed: mostly because the scraper closed the connection."""
        logger.debug("A scrape failed", exc_info=True)


def _shut_down(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One request: GET, and no other."""

    server: _Server
    server_version = "fleetbeat"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with the metrics, or with a page that links to them."""
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
        """Log no request."""

"""Where notifications go in tests: a real HTTP server and a real SMTP server, each with moods."""

from __future__ import annotations

import email
import email.policy
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller

from helpers import free_port


class HttpReceiver:
    """A webhook: it keeps what it is sent, and answers with a status, or not at all as long as it hangs."""

    def __init__(self) -> None:
        self.status = 200
        self.port = 0
        self.tries: list[dict[str, Any]] = []
        """What was sent, taken or not."""
        self.taken: list[dict[str, Any]] = []
        self._goes_on = threading.Event()
        self._goes_on.set()

    def hang(self) -> None:
        """Answer nobody from now on."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """Answer all that wait, and those to come."""
        self._goes_on.set()

    def url(self, path: str = "") -> str:
        """Return the webhook's URL for Apprise."""
        return f"json://127.0.0.1:{self.port}/{path}"

    def take(self, payload: dict[str, Any]) -> int:
        """Receive one message; return the status to answer with."""
        self.tries.append(payload)
        self._goes_on.wait(60)
        if self.status < 300:
            self.taken.append(payload)
        return self.status


@contextmanager
def http_receiver() -> Iterator[HttpReceiver]:
    """Run a webhook on a port of its own."""
    receiver = HttpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = receiver.take(payload)
            try:
                self.send_response(status)
                self.end_headers()
            except OSError:  # whoever asked has given up
                return

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Say nothing of a client that was killed, or has given up."""

    server = Server(("127.0.0.1", 0), Handler)
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.go_on()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def dribbler() -> Iterator[str]:
    """Yield the URL of a webhook that answers a letter at a time, and never ends: no time-out of a socket helps."""
    enough = threading.Event()

    def dribble(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not enough.wait(0.05):
                connection.sendall(b"a")

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=dribble, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"json://127.0.0.1:{server.getsockname()[1]}/"
        enough.set()
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


class SmtpReceiver:
    """A mail server: it keeps what it is sent."""

    def __init__(self) -> None:
        self.port = free_port()
        self.mails: list[EmailMessage] = []

    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        """Receive one mail."""
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))  # type: ignore[arg-type]
        return "250 OK"

    @property
    def url(self) -> str:
        """The mail server's URL for Apprise."""
        return f"mailto://127.0.0.1:{self.port}?from=fleet@example.org&to=ops@example.org&mode=insecure"


@contextmanager
def smtp_receiver() -> Iterator[SmtpReceiver]:
    """Run a mail server on a port of its own."""
    receiver = SmtpReceiver()
    controller = Controller(receiver, hostname="127.0.0.1", port=receiver.port)
    controller.start()
    try:
        yield receiver
    finally:
        controller.stop()

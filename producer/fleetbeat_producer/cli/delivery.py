"""How a one-shot command's message gets to Redis, and what is told of it."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from fleetbeat_producer.one_shot.call import OneShot
from fleetbeat_shared.errors import FleetbeatError, RedisUnavailable
from fleetbeat_shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleetbeat_shared.messages import Heartbeat, Message, Reply


class Delivery:
    """The options that all one-shot commands have, and what they mean."""

    def __init__(self, redis_url: str | None, timeout: float | None, log_file: Path | None, *, as_json: bool) -> None:
        changes = {"redis_url": redis_url, "redis_timeout_seconds": timeout}
        self._changes = {name: value for name, value in changes.items() if value is not None}
        self._log_file = log_file
        self.as_json = as_json
        self.outcome = ""
        """What the log says of the call; the error's code if there is one and nothing else was said."""
        self._environment: dict[str, str] = dict(os.environ)
        self._message: Message | None = None

    def redirect(self, url_file: Path) -> None:
        """Send to the Redis whose URL a file holds, whatever the options and the environment say."""
        self._changes.pop("redis_url", None)
        self._environment.pop("FLEETBEAT_REDIS_URL", None)
        self._environment["FLEETBEAT_REDIS_URL_FILE"] = str(url_file)

    @contextmanager
    def logged(self, agent: str | None) -> Iterator[None]:
        """Add a line to the log, if there is one, about what becomes of the call in this block."""
        self.outcome, self._message = "", None
        try:
            yield
        except FleetbeatError as error:
            self.outcome = self.outcome or error.code
            raise
        except click.UsageError:
            self.outcome = "usage"
            raise
        finally:
            if self._log_file is not None:
                self._log(self._log_file, agent or "-")

    def send(self, message: Message) -> None:
        """Send a message. Raises RedisUnavailable, and SettingsError."""
        self._message = message
        one_shot = self._one_shot()
        try:
            one_shot.send(message)
            self.outcome = "sent"
        finally:
            _warn(*one_shot.warnings)

    def send_or_keep(
        self, message: Heartbeat, *, wait_seconds: float | None, strict: bool
    ) -> tuple[Reply | None, bool]:
        """Send a heartbeat, or keep it on disk while Redis is away; return SQL's answer and whether it was kept.

        Raises RedisUnavailable when it is lost, and when it was kept although somebody waits or wants to know.
        """
        self._message = message
        one_shot = self._one_shot()
        try:
            reply = one_shot.send(message, wait_seconds)
            self.outcome = "sent" if reply is None else "confirmed"
        except RedisUnavailable as error:
            kept = one_shot.spool(message, error)
            if not kept.spooled:
                raise kept from error
            self.outcome = "spooled"
            if strict or wait_seconds is not None:
                raise kept from error
            _warn(str(kept))
            return None, True
        else:
            return reply, False
        finally:
            _warn(*one_shot.warnings)

    def _one_shot(self) -> OneShot:
        return OneShot(Settings.from_environment(self._environment).model_copy(update=self._changes))

    def _log(self, path: Path, agent: str) -> None:
        from fleetbeat_producer.one_shot import call_log  # not everybody wants one

        sent = {} if self._message is None else json.loads(self._message.to_wire())
        try:
            call_log.append(path, agent, self.outcome or "error", sent)
        except OSError as error:
            _warn(f"The log {click.format_filename(path)} can't be written ({error.strerror or error}).")


def _warn(*sentences: str) -> None:
    for sentence in sentences:
        click.echo(f"Warning: {sentence}", err=True)

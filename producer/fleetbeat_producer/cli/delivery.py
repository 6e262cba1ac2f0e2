"""Delivery of a one-shot command's message: sends or spools it, prints warnings, and logs the outcome."""

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
    """The options that all one-shot commands share, and sending according to them."""

    def __init__(self, redis_url: str | None, timeout: float | None, log_file: Path | None, *, as_json: bool) -> None:
        options = {"redis_url": redis_url, "redis_timeout_seconds": timeout}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._log_file = log_file
        self.as_json = as_json
        self._environment: dict[str, str] = dict(os.environ)
        self._outcome = ""  # for the log
        self._message: Message | None = None

    def use_url_file(self, url_file: Path) -> None:
        """Send to the Redis whose URL is in a file, whatever the options and the environment say."""
        self._options.pop("redis_url", None)
        self._environment.pop("FLEETBEAT_REDIS_URL", None)
        self._environment["FLEETBEAT_REDIS_URL_FILE"] = str(url_file)

    @contextmanager
    def logged(self, agent: str | None) -> Iterator[None]:
        """Add a line with the outcome of the block to the log file, if there is one."""
        self._outcome, self._message = "", None
        try:
            yield
        except FleetbeatError as error:
            self._outcome = self._outcome or error.code
            raise
        except click.UsageError:
            self._outcome = "usage"
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
            self._outcome = "sent"
        finally:
            _warn(*one_shot.warnings)

    def send_or_spool(
        self, message: Heartbeat, *, wait_seconds: float | None, strict: bool
    ) -> tuple[Reply | None, bool]:
        """Send a heartbeat, or spool it while Redis is away; return the workers' reply and whether it was spooled.

        Raises RedisUnavailable when it is lost, or when it was spooled although `strict` or `wait_seconds` is given.
        """
        self._message = message
        one_shot = self._one_shot()
        try:
            reply = one_shot.send(message, wait_seconds)
            self._outcome = "sent" if reply is None else "confirmed"
        except RedisUnavailable as error:
            extended = one_shot.spool(message, error)
            if not extended.spooled:
                raise extended from error
            self._outcome = "spooled"
            if strict or wait_seconds is not None:
                raise extended from error
            _warn(str(extended))
            return None, True
        else:
            return reply, False
        finally:
            _warn(*one_shot.warnings)

    def _one_shot(self) -> OneShot:
        return OneShot(Settings.from_environment(self._environment).model_copy(update=self._options))

    def _log(self, path: Path, agent: str) -> None:
        from fleetbeat_producer.one_shot import call_log  # most calls have no log file

        message = {} if self._message is None else json.loads(self._message.to_wire())
        try:
            call_log.append(path, agent, self._outcome or "error", message)
        except OSError as error:
            _warn(f"The log {click.format_filename(path)} can't be written ({error.strerror or error}).")


def _warn(*sentences: str) -> None:
    for sentence in sentences:
        click.echo(f"Warning: {sentence}", err=True)

"""One message of one process: what an earlier one left on disk first, and all of it within a time."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from fleetbeat_producer.one_shot.spool import Spool
from fleetbeat_producer.transport import Transport, check_wait
from fleetbeat_shared.connection import unavailable
from fleetbeat_shared.errors import NotConfirmed, RedisUnavailable, SpoolUnusable

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetbeat_shared.messages import Heartbeat, Message
    from fleetbeat_shared.replies import Reply
    from fleetbeat_shared.settings import Settings

_Result = TypeVar("_Result")


class OneShot:
    """The way of one message, with the settings' timeout for all that may hang until Redis has it."""

    def __init__(self, settings: Settings) -> None:
        """Prepare it. Raises SettingsError when the settings' URL is none of Redis's."""
        self._settings = settings
        self._transport = Transport(settings)
        self._spool = Spool(settings.spool_dir)
        self._warnings: list[str] = []

    @property
    def warnings(self) -> list[str]:
        """What went wrong beside the message, as sentences."""
        return [*self._warnings, *filter(None, [str(self._spool.dropped)])]

    def send(self, message: Message, wait_seconds: float | None = None) -> Reply | None:
        """Send what is spooled, then the message; with `wait_seconds` wait for what SQL says of it, and return that.

        Each batch that Redis answers gives the next one the whole timeout.

        Raises InvalidMessage when this is no time to wait, RedisUnavailable when the message wasn't acknowledged in
        time, and with `wait_seconds` NotConfirmed, UnknownSession, SessionEnded and MessageRejected.
        """
        if wait_seconds is not None:
            check_wait(wait_seconds)
        timeout_seconds = self._settings.redis_timeout_seconds
        sent: list[float] = []

        def work(allow: Callable[[float], None]) -> Reply | None:
            self._drain(allow)
            self._transport.send(message)
            if wait_seconds is None:
                return None
            sent.append(time.monotonic())
            allow(wait_seconds + timeout_seconds)
            return self._transport.hear(message, wait_seconds, sent[0])

        try:
            return _within(timeout_seconds, work)
        except OSError as error:  # TimeoutError is one of them
            failed = unavailable(self._settings.redis_url, error)
            if not sent:
                raise failed from error
            text = f"The message was sent, but no answer could be read. {failed}"
            raise NotConfirmed(text) from error

    def _drain(self, allow: Callable[[float], None]) -> None:
        def send(wires: list[bytes]) -> list[RedisUnavailable | None]:
            errors = self._transport.send_all(wires)
            allow(self._settings.redis_timeout_seconds)
            return errors

        try:
            self._spool.drain(send)
        except SpoolUnusable as error:
            self._warnings.append(str(error))

    def keep(self, message: Heartbeat, error: RedisUnavailable) -> RedisUnavailable:
        """Spool a heartbeat that met an error; return the error with what became of the heartbeat."""
        try:
            self._spool.put(message)
        except SpoolUnusable as unusable:
            self._warnings.clear()  # it was the same
            kept = RedisUnavailable(f"{error} The heartbeat is lost. {unusable}")
            kept.spooled = False
        else:
            kept = RedisUnavailable(f"{error} The heartbeat waits in the spool for the next call that gets through.")
            kept.spooled = True
        return kept


def _within(seconds: float, work: Callable[[Callable[[float], None]], _Result]) -> _Result:
    """Return what `work` returns, in a thread of its own; it may ask for more seconds, counted from then on.

    Looking up a name can't be broken off, and other waits add up; so the thread is left behind, for the process to end
    soon. Raises TimeoutError, OSError when there is no thread to be had, and whatever
    `work` raises.
    """
    done: list[_Result] = []
    failed: list[Exception] = []
    allowed: queue.SimpleQueue[float | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.append(work(allowed.put))
        except Exception as error:  # noqa: BLE001 - raised again below
            failed.append(error)
        finally:
            allowed.put(None)

    try:
        threading.Thread(target=run, name="fleetbeat", daemon=True).start()
    except RuntimeError as error:
        raise OSError(str(error)) from error
    left: float | None = seconds
    while left is not None:
        try:
            left = allowed.get(timeout=left)
        except queue.Empty:
            raise TimeoutError from None
    if failed:
        raise failed[0]
    return done[0]

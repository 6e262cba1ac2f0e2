"""One-shot call: sends the spooled messages and then one message, all within a time limit."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from fleetbeat_producer.one_shot.spool import Spool
from fleetbeat_producer.transport import Transport, check_wait_seconds
from fleetbeat_shared.connection import unavailable
from fleetbeat_shared.errors import NotConfirmed, RedisUnavailable, SpoolUnusable

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetbeat_shared.messages import Heartbeat, Message, Reply
    from fleetbeat_shared.settings import Settings

_Result = TypeVar("_Result")


class OneShot:
    """Sends one message. The settings' timeout limits everything that may hang until Redis has it."""

    def __init__(self, settings: Settings) -> None:
        """Prepare the call. Raises SettingsError when the settings' URL is not a Redis URL."""
        self._settings = settings
        self._transport = Transport(settings)
        self._spool = Spool(settings.spool_dir)
        self._warnings: list[str] = []

    @property
    def warnings(self) -> list[str]:
        """Sentences about problems other than with the message itself."""
        return [*self._warnings, *filter(None, [str(self._spool.dropped)])]

    def send(self, message: Message, wait_seconds: float | None = None) -> Reply | None:
        """Send the spooled messages, then this one; with `wait_seconds` wait for the reply to it, and return that.

        A registration is sent without the spooled messages, which may need it: the next call sends those. The timeout
        starts again with each batch that Redis has answered.

        Raises InvalidMessage when `wait_seconds` is not a time to wait, RedisUnavailable when the message wasn't
        acknowledged in time, and with `wait_seconds` NotConfirmed, UnknownSession, SessionEnded and MessageRejected.
        """
        if wait_seconds is not None:
            check_wait_seconds(wait_seconds)
        timeout_seconds = self._settings.redis_timeout_seconds
        sent: list[float] = []

        def work(extend: Callable[[float], None]) -> Reply | None:
            if message.kind != "register":
                self._drain_spool(extend)
            self._transport.send(message)
            if wait_seconds is None:
                return None
            sent.append(time.monotonic())
            extend(wait_seconds + timeout_seconds)
            return self._transport.wait_for_reply(message, wait_seconds, sent[0])

        try:
            return _run_within(timeout_seconds, work)
        except OSError as error:  # TimeoutError is a subclass
            failed = unavailable(self._settings.redis_url, error)
            if not sent:
                raise failed from error
            text = f"The message was sent, but no reply could be read. {failed}"
            raise NotConfirmed(text) from error

    def _drain_spool(self, extend: Callable[[float], None]) -> None:
        def send(wires: list[bytes]) -> list[RedisUnavailable | None]:
            errors = self._transport.send_batch(wires)
            extend(self._settings.redis_timeout_seconds)
            return errors

        try:
            self._spool.drain(send)
        except SpoolUnusable as error:
            self._warnings.append(str(error))

    def spool(self, message: Heartbeat, error: RedisUnavailable) -> RedisUnavailable:
        """Spool a heartbeat that couldn't be sent; return the error, extended with whether that succeeded."""
        try:
            self._spool.put(message)
        except SpoolUnusable as unusable:
            self._warnings.clear()  # they said the same
            extended = RedisUnavailable(f"{error} The heartbeat is lost. {unusable}")
            extended.spooled = False
        else:
            extended = RedisUnavailable(f"{error} The heartbeat is in the spool; the next call that succeeds sends it.")
            extended.spooled = True
        return extended


def _run_within(seconds: float, work: Callable[[Callable[[float], None]], _Result]) -> _Result:
    """Run `work` in a thread, with a time limit that it may extend, counted from then on; return its result.

    A look-up of a host's name can't be cancelled, and other waits add up. So at the limit the thread is abandoned; the
    process is expected to exit soon. Raises TimeoutError, OSError when no thread can be started, and whatever `work`
    raises.
    """
    done: list[_Result] = []
    failed: list[Exception] = []
    extensions: queue.SimpleQueue[float | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.append(work(extensions.put))
        except Exception as error:  # noqa: BLE001 - raised again below
            failed.append(error)
        finally:
            extensions.put(None)

    try:
        threading.Thread(target=run, name="fleetbeat", daemon=True).start()
    except RuntimeError as error:
        raise OSError(str(error)) from error
    left: float | None = seconds
    while left is not None:
        try:
            left = extensions.get(timeout=left)
        except queue.Empty:
            raise TimeoutError from None
    if failed:
        raise failed[0]
    return done[0]

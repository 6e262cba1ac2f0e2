"""The way from an agent to Redis."""

from __future__ import annotations

import math
import os
import time
from functools import cache
from typing import TYPE_CHECKING

from fleetbeat_producer.compose import refused
from fleetbeat_producer.replies import wait_for_reply
from fleetbeat_shared import redis_keys
from fleetbeat_shared.connection import connect, place, redis_errors, unavailable
from fleetbeat_shared.errors import NotConfirmed, RedisUnavailable
from fleetbeat_shared.settings import Settings

if TYPE_CHECKING:
    from fleetbeat_shared.messages import Message
    from fleetbeat_shared.replies import Reply


class Transport:
    """One process's connection to the inbox. It may be shared by threads and doesn't survive a fork.

    Raises SettingsError when the settings' URL is none of Redis's. It connects at the first message.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis_url
        self._timeout_seconds = settings.redis_timeout_seconds
        self._redis = connect(self._url, timeout_seconds=self._timeout_seconds)

    def send(self, message: Message) -> None:
        """Add a message to the inbox.

        Raises RedisUnavailable when Redis didn't acknowledge it; a message whose acknowledgement alone was lost may
        be stored nevertheless.
        """
        with redis_errors(self._url):
            self._redis.xadd(redis_keys.INBOX, {redis_keys.FIELD: message.to_wire()})

    def send_all(self, wires: list[bytes]) -> list[RedisUnavailable | None]:
        """Add messages, as they travel, to the inbox in one go; return for each None, or why Redis refused it.

        Raises RedisUnavailable when Redis didn't answer: then any of them may be stored or not.
        """
        with redis_errors(self._url), self._redis.pipeline(transaction=False) as pipe:
            for wire in wires:
                pipe.xadd(redis_keys.INBOX, {redis_keys.FIELD: wire})
            answers = pipe.execute(raise_on_error=False)
        return [unavailable(self._url, answer) if isinstance(answer, Exception) else None for answer in answers]

    def ask(self, message: Message, wait_seconds: float) -> Reply:
        """Send a message that asks for an answer, and return what SQL says of it.

        Raises InvalidMessage when this is no time to wait, RedisUnavailable when the message couldn't be sent, and
        NotConfirmed, UnknownSession, SessionEnded or MessageRejected when it was sent, without success.
        """
        check_wait(wait_seconds)
        sent = time.monotonic()
        self.send(message)
        return self.hear(message, wait_seconds, sent)

    def hear(self, message: Message, wait_seconds: float, sent: float) -> Reply:
        """Return what SQL says of a message that was sent at `sent` (monotonic clock) and asked for an answer.

        Raises NotConfirmed, UnknownSession, SessionEnded or MessageRejected.
        """
        try:
            with redis_errors(self._url):
                return wait_for_reply(
                    self._redis,
                    message,
                    sent=sent,
                    wait_seconds=wait_seconds,
                    # An answer to a blocking command must come before the socket gives up on it.
                    block_seconds=self._timeout_seconds / 2,
                )
        except RedisUnavailable as error:
            text = f"The message was sent, but no answer could be read. {error}"
            raise NotConfirmed(text) from error

    def __repr__(self) -> str:
        return f"<Transport to {place(self._url)}>"


def check_wait(wait_seconds: float) -> None:
    """Raise InvalidMessage unless this is a time to wait."""
    if not (isinstance(wait_seconds, int | float) and 0 < wait_seconds < math.inf):
        why = "wait_seconds must be a number of seconds above 0"
        raise refused(why, "heartbeat")


def transport_of_this_process() -> Transport:
    """Return the transport that the calls of this process share, with the settings of its environment.

    Raises SettingsError when the environment has a value that can't be used.
    """
    return _transport_of(os.getpid())


@cache
def _transport_of(process_id: int) -> Transport:  # noqa: ARG001 - it is the cache's key: a forked child makes its own
    # The parent's transport stays in a child's cache on purpose: dropping it would close connections there.
    return Transport(Settings.from_environment(os.environ))

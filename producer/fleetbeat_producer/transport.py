"""Connection from an agent to Redis: adds messages to their streams, and waits for a worker's reply to one.

Importing this module doesn't import pydantic or redis-py: the background sender needs it in every agent.
"""

from __future__ import annotations

import math
import os
import time
from functools import cache
from typing import TYPE_CHECKING, cast

from fleetbeat_producer.compose import invalid_message
from fleetbeat_shared import redis_keys
from fleetbeat_shared.connection import connect, place, redis_errors, unavailable
from fleetbeat_shared.errors import MessageRejected, NotConfirmed, RedisUnavailable, SessionEnded, UnknownSession
from fleetbeat_shared.time_text import format_duration

if TYPE_CHECKING:
    from redis import Redis

    from fleetbeat_shared.messages import Message, Reply
    from fleetbeat_shared.settings import Settings


class Transport:
    """A process's connection to Redis. Threads may share it; a forked child makes its own.

    Raises SettingsError when the settings' URL is not a Redis URL. It connects at the first command.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis_url
        self._timeout_seconds = settings.redis_timeout_seconds
        self._redis = connect(self._url, timeout_seconds=self._timeout_seconds)

    def send(self, message: Message) -> None:
        """Add a message to its stream.

        Raises RedisUnavailable when Redis didn't acknowledge it. If only the acknowledgement was lost, the message may
        be in the stream nevertheless.
        """
        with redis_errors(self._url):
            self._redis.xadd(redis_keys.stream_of(message.kind), {redis_keys.FIELD: message.to_wire()})

    def send_batch(self, wires: list[bytes]) -> list[RedisUnavailable | None]:
        """Add encoded heartbeats to the inbox in one pipeline; return for each None, or why Redis refused it.

        Raises RedisUnavailable when Redis didn't answer: then each of them may be in the inbox or not.
        """
        with redis_errors(self._url):
            errors = add_batch(self._redis, redis_keys.INBOX, wires)
        return [None if error is None else unavailable(self._url, error) for error in errors]

    def send_and_wait(self, message: Message, wait_seconds: float) -> Reply:
        """Send a message that asks for a reply, and return the reply.

        Raises InvalidMessage when `wait_seconds` is not a time to wait, RedisUnavailable when the message couldn't be
        sent, and NotConfirmed, UnknownSession, SessionEnded or MessageRejected when it was sent without success.
        """
        check_wait_seconds(wait_seconds)
        sent_at = time.monotonic()
        self.send(message)
        return self.wait_for_reply(message, wait_seconds, sent_at)

    def wait_for_reply(self, message: Message, wait_seconds: float, sent_at: float) -> Reply:
        """Wait for the reply to a message that was sent at `sent_at` (monotonic clock).

        Raises UnknownSession, SessionEnded or MessageRejected for a refusal, and NotConfirmed when there is no reply
        in time or none that can be read.
        """
        reply = self._read_reply(message, sent_at + wait_seconds)
        if reply is not None and reply.ok:
            return reply
        if reply is not None:
            raise _refusal(message, reply.code)
        text = (
            f"No worker confirmed the message within {format_duration(wait_seconds)}. "
            "It stays in the inbox. Check whether workers run: fleetbeat check"
        )
        raise NotConfirmed(text)

    def _read_reply(self, message: Message, deadline: float) -> Reply | None:
        """Wait for a reply until the deadline (monotonic clock); None if there was none. Raises NotConfirmed."""
        key = redis_keys.reply_key(message.id)
        try:
            with redis_errors(self._url):
                while (left := deadline - time.monotonic()) > 0:
                    # A blocking read must end before the socket's timeout. Redis takes 0 for "for ever", and may round
                    # a tiny number to it.
                    block_seconds = max(0.01, min(left, self._timeout_seconds / 2))
                    popped = cast("list[bytes] | None", self._redis.blpop([key], timeout=block_seconds))
                    if popped is not None:
                        return _parse_reply(popped[1])
        except RedisUnavailable as error:
            text = f"The message was sent, but no reply could be read. {error}"
            raise NotConfirmed(text) from error
        return None

    def __repr__(self) -> str:
        return f"<Transport to {place(self._url)}>"


def add_batch(redis: Redis, stream: str, wires: list[bytes]) -> list[Exception | None]:
    """Add encoded messages to a stream in one pipeline; return for each None, or redis-py's error.

    Raises redis-py's errors when Redis didn't answer.
    """
    with redis.pipeline(transaction=False) as pipe:
        for wire in wires:
            pipe.xadd(stream, {redis_keys.FIELD: wire})
        answers = pipe.execute(raise_on_error=False)
    return [answer if isinstance(answer, Exception) else None for answer in answers]


def check_wait_seconds(wait_seconds: float) -> None:
    """Raise InvalidMessage unless this is a finite number of seconds above 0."""
    if not (isinstance(wait_seconds, int | float) and 0 < wait_seconds < math.inf):
        why = "wait_seconds must be a number of seconds above 0"
        raise invalid_message(why, "heartbeat")


def process_transport() -> Transport:
    """Return the transport that all calls of this process share, with the settings of its environment.

    Raises SettingsError when the environment has a value that can't be used.
    """
    return _transport_of(os.getpid())


@cache
def _transport_of(process_id: int) -> Transport:  # noqa: ARG001 - it is the cache's key: a forked child makes its own
    from fleetbeat_shared.settings import Settings

    # The parent's transport stays in a child's cache on purpose: dropping it would close the parent's connections.
    return Transport(Settings.from_environment(os.environ))


def _parse_reply(text: bytes) -> Reply:
    from pydantic import ValidationError

    from fleetbeat_shared.messages import Reply

    try:
        return Reply.model_validate_json(text)
    except ValidationError as error:
        sentence = "A worker's reply can't be read by this version. Bring agents and workers to one version."
        raise NotConfirmed(sentence) from error


def _refusal(message: Message, code: str | None) -> UnknownSession | SessionEnded | MessageRejected:
    if code == UnknownSession.code:
        return UnknownSession(f"No session {message.session_id} is registered. Register the agent first.")
    if code == SessionEnded.code:
        return SessionEnded(f"The session {message.session_id} has ended. Register the agent again.")
    return MessageRejected(
        f"The workers rejected message {message.id} ({code or 'no reason given'}). See why: fleetbeat rejected list"
    )

"""Waiting for a worker's answer to one message."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from fleetbeat_shared import redis_keys
from fleetbeat_shared.errors import MessageRejected, NotConfirmed, SessionEnded, UnknownSession
from fleetbeat_shared.messages import Reason
from fleetbeat_shared.replies import UNKNOWN_SESSION_SECONDS, Reply
from fleetbeat_shared.time_text import format_duration

if TYPE_CHECKING:
    from redis import Redis

    from fleetbeat_shared.messages import Message


def wait_for_reply(redis: Redis, message: Message, *, sent: float, wait_seconds: float, block_seconds: float) -> Reply:
    """Return the workers' answer to a message that was sent at `sent` (monotonic clock) and has been stored.

    `unknown_session` isn't the last word until UNKNOWN_SESSION_SECONDS after it was heard, or the wait is over: the
    registration may be on its way, and then a second answer comes. `block_seconds` bounds one blocking read.

    Raises UnknownSession, SessionEnded or MessageRejected as the workers say, NotConfirmed when they say nothing in
    time or nothing that can be read, and redis-py's errors.
    """
    key = redis_keys.reply_key(message.id)
    end = sent + wait_seconds
    unknown = False
    while (left := end - time.monotonic()) > 0:
        # Redis takes 0 for "for ever", and a tiny number may be rounded to it.
        popped = cast("list[bytes] | None", redis.blpop([key], timeout=max(0.01, min(left, block_seconds))))
        if popped is None:
            continue
        reply = _read(popped[1])
        if reply.ok:
            return reply
        if reply.code != Reason.UNKNOWN_SESSION:
            raise _refusal(message, reply.code)
        if not unknown:
            # From now, not from sending: workers that are behind take long for both answers.
            unknown, end = True, min(end, time.monotonic() + UNKNOWN_SESSION_SECONDS)
    if unknown:
        text = f"No session {message.session_id} is registered. Register the agent first."
        raise UnknownSession(text)
    text = (
        f"No worker confirmed the message within {format_duration(wait_seconds)}. "
        "It stays in the inbox; look with `fleetbeat check` whether workers run."
    )
    raise NotConfirmed(text)


def _read(answer: bytes) -> Reply:
    try:
        return Reply.model_validate_json(answer)
    except ValidationError as error:
        text = "A worker answered in a form that this version can't read. Bring agents and workers to one version."
        raise NotConfirmed(text) from error


def _refusal(message: Message, code: str | None) -> SessionEnded | MessageRejected:
    if code == Reason.SESSION_ENDED:
        return SessionEnded(f"The session {message.session_id} has ended. Register the agent again.")
    return MessageRejected(
        f"The workers set message {message.id} aside ({code or 'without a reason'}). Look with: fleetbeat rejected list"
    )

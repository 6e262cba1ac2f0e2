"""Entries of the streams that agents add to: when each arrived, and the message that it holds.

An entry is decoded once, when it is read. Its sender may have made up the id: nothing here trusts one that lies ahead
of Redis's clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID

from fleetbeat_shared.errors import InvalidMessage
from fleetbeat_shared.messages import Deregister, Heartbeat, Reason, Register, parse_message
from fleetbeat_shared.redis_keys import FIELD, INBOX, SESSIONS

CLOCK_STEP_MILLISECONDS = 60_000
"""Ids may lie this far in the future without any sender's fault: Redis goes on counting when its clock is set back."""

KINDS: dict[str, tuple[type[Register | Heartbeat | Deregister], ...]] = {
    INBOX: (Heartbeat,),
    SESSIONS: (Register, Deregister),
}
"""Which messages belong to which stream."""

_OF_LANE = ":sessions"

_FIELD = FIELD.encode()
_SEQUENCE_BITS = 20
_SEQUENCE_MAX = (1 << _SEQUENCE_BITS) - 1

_UUID = rb'\s*:\s*"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"'
_OWN_ID = re.compile(rb'"id"' + _UUID, re.IGNORECASE)
_OWN_SESSION = re.compile(rb'"session_id"' + _UUID, re.IGNORECASE)


class RawEntry(NamedTuple):
    """An entry as Redis has it."""

    id: str
    wire: bytes
    """The message's bytes."""


class Entry(NamedTuple):
    """An entry as the workers see it."""

    id: str
    stream: str
    wire: bytes
    """The message's bytes."""
    received_at: int
    """When Redis received it, and never after it was read, whatever the id says: milliseconds since 1970."""
    position: int
    """Its place in its stream's order, as an integer that SQL can hold."""
    message: Register | Heartbeat | Deregister | None = None
    error: InvalidMessage | None = None
    """Why it holds no message. Of an entry that wasn't decoded, as that may be deadly, neither is known."""

    @property
    def key(self) -> str:
        """Its id, made unique over both streams: SQL knows a rejected entry by it."""
        return self.id if self.stream == INBOX else f"{self.id}{_OF_LANE}"


def decode(found: Iterable[RawEntry], now: int, stream: str) -> list[Entry]:
    """Decode entries of a stream that were read by `now` (Redis's time in milliseconds)."""
    entries, kinds = [], KINDS[stream]
    for entry_id, wire in found:
        received_at, position = arrival(entry_id, now)
        message = error = None
        try:
            message = parse_message(wire)
        except InvalidMessage as invalid:
            error = invalid
        if message is not None and not isinstance(message, kinds):
            error = InvalidMessage(Reason.INVALID, f"a message of the kind {message.kind} doesn't belong to {stream}")
            message = None
        entries.append(Entry(entry_id, stream, wire, received_at, position, message, error))
    return entries


def leave_undecoded(found: Iterable[RawEntry], now: int, stream: str) -> list[Entry]:
    """Make entries without looking at their bytes: decoding them may be what kills a process."""
    return [Entry(entry_id, stream, wire, *arrival(entry_id, now)) for entry_id, wire in found]


def entry_again(key: str, wire: bytes, received_at: int) -> Entry:
    """Make the entry once more that was rejected under a key; its message may belong to either stream.

    Raises InvalidMessage when it holds none.
    """
    entry_id, is_of_lane = key.removesuffix(_OF_LANE), key.endswith(_OF_LANE)
    arrived = arrival(entry_id, received_at)
    return Entry(entry_id, SESSIONS if is_of_lane else INBOX, wire, *arrived, parse_message(wire))


def arrival(entry_id: str, now: int) -> tuple[int, int]:
    """Derive when an entry that was read by `now` was received, and its position, from its id.

    An id that lies ahead of the clock counts as of `now`: a sender made it up, or the clock was set back.
    """
    milliseconds, _, sequence = entry_id.partition("-")
    received_at = int(milliseconds)
    placed_at = received_at if is_credible(received_at, now) else now
    return min(received_at, now), placed_at << _SEQUENCE_BITS | min(int(sequence), _SEQUENCE_MAX)


def is_credible(received_at: int, now: int) -> bool:
    """Tell whether Redis's clock can have given an id of this time by `now` (milliseconds since 1970).

    Else some sender made it up, or the clock was set back by more than a step since.
    """
    return received_at <= now + CLOCK_STEP_MILLISECONDS


def known_by(oldest_id: str, now: int) -> int | None:
    """Derive before when all that was received is in SQL, from the id of a stream's oldest entry; None if unknown.

    All in milliseconds since 1970.
    """
    oldest = int(oldest_id.partition("-")[0])
    if not is_credible(oldest, now):
        return None
    # If it runs ahead the clock was set back, and ids stand still: it came at some time since then.
    return oldest if oldest <= now else oldest - CLOCK_STEP_MILLISECONDS


def order_of(entry_id: bytes | str) -> tuple[int, int]:
    """Split an id into its numbers, which tell the order of ids."""
    milliseconds, _, sequence = text_of(entry_id).partition("-")
    return int(milliseconds), int(sequence)


def own_ids(wire: bytes) -> tuple[UUID, UUID] | None:
    """Find the message's id and its session in its bytes; None if they don't name both.

    The bytes aren't parsed, which may be what kills a process: our senders write both before anything that could hold
    another. A sender that wrote them for something else may have put the ids of any message there.
    """
    found = _OWN_ID.search(wire), _OWN_SESSION.search(wire)
    message_id, session_id = (match and UUID(match[1].decode()) for match in found)
    return (message_id, session_id) if message_id and session_id else None


def entries_of(answer: Iterable[Any]) -> list[RawEntry]:
    """Read the answer of XRANGE or XCLAIM, as redis-py has it; entries that are gone are left out."""
    return [RawEntry(text_of(entry_id), _wire(fields)) for entry_id, fields in answer if fields is not None]


def entries_read(answer: Any) -> list[RawEntry]:  # noqa: ANN401 - it comes as Redis gives it
    """Read the answer of XREADGROUP, as Redis gives it: making a dictionary for each took as long as validating it."""
    if not answer:
        return []
    # One stream, in a list (RESP2) or a dictionary (RESP3): of each entry the id, and names and values in turn.
    ((_, found),) = answer.items() if isinstance(answer, dict) else answer
    return [RawEntry(text_of(entry_id), _wire_of(said)) for entry_id, said in found if said is not None]


def size_of(found: Iterable[RawEntry]) -> int:
    """Count the bytes of entries."""
    return sum(len(entry.wire) for entry in found)


def text_of(value: bytes | str) -> str:
    """Decode what Redis answers as text."""
    return value.decode() if isinstance(value, bytes) else value


def _wire_of(said: list[bytes]) -> bytes:
    return said[1] if len(said) == 2 and said[0] == _FIELD else _wire(dict(zip(said[::2], said[1::2], strict=True)))  # noqa: PLR2004 - a name and a value


def _wire(fields: dict[bytes, bytes]) -> bytes:
    wire = fields.get(_FIELD)
    # An entry without our field is no message; it is set aside with what it has.
    return wire if wire is not None else b" ".join(name + b"=" + value for name, value in fields.items())

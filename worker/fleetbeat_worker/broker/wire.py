"""What the bytes of the inbox's entries hold."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from fleetbeat_shared.errors import InvalidMessage
from fleetbeat_shared.messages import Deregister, Heartbeat, Register, parse_message
from fleetbeat_worker.broker.inbox import Entry

_UUID = rb'\s*:\s*"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"'
_OWN_ID = re.compile(rb'"id"' + _UUID, re.IGNORECASE)
_OWN_SESSION = re.compile(rb'"session_id"' + _UUID, re.IGNORECASE)


class Understood(NamedTuple):
    """What entries hold."""

    messages: list[tuple[Entry, Register | Heartbeat | Deregister]]
    failures: list[tuple[Entry, InvalidMessage]]
    """Those that hold no message, and what is wrong with them."""


def own_ids(wire: bytes) -> tuple[UUID, UUID] | None:
    """Return the id and the session of the message that some bytes are; None if they don't name both.

    The bytes aren't parsed, which may be what kills a process: our senders write both before anything that could hold
    another. Who wrote them for something else may have put the ids of any message there.
    """
    found = _OWN_ID.search(wire), _OWN_SESSION.search(wire)
    message_id, session_id = (match and UUID(match[1].decode()) for match in found)
    return (message_id, session_id) if message_id and session_id else None


def understand(entries: Iterable[Entry]) -> Understood:
    """Return what entries hold."""
    understood = Understood([], [])
    for entry in entries:
        try:
            understood.messages.append((entry, parse_message(entry.wire)))
        except InvalidMessage as error:
            understood.failures.append((entry, error))
    return understood

"""Identifiers of messages and sessions, and the normal form of agent names."""

from __future__ import annotations

import os
import time
import unicodedata
from functools import cache
from uuid import UUID, uuid5

STABLE_SESSIONS = UUID("6f0c3c8e-0d0e-5d4b-9a52-3a4f6c2f7d11")
"""The namespace of session ids that are derived from agent names. It must never change."""

_FETCHED = 256
"""How many random numbers are fetched at once."""


def new_message_id() -> UUID:
    """Make a UUIDv7 (RFC 9562, section 5.7): the time in milliseconds, then 74 random bits.

    Ids that grow with time keep inserts at the end of the database's index. The random bits come from the kernel, and
    each process fetches its own, so that a forked child never repeats its parent's.
    """
    return UUID(bytes=new_message_id_bytes())


def new_message_id_bytes() -> bytes:
    """Make the 16 bytes of a new message's id: pydantic builds a UUID from bytes faster than it checks a UUID."""
    milliseconds = time.time_ns() // 1_000_000
    random = _next_random(_random_numbers(os.getpid()))
    random_a = random >> 68
    random_b = random & ((1 << 62) - 1)
    return (milliseconds << 80 | 0x7 << 76 | random_a << 64 | 0b10 << 62 | random_b).to_bytes(16)


def normalise_name(name: str) -> str:
    """Normalise an agent's name: NFC, without white space around it."""
    return unicodedata.normalize("NFC", name).strip()


def stable_session_id(agent_name: str) -> UUID:
    """Derive the session id (UUIDv5) of a long-lived agent from its name, so that no id need be stored."""
    return uuid5(STABLE_SESSIONS, normalise_name(agent_name))


def _next_random(numbers: list[int]) -> int:
    """Take 80 random bits, and fetch them from the kernel for many ids at once.

    A call to the kernel lets other threads run, and then an agent's call would wait for the sender's thread.
    """
    try:
        return numbers.pop()
    except IndexError:
        fresh = os.urandom(10 * _FETCHED)
        numbers += [int.from_bytes(fresh[start : start + 10]) for start in range(10, len(fresh), 10)]
        return int.from_bytes(fresh[:10])


@cache
def _random_numbers(process_id: int) -> list[int]:  # noqa: ARG001 - it is the cache's key: a forked child fetches its own
    return []

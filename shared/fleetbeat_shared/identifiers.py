"""Identifiers of messages and sessions."""

from __future__ import annotations

import os
import time
import unicodedata
from uuid import UUID, uuid5

STABLE_SESSIONS = UUID("6f0c3c8e-0d0e-5d4b-9a52-3a4f6c2f7d11")
"""The name space of session ids that are derived from agent names. It must never change."""


def new_message_id() -> UUID:
    """Return a UUIDv7 (RFC 9562, section 5.7): the time in milliseconds, then 74 random bits.

    Ids that grow with time keep inserts at the end of the database's index. The random bits come from the kernel, so
    that a forked child never repeats its parent's.
    """
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    random_a = random >> 68
    random_b = random & ((1 << 62) - 1)
    return UUID(int=milliseconds << 80 | 0x7 << 76 | random_a << 64 | 0b10 << 62 | random_b)


def normalise_name(name: str) -> str:
    """Return the one spelling of an agent's name: NFC, without white space around it."""
    return unicodedata.normalize("NFC", name).strip()


def stable_session_id(agent_name: str) -> UUID:
    """Return the session id (UUIDv5) of the long-lived agent with this name, so that nothing need be stored."""
    return uuid5(STABLE_SESSIONS, normalise_name(agent_name))

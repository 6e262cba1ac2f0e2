"""Fleetbeat's producer: what an agent imports to say that it is alive.

    from fleetbeat_producer import AgentSession

    with AgentSession("hint", interval_seconds=30) as session:
        session.progress("reading the inbox")

Nothing here waits for the network or fails because of it: a thread of its own sends what is said. Redis is found
through `FLEETBEAT_REDIS_URL`, which is read at the first call of a process.
"""

from fleetbeat_producer.client import HeartbeatResult, Registration, deregister, register, send_heartbeat
from fleetbeat_producer.process import flush, flush_on_sigterm, stats
from fleetbeat_producer.sender import Stats
from fleetbeat_producer.session import AgentSession
from fleetbeat_shared.errors import (
    FleetbeatError,
    InvalidMessage,
    MessageRejected,
    NotConfirmed,
    RedisUnavailable,
    SessionEnded,
    SettingsError,
    UnknownSession,
)

__all__ = [
    "AgentSession",
    "FleetbeatError",
    "HeartbeatResult",
    "InvalidMessage",
    "MessageRejected",
    "NotConfirmed",
    "RedisUnavailable",
    "Registration",
    "SessionEnded",
    "SettingsError",
    "Stats",
    "UnknownSession",
    "deregister",
    "flush",
    "flush_on_sigterm",
    "register",
    "send_heartbeat",
    "stats",
]

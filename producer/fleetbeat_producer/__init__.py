"""Fleetbeat's producer: what an agent imports to say that it is alive.

    from fleetbeat_producer import deregister, register, send_heartbeat

    agent = register("hint", interval_seconds=30)
    send_heartbeat(agent.session_id, "reading the inbox")
    deregister(agent.session_id)

Redis is found through `FLEETBEAT_REDIS_URL`, which is read at the first call of a process.
"""

from fleetbeat_producer.client import HeartbeatResult, Registration, deregister, register, send_heartbeat
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
    "FleetbeatError",
    "HeartbeatResult",
    "InvalidMessage",
    "MessageRejected",
    "NotConfirmed",
    "RedisUnavailable",
    "Registration",
    "SessionEnded",
    "SettingsError",
    "UnknownSession",
    "deregister",
    "register",
    "send_heartbeat",
]

"""Fleetbeat's producer: the package that an agent imports to send its heartbeats.

    from fleetbeat_producer import AgentSession

    with AgentSession("hint", interval_seconds=30) as session:
        session.progress("reading the inbox")

No call waits for the network or fails because of it: a background thread sends the messages. The URL of Redis is read
from `FLEETBEAT_REDIS_URL` at the first call of a process.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetbeat_producer.background.process import flush, flush_on_sigterm, stats
    from fleetbeat_producer.background.sender import Stats
    from fleetbeat_producer.client import HeartbeatResult, Registration, deregister, register, send_heartbeat
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

_MODULES = {
    "fleetbeat_producer.client": ("HeartbeatResult", "Registration", "deregister", "register", "send_heartbeat"),
    "fleetbeat_producer.background.process": ("flush", "flush_on_sigterm", "stats"),
    "fleetbeat_producer.background.sender": ("Stats",),
    "fleetbeat_producer.session": ("AgentSession",),
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use: a process that sends one message from the shell needs few of them."""
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    module = next((module for module, names in _MODULES.items() if name in names), "fleetbeat_shared.errors")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__

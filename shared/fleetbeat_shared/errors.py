"""Errors that Fleetbeat raises on purpose.

    FleetbeatError
    ├── SettingsError        a variable or option has a value that can't be used (also a ValueError)
    ├── InvalidMessage       an agent passed, or the inbox held, an invalid message (also a ValueError)
    ├── RedisUnavailable     Redis can't be reached, or refuses a command
    ├── SpoolUnusable        the spool directory can't be written or trusted
    ├── DatabaseUnavailable  the database can't be reached, is locked or is full; trying again may help
    ├── SchemaOutdated       the database's schema doesn't fit this version
    ├── UnknownSession       no session with this id is registered
    ├── SessionEnded         the session has ended; its heartbeats are rejected
    ├── MessageRejected      the workers rejected the message for another reason
    ├── NotConfirmed         no worker confirmed the message in time
    └── AlreadyRunning       another process holds the data directory

Each carries `code`, a short stable name for programs that read `--json`.
"""

from __future__ import annotations


class FleetbeatError(Exception):
    """The root of all errors that Fleetbeat raises on purpose."""

    code = "error"


class SettingsError(FleetbeatError, ValueError):
    """A variable or option has a value that can't be used; the text names it."""

    code = "bad_setting"


class InvalidMessage(FleetbeatError, ValueError):
    """A message that isn't valid.

    `reason` is one of the values of `fleetbeat_shared.messages.Reason`.
    """

    code = "invalid_message"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class RedisUnavailable(FleetbeatError):
    """Redis can't be reached, or refuses a command."""

    code = "redis_unavailable"
    spooled: bool | None = None
    """Whether the message was spooled, to be sent later; None where it can't be."""


class SpoolUnusable(FleetbeatError):
    """The spool directory, which keeps heartbeats while Redis is away, can't be written or trusted."""

    code = "spool_unusable"


class DatabaseUnavailable(FleetbeatError):
    """The database can't be reached, is locked or is full; nothing was changed, and trying again may help."""

    code = "database_unavailable"


class SchemaOutdated(FleetbeatError):
    """The database's schema doesn't fit this version of Fleetbeat."""

    code = "schema_outdated"


class UnknownSession(FleetbeatError):
    """No session with this id is registered."""

    code = "unknown_session"


class SessionEnded(FleetbeatError):
    """The session has ended; only a new registration reopens it."""

    code = "session_ended"


class MessageRejected(FleetbeatError):
    """The workers rejected the message; the text gives the reason."""

    code = "rejected"


class NotConfirmed(FleetbeatError):
    """No worker confirmed the message in time; it may still be stored later."""

    code = "not_confirmed"


class AlreadyRunning(FleetbeatError):
    """Another process holds the data directory."""

    code = "already_running"

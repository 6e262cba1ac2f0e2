"""Every error that Fleetbeat raises on purpose.

    FleetbeatError
    ├── SettingsError        a variable or option has a value that can't be used (also a ValueError)
    ├── InvalidMessage       what an agent passed, or what the inbox held, is no valid message (also a ValueError)
    ├── RedisUnavailable     Redis can't be reached, or refuses what we need of it
    ├── SpoolUnusable        the directory for heartbeats that wait for Redis can't be written or trusted
    ├── DatabaseUnavailable  the database can't be reached, is locked or is full; trying again may help
    ├── SchemaOutdated       the database's schema is not the one that this version works with
    ├── UnknownSession       no session with this id is registered
    ├── SessionEnded         the session has ended, so that its heartbeats count no more
    ├── MessageRejected      the workers set the message aside with another reason
    ├── NotConfirmed         no worker confirmed the message in the time that the caller gave
    └── AlreadyRunning       another process holds the data directory

Each carries `code`, a short stable name for programs that read `--json`.
"""

from __future__ import annotations


class FleetbeatError(Exception):
    """The root of the errors that Fleetbeat raises on purpose."""

    code = "error"


class SettingsError(FleetbeatError, ValueError):
    """A variable or option has a value that can't be used; the text names it."""

    code = "bad_setting"


class InvalidMessage(FleetbeatError, ValueError):
    """A message that can't be accepted.

    `reason` is one of the values of `fleetbeat_shared.messages.Reason`.
    """

    code = "invalid_message"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class RedisUnavailable(FleetbeatError):
    """Redis can't be reached, or refuses what is needed of it."""

    code = "redis_unavailable"
    spooled: bool | None = None
    """Whether the message was kept on disk, to be sent later; None where that isn't tried."""


class SpoolUnusable(FleetbeatError):
    """The directory for heartbeats that wait for Redis can't be written or trusted."""

    code = "spool_unusable"


class DatabaseUnavailable(FleetbeatError):
    """The database can't be reached, is locked, or has no room; nothing was changed and trying again may help."""

    code = "database_unavailable"


class SchemaOutdated(FleetbeatError):
    """The database's schema is not the one that this version of Fleetbeat works with."""

    code = "schema_outdated"


class UnknownSession(FleetbeatError):
    """No session with this id is registered."""

    code = "unknown_session"


class SessionEnded(FleetbeatError):
    """The session has ended; only a new registration reopens it."""

    code = "session_ended"


class MessageRejected(FleetbeatError):
    """The workers set the message aside; the text gives their reason."""

    code = "rejected"


class NotConfirmed(FleetbeatError):
    """No worker confirmed the message in time; it may still be stored later."""

    code = "not_confirmed"


class AlreadyRunning(FleetbeatError):
    """Another process holds the data directory."""

    code = "already_running"

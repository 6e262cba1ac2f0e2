"""The answer that a worker sends to a sender that waits: one JSON text, pushed onto `names.reply_key(message id)`."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic reads it at run time
from uuid import UUID  # noqa: TC003 - pydantic reads it at run time

from pydantic import BaseModel, ConfigDict

UNKNOWN_SESSION_SECONDS = 2.0
"""How long after hearing `unknown_session` a sender takes it for the last word. A heartbeat may overtake its own
registration; the worker answers once more when it has put that right."""


class Reply(BaseModel):
    """What SQL says of one message."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    code: str | None = None
    """Why not: a value of `messages.Reason`."""
    session_id: UUID
    agent_name: str | None = None
    timestamp: datetime | None = None
    """When the agent counts as seen by this heartbeat (`seen_at`, UTC)."""
    progress: str | None = None
    """The progress that this heartbeat reported."""

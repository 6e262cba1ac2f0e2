"""The messages that an agent's calls become, checked before anything is sent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID, uuid4

from pydantic import TypeAdapter, ValidationError

from fleetbeat_shared.errors import InvalidMessage
from fleetbeat_shared.identifiers import new_message_id, stable_session_id
from fleetbeat_shared.messages import AgentName, Deregister, Heartbeat, Reason, Register, describe

_Kind = TypeVar("_Kind", Register, Heartbeat, Deregister)

_CALLED = {Register: "registration", Heartbeat: "heartbeat", Deregister: "deregistration"}

_NAME: TypeAdapter[str] = TypeAdapter(AgentName)


def compose(kind: type[_Kind], session_id: UUID | str, **fields: object) -> _Kind:
    """Return a new message of this kind, sent now, with these fields of its model.

    Raises InvalidMessage when a field can't be accepted. The limits of all fields together keep a message below the
    size that one may have.
    """
    try:
        return kind.model_validate(
            {"id": new_message_id(), "session_id": session_id, "sent_at": datetime.now(UTC), **fields}
        )
    except ValidationError as error:
        raise refused(describe(error), _CALLED[kind]) from error


def stable_session(agent_name: str) -> tuple[str, UUID]:
    """Return an agent's name as it is stored, and the session id that is derived from it.

    Raises InvalidMessage when the name can't be accepted.
    """
    try:
        name = _NAME.validate_python(agent_name)
    except ValidationError as error:
        why = f"agent_name: {describe(error)}"
        raise refused(why, "message") from error
    return name, stable_session_id(name)


def session_to_register(agent_name: str, *, stable: bool, parallel: bool, session_id: UUID | str | None) -> UUID | str:
    """Return the id for the session of a registration: the given one, the one of the name, or a new random one.

    Raises InvalidMessage for `stable` together with what contradicts it.
    """
    if not stable:
        return uuid4() if session_id is None else session_id
    if parallel:
        why = "stable and parallel exclude each other, as parallel sessions of one name can't share one id"
        raise refused(why, "registration")
    if session_id is not None:
        why = "stable derives the session id from the name, so give no session_id"
        raise refused(why, "registration")
    return stable_session(agent_name)[1]


def refused(why: str, what: str, reason: str = Reason.INVALID) -> InvalidMessage:
    """Return the error for a message that can't be sent as it is."""
    return InvalidMessage(reason, f"This {what} can't be sent: {why}.")

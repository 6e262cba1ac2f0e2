"""The messages that an agent's calls become, checked before anything is sent.

The models are imported when the first message is made: pydantic takes 0.1 s to import and build them, and an agent
that only imports us shall not wait for it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID, uuid4

from fleetbeat_producer.background.interpreter_exit import InsidePydantic
from fleetbeat_shared.errors import InvalidMessage
from fleetbeat_shared.identifiers import new_message_id, new_message_id_bytes, stable_session_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fleetbeat_shared.messages import Deregister, Heartbeat, Register

_Kind = TypeVar("_Kind", "Register", "Heartbeat", "Deregister")

_CALLED = {"register": "registration", "heartbeat": "heartbeat", "deregister": "deregistration"}


def new_registration(session_id: UUID | str, **fields: object) -> Register:
    """Return a new registration with these fields. Raises InvalidMessage."""
    return compose(models()[0], session_id, **fields)


def said_again(message: Register) -> Register:
    """Return a registration as a new message, sent now."""
    return message.model_copy(update={"id": new_message_id(), "sent_at": datetime.now(UTC)})


def new_heartbeat(session_id: UUID | str, **fields: object) -> Heartbeat:
    """Return a new heartbeat with these fields. Raises InvalidMessage."""
    return compose(models()[1], session_id, **fields)


def new_goodbye(session_id: UUID | str, **fields: object) -> Deregister:
    """Return a new deregistration with these fields. Raises InvalidMessage."""
    return compose(models()[2], session_id, **fields)


@cache
def models() -> tuple[type[Register], type[Heartbeat], type[Deregister]]:
    """Import and build the models once: while the interpreter ends that can't be done, and an agent may still speak."""
    from fleetbeat_shared.messages import Deregister, Heartbeat, Register

    for model in (Register, Heartbeat, Deregister):
        model.model_rebuild()
    return Register, Heartbeat, Deregister


def compose(kind: type[_Kind], session_id: UUID | str, **fields: object) -> _Kind:
    """Return a new message of this kind, sent now, with these fields of its model.

    Raises InvalidMessage when a field can't be accepted. The limits of all fields together keep a message below the
    size that one may have.
    """
    return compose_for(None, kind, session_id, fields)


def compose_for(
    called: Mapping[str, str] | None, kind: type[_Kind], session_id: UUID | str, fields: dict[str, object]
) -> _Kind:
    """Return a new message for somebody who knows its fields by other names: `called` has them, for errors.

    Raises InvalidMessage as `compose` does.
    """
    message_id = new_message_id_bytes()
    fields |= {"id": message_id, "session_id": session_id, "sent_at": datetime.now(UTC)}
    try:
        with InsidePydantic() as may_enter:
            if may_enter:
                return kind.model_validate(fields)
    except ValueError as error:  # pydantic's ValidationError is one
        raise refused(_found(error, called), _CALLED[kind.model_fields["kind"].default]) from error
    # The process ends, and what this thread says is no longer sent: so it isn't looked at either.
    return kind.model_construct(None, **(fields | {"id": UUID(bytes=message_id)}))


def stable_session(agent_name: str, *, called: Mapping[str, str] | None = None) -> tuple[str, UUID]:
    """Return an agent's name as it is stored, and the session id that is derived from it.

    Raises InvalidMessage when the name can't be accepted.
    """
    from pydantic import TypeAdapter

    from fleetbeat_shared.messages import AgentName

    checked: TypeAdapter[str] = TypeAdapter(AgentName)
    try:
        name = checked.validate_python(agent_name)
    except ValueError as error:
        raise refused(_found(error, called, "agent_name"), "message") from error
    return name, stable_session_id(name)


def session_to_register(
    agent_name: str,
    *,
    stable: bool,
    parallel: bool,
    session_id: UUID | str | None,
    called: Mapping[str, str] | None = None,
) -> UUID | str:
    """Return the id for the session of a registration: the given one, the one of the name, or a new random one.

    Raises InvalidMessage for `stable` together with what contradicts it.
    """
    if not stable:
        return uuid4() if session_id is None else session_id
    told = {name: (called or {}).get(name, name) for name in ("stable", "parallel", "session_id")}
    if parallel:
        why = "{stable} and {parallel} exclude each other, as parallel sessions of one name can't share one id"
        raise refused(why.format_map(told), "registration")
    if session_id is not None:
        why = "{stable} derives the session id from the name, so give no {session_id}"
        raise refused(why.format_map(told), "registration")
    return stable_session(agent_name, called=called)[1]


def refused(why: str, what: str) -> InvalidMessage:
    """Return the error for a message that can't be sent as it is."""
    from fleetbeat_shared.messages import Reason

    return InvalidMessage(Reason.INVALID, f"This {what} can't be sent: {why}.")


def _found(error: ValueError, called: Mapping[str, str] | None, about: str | None = None) -> str:
    from pydantic import ValidationError

    from fleetbeat_shared.messages import describe

    return describe(error, called, about) if isinstance(error, ValidationError) else str(error)

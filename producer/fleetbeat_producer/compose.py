"""Messages composed from an agent's arguments, and checked before anything is sent.

The models are imported when the first message is composed: importing and building them takes 0.1 s, and a program that
only imports fleetbeat_producer should not wait for it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID, uuid4

from fleetbeat_producer.background.interpreter_exit import PydanticSection
from fleetbeat_shared.errors import InvalidMessage
from fleetbeat_shared.identifiers import new_message_id, new_message_id_bytes, stable_session_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fleetbeat_shared.messages import Deregister, Heartbeat, Register

_Kind = TypeVar("_Kind", "Register", "Heartbeat", "Deregister")

_NOUNS = {"register": "registration", "heartbeat": "heartbeat", "deregister": "deregistration"}


def new_registration(session_id: UUID | str, **fields: object) -> Register:
    """Compose a registration with these fields. Raises InvalidMessage."""
    return compose(load_models()[0], session_id, **fields)


def new_heartbeat(session_id: UUID | str, **fields: object) -> Heartbeat:
    """Compose a heartbeat with these fields. Raises InvalidMessage."""
    return compose(load_models()[1], session_id, **fields)


def new_deregistration(session_id: UUID | str, **fields: object) -> Deregister:
    """Compose a deregistration with these fields. Raises InvalidMessage."""
    return compose(load_models()[2], session_id, **fields)


def reissue(message: Register) -> Register:
    """Copy a registration as a new message, sent now."""
    return message.model_copy(update={"id": new_message_id(), "sent_at": datetime.now(UTC)})


@cache
def load_models() -> tuple[type[Register], type[Heartbeat], type[Deregister]]:
    """Import and build the models, once. It is impossible while the interpreter exits, when an agent may still send."""
    from fleetbeat_shared.messages import Deregister, Heartbeat, Register

    for model in (Register, Heartbeat, Deregister):
        model.model_rebuild()
    return Register, Heartbeat, Deregister


def compose(
    kind: type[_Kind], session_id: UUID | str, labels: Mapping[str, str] | None = None, /, **fields: object
) -> _Kind:
    """Compose a message of this kind, sent now, with these fields of its model.

    An error names each field by its label, where `labels` has one for it: a command's option, say. The limits of all
    fields together keep a message below the size that one may have.

    Raises InvalidMessage when a field isn't valid.
    """
    message_id = new_message_id_bytes()
    fields |= {"id": message_id, "session_id": session_id, "sent_at": datetime.now(UTC)}
    try:
        with PydanticSection() as may_enter:
            if may_enter:
                return kind.model_validate(fields)
    except ValueError as error:  # pydantic's ValidationError is one
        raise invalid_message(_describe(error, labels), _NOUNS[kind.model_fields["kind"].default]) from error
    # The process exits and nothing from this thread is sent any more, so the message isn't checked either.
    return kind.model_construct(None, **(fields | {"id": UUID(bytes=message_id)}))


def stable_session(agent_name: str, *, labels: Mapping[str, str] | None = None) -> tuple[str, UUID]:
    """Normalise an agent's name, and derive its stable session id; return both.

    Raises InvalidMessage when the name isn't valid.
    """
    from pydantic import TypeAdapter

    from fleetbeat_shared.messages import AgentName

    adapter: TypeAdapter[str] = TypeAdapter(AgentName)
    try:
        name = adapter.validate_python(agent_name)
    except ValueError as error:
        raise invalid_message(_describe(error, labels, "agent_name"), "message") from error
    return name, stable_session_id(name)


def choose_session_id(
    agent_name: str,
    *,
    stable: bool,
    parallel: bool,
    session_id: UUID | str | None,
    labels: Mapping[str, str] | None = None,
) -> UUID | str:
    """Choose a registration's session id: the given one, the stable one of the name, or a new random one.

    Raises InvalidMessage when `stable` is combined with one of the others.
    """
    if not stable:
        return uuid4() if session_id is None else session_id
    names = {name: (labels or {}).get(name, name) for name in ("stable", "parallel", "session_id")}
    if parallel:
        why = "{stable} and {parallel} exclude each other, as parallel sessions of one name can't share one id"
        raise invalid_message(why.format_map(names), "registration")
    if session_id is not None:
        why = "{stable} derives the session id from the name, so leave out {session_id}"
        raise invalid_message(why.format_map(names), "registration")
    return stable_session(agent_name, labels=labels)[1]


def invalid_message(why: str, noun: str) -> InvalidMessage:
    """Make the error for a message that can't be sent; `noun` says what kind of message it is."""
    from fleetbeat_shared.messages import Reason

    return InvalidMessage(Reason.INVALID, f"This {noun} can't be sent: {why}.")


def _describe(error: ValueError, labels: Mapping[str, str] | None, field: str | None = None) -> str:
    from pydantic import ValidationError

    from fleetbeat_shared.messages import describe

    return describe(error, labels, field) if isinstance(error, ValidationError) else str(error)

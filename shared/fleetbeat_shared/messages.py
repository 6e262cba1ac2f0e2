"""Messages of agents, and the workers' reply: JSON objects, distinguished by `kind`.

Producer and workers both validate messages here: text is stripped of control characters, names that hold some are
refused, and every limit is checked.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from uuid import UUID  # noqa: TC003 - pydantic reads it at run time

from pydantic import (
    UUID7,
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json

from fleetbeat_shared.errors import InvalidMessage
from fleetbeat_shared.identifiers import normalise_name
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.schedules import check_schedule, find_time_zone
from fleetbeat_shared.validation_errors import describe_error, replace_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo

MAX_MESSAGE_BYTES = 32 * 1024
MAX_METADATA_BYTES = 4 * 1024
MIN_INTERVAL_SECONDS = 1.0
MAX_INTERVAL_SECONDS = 31 * 86_400.0
MAX_BUFFERED_SECONDS = 366 * 86_400.0
MAX_MISSED_INTERVALS = 100
MAX_STUCK_AFTER = 100_000
MAX_COUNT = 2**31 - 1  # the largest SQL integer


class Reason(StrEnum):
    """Why a message was rejected and put into `rejected_messages`."""

    TOO_LARGE = "too_large"
    """More bytes than a message may have."""
    NOT_JSON = "not_json"
    """Not JSON."""
    INVALID = "invalid"
    """JSON, but not a valid message."""
    UNKNOWN_SESSION = "unknown_session"
    """No such session is registered."""
    SESSION_ENDED = "session_ended"
    """The session had ended before this was sent."""
    UNKNOWN_PARENT = "unknown_parent"
    """A delegate named a parent that isn't registered."""
    FAILED = "failed"
    """Storing this message failed when it was tried alone; its neighbours were stored."""
    POISON = "poison"
    """Three times running, a process died while it worked on this message alone."""


def _clean_text(value: object) -> object:
    return clean(value) if isinstance(value, str) else value


def _check_name(name: str) -> str:
    name = normalise_name(name)
    if not name.isprintable():
        # Not cleaned as other texts are: the result could be another agent's name, and change that agent's promise.
        points = dict.fromkeys(f"U+{ord(letter):04X}" for letter in name if not letter.isprintable())
        message = f"it has characters that can't be printed ({', '.join([*points][:3])}); leave them out"
        raise ValueError(message)
    return name


def _check_time_zone(name: str) -> str:
    find_time_zone(name)
    return name


_ESCAPED_CONTROL = re.compile(r"\\u(?:00[0189]|007f|061c|20[0126]|feff|fff)", re.IGNORECASE)


def _check_moment(moment: datetime) -> datetime:
    if moment.tzinfo is UTC:
        return moment
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        message = "is before the year 1 or after the year 9999 in UTC"
        raise ValueError(message) from None


def _clean_metadata(value: dict[str, Any]) -> dict[str, Any]:
    """Restrict metadata to what every database can store and every terminal can show safely."""
    try:
        text = json.dumps(value, allow_nan=False)
        size = len(json.dumps(value, ensure_ascii=False).encode())
        value = from_json(text)  # keys become text, and the nesting is as deep as the workers' parser allows
    except (ValueError, TypeError, RecursionError) as error:
        message = f"is not a JSON object: {error}"
        raise ValueError(message) from error
    if size > MAX_METADATA_BYTES:
        message = f"is {size} bytes of JSON; at most {MAX_METADATA_BYTES} are allowed"
        raise ValueError(message)
    # \n, \t and the like have short escapes of their own in JSON, so both forms are searched for.
    if _ESCAPED_CONTROL.search(text) or re.search(r"\\[bfnrt]", text):
        value = _clean_json(value)
    return value


def _clean_json(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): _clean_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean_json(item) for item in value]
    return value


# Strict, as bytes would bypass the cleaning.
Text = Annotated[str, Field(strict=True), BeforeValidator(_clean_text)]
Progress = Annotated[Text, Field(max_length=500)]
Moment = Annotated[AwareDatetime, AfterValidator(_check_moment)]
Metadata = Annotated[dict[str, Any], AfterValidator(_clean_metadata)]
AgentName = Annotated[str, Field(strict=True), AfterValidator(_check_name), Field(min_length=1, max_length=64)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class _Message(BaseModel):
    """The fields of all messages."""

    # Each model is built at its first use: a process that sends one message pays for one model.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    version: Literal[1] = 1
    id: UUID7
    """Made by the sender. The message is stored once under this key, however often it is delivered."""
    session_id: UUID
    sent_at: Moment
    """The sender's clock. Shown, never trusted."""

    def to_wire(self) -> bytes:
        """Encode the message as JSON.

        Raises InvalidMessage when it is larger than a message may be.
        """
        defaults = {name for name in ("reply", "parallel") if vars(self).get(name) is False}
        wire = self.model_dump_json(exclude_none=True, exclude=defaults).encode()
        if len(wire) > MAX_MESSAGE_BYTES:
            detail = f"the message is {len(wire)} bytes; at most {MAX_MESSAGE_BYTES} are allowed"
            raise InvalidMessage(Reason.TOO_LARGE, detail)
        return wire


class Register(_Message):
    """Registers an agent, or changes its promise."""

    kind: Literal["register"] = "register"
    agent_name: AgentName
    interval_seconds: Annotated[float, Field(ge=MIN_INTERVAL_SECONDS, le=MAX_INTERVAL_SECONDS)] | None = None
    schedule: Annotated[Text, Field(max_length=100), AfterValidator(check_schedule)] | None = None
    """A cron expression of five fields, instead of an interval."""
    time_zone: Annotated[str, Field(max_length=64), AfterValidator(_check_time_zone)] | None = None
    """IANA name; with a schedule only, UTC if absent."""
    grace_seconds: Annotated[float, Field(ge=0, le=MAX_INTERVAL_SECONDS)] | None = None
    missed_intervals: Annotated[int, Field(ge=1, le=MAX_MISSED_INTERVALS)] | None = None
    """How many intervals it may miss before it is degraded; if absent, the fleet's setting applies."""
    stuck_after: Annotated[int, Field(ge=0, le=MAX_STUCK_AFTER)] | None = None
    """After how many intervals without a change in its work it is stuck; 0: never; absent: as the fleet's setting."""
    project: Annotated[Text, Field(max_length=128)] | None = None
    work: Annotated[Text, Field(max_length=500)] | None = None
    """What the agent is going to do: its current work until it reports progress."""
    parent_id: UUID | None = None
    """The session that this one works for."""
    metadata: Metadata | None = None
    parallel: bool = False
    """Whether other live sessions may have the same name."""

    @model_validator(mode="after")
    def _one_promise(self) -> Self:
        if (self.interval_seconds is None) == (self.schedule is None):
            message = "give either interval_seconds or schedule"
            raise ValueError(message)
        if self.time_zone is not None and self.schedule is None:
            message = "time_zone goes with schedule"
            raise ValueError(message)
        if self.parent_id == self.session_id:
            message = "parent_id is the session itself"
            raise ValueError(message)
        return self


class Heartbeat(_Message):
    """Reports that an agent is alive, and what it does. An absent field keeps its earlier value."""

    kind: Literal["heartbeat"] = "heartbeat"
    progress: Progress | None = None
    work_item_id: Annotated[Text, Field(max_length=128)] | None = None
    status: Annotated[Text, Field(max_length=32)] | None = None
    """A word of the agent's own: ok, busy, blocked, error."""
    summary: Annotated[Text, Field(max_length=500)] | None = None
    error: Annotated[Text, Field(max_length=2000)] | None = None
    """An empty text clears an earlier error."""
    open_tasks: Count | None = None
    stale_tasks: Count | None = None
    metadata: Metadata | None = None
    buffered_seconds: Annotated[float, Field(ge=0, le=MAX_BUFFERED_SECONDS)] | None = None
    """How long the message waited before it was sent."""
    reply: bool = False
    """Whether the sender waits for a reply."""


class Deregister(_Message):
    """Ends a session."""

    kind: Literal["deregister"] = "deregister"
    error: Annotated[Text, Field(max_length=2000)] | None = None
    exit_status: Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT)] | None = None


Message = Annotated[Register | Heartbeat | Deregister, Field(discriminator="kind")]


class Reply(BaseModel):
    """A worker's reply to a message that asked for one: a JSON text, pushed onto `redis_keys.reply_key(message.id)`."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    ok: bool
    code: str | None = None
    """Why the message was refused: a value of Reason."""
    session_id: UUID
    agent_name: str | None = None
    timestamp: datetime | None = None
    """The time at which this heartbeat was seen (`seen_at`, UTC)."""
    progress: str | None = None
    """The progress that this heartbeat reported."""


@cache
def _adapter() -> TypeAdapter[Register | Heartbeat | Deregister]:
    return TypeAdapter(Message)  # slow to build, and only workers need it


def parse_message(wire: bytes) -> Register | Heartbeat | Deregister:
    """Parse the bytes of an inbox entry.

    Raises InvalidMessage with a reason, and a detail of one line without control characters.
    """
    if len(wire) > MAX_MESSAGE_BYTES:
        raise InvalidMessage(Reason.TOO_LARGE, f"{len(wire)} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
    try:
        return _adapter().validate_json(wire)
    except ValidationError as error:
        reason = Reason.NOT_JSON if error.errors(include_url=False)[0]["type"] == "json_invalid" else Reason.INVALID
        raise InvalidMessage(reason, describe(error)) from error


@cache
def _fields() -> dict[str, FieldInfo]:
    """Collect the fields of all messages by name; a field that several messages have is the same in each."""
    return {name: field for kind in (Register, Heartbeat, Deregister) for name, field in kind.model_fields.items()}


def describe(error: ValidationError, labels: Mapping[str, str] | None = None, field: str | None = None) -> str:
    """Describe pydantic's errors in one line, which may hold names and short values of the input, cleaned.

    Fields are named by their labels, where `labels` has one. `field` is the name of a field that was validated alone.
    """
    labels = labels or {}
    found = []
    for item in error.errors(include_url=False)[:5]:
        parts = [str(part) for part in item["loc"] if part not in {"register", "heartbeat", "deregister"}]
        parts = parts or ([field] if field else [])
        path = ".".join(labels.get(part, part) for part in parts)
        what = describe_error(item, _fields().get(parts[0]) if parts else None)
        found.append(f"{path}: {what}" if path else replace_names(what, labels))
    return clean("; ".join(found))[:500]

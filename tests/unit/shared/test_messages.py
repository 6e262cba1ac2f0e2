from __future__ import annotations

import json
import time
import unicodedata
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from fleetbeat_shared.errors import InvalidMessage
from fleetbeat_shared.identifiers import new_message_id, stable_session_id
from fleetbeat_shared.messages import (
    MAX_MESSAGE_BYTES,
    MAX_METADATA_BYTES,
    Deregister,
    Heartbeat,
    Reason,
    Register,
    parse_message,
)

SESSION = UUID("3d6f6917-efad-4b03-b9bf-d8e124b2e8bb")


def head() -> dict[str, Any]:
    return {"id": new_message_id(), "session_id": SESSION, "sent_at": datetime.now(UTC)}


def wire(**fields: Any) -> bytes:
    """Return a heartbeat as a stranger might send it."""
    plain = {"version": 1, "kind": "heartbeat", **{name: str(value) for name, value in head().items()}}
    return json.dumps(plain | fields).encode()


def registration(**fields: Any) -> Register:
    return Register(**head(), **{"agent_name": "hint", "interval_seconds": 30} | fields)


def heartbeat(**fields: Any) -> Heartbeat:
    return Heartbeat(**head(), **fields)


FULL = [
    registration(
        schedule="15 8 * * *", interval_seconds=None, time_zone="Europe/Berlin", grace_seconds=5, parallel=True
    ),
    registration(missed_intervals=100, stuck_after=0),
    registration(project="p", work="w", parent_id=uuid4(), metadata={"a": [1, None, {"b": "ü"}]}),
    heartbeat(),
    heartbeat(progress="x", work_item_id="W-1", status="busy", summary="s", error="", open_tasks=3, stale_tasks=0),
    heartbeat(metadata={"a": None}, buffered_seconds=1.5, reply=True),
    Deregister(**head(), error="e", exit_status=-9),
]


@pytest.mark.parametrize("message", FULL, ids=lambda message: message.kind)
def test_messages_round_trip(message: Register | Heartbeat | Deregister) -> None:
    """A message of any kind with any field is parsed back equal."""
    assert parse_message(message.to_wire()) == message


def test_a_plain_heartbeat_is_small() -> None:
    """Absent fields aren't encoded: a typical heartbeat has at most 250 bytes."""
    assert len(heartbeat(progress="reading the inbox", work_item_id="W-12").to_wire()) <= 250


BAD = {
    "empty": (b"", Reason.NOT_JSON),
    "not JSON": (b"hello", Reason.NOT_JSON),
    "half a message": (wire()[:-5], Reason.NOT_JSON),
    "not UTF-8": (wire(progress="@").replace(b"@", b"\xff\xfe"), Reason.NOT_JSON),
    "too large": (wire(progress="x" * 10_000_000), Reason.TOO_LARGE),
    "one byte too large": (wire() + b" " * (MAX_MESSAGE_BYTES + 1 - len(wire())), Reason.TOO_LARGE),
    "deep lists": (b"[" * 30_000, Reason.NOT_JSON),
    "deep metadata": (wire(metadata="@").replace(b'"@"', b'{"a":' * 1000 + b"1" + b"}" * 1000), Reason.NOT_JSON),
    "lone surrogate": (wire(progress="\ud800"), Reason.NOT_JSON),
    "lone surrogate in metadata": (wire(metadata={"a": "\udcff"}), Reason.NOT_JSON),
    "NaN": (wire(buffered_seconds=float("nan")), Reason.INVALID),
    "infinity": (wire(buffered_seconds=float("inf")), Reason.INVALID),
    "NaN in metadata": (wire(metadata={"a": float("nan")}), Reason.INVALID),
    "number beyond floats in metadata": (wire(metadata="@").replace(b'"@"', b'{"a":1e999}'), Reason.INVALID),
    "huge count": (wire(open_tasks=10**400), Reason.INVALID),
    "count beyond SQL": (wire(open_tasks=2**31), Reason.INVALID),
    "number of 5000 digits": (wire(open_tasks="@").replace(b'"@"', b"1" * 5000), Reason.NOT_JSON),
    "negative count": (wire(stale_tasks=-1), Reason.INVALID),
    "unknown field": (wire(surprise=1), Reason.INVALID),
    "wrong version": (wire(version=2), Reason.INVALID),
    "unknown kind": (wire(kind="shutdown"), Reason.INVALID),
    "a kind's missing field": (wire(kind="register"), Reason.INVALID),
    "no object": (b"[1, 2]", Reason.INVALID),
    "null": (b"null", Reason.INVALID),
    "id of another version": (wire(id=str(uuid4())), Reason.INVALID),
    "session that is not a UUID": (wire(session_id="hint"), Reason.INVALID),
    "time without a zone": (wire(sent_at="2024-01-01T00:00:00"), Reason.INVALID),
    "time beyond the calendar": (wire(sent_at=1e300), Reason.INVALID),
    "text that is a number": (wire(progress=5), Reason.INVALID),
    "text too long": (wire(progress="x" * 501), Reason.INVALID),
    "metadata that is a list": (wire(metadata=[1]), Reason.INVALID),
    "metadata too large": (wire(metadata={"a": "x" * MAX_METADATA_BYTES}), Reason.INVALID),
}


@pytest.mark.parametrize(("raw", "reason"), BAD.values(), ids=BAD)
def test_bad_messages_are_refused_with_a_reason(raw: bytes, reason: Reason) -> None:
    """Each kind of bad input gets its reason, and a detail of one short line that is safe to show."""
    with pytest.raises(InvalidMessage) as caught:
        parse_message(raw)
    assert caught.value.reason == reason
    assert 0 < len(caught.value.detail) <= 500
    assert caught.value.detail.isprintable()


@given(st.binary(max_size=200) | st.text().map(str.encode) | st.from_regex(rb'\{"kind": ?"(heartbeat|register)".*\}'))
def test_any_bytes_are_refused_with_invalid_message(raw: bytes) -> None:
    """Bad bytes raise InvalidMessage and no other error."""
    with pytest.raises(InvalidMessage):
        parse_message(raw)


def test_unknown_field_names_are_cleaned_in_the_detail() -> None:
    """Escape sequences in an unknown field's name don't reach a terminal through the error."""
    with pytest.raises(InvalidMessage) as caught:
        parse_message(wire(**{"\x1b[31mred\n": 1}))
    assert caught.value.detail.startswith("red")


def test_text_is_cleaned() -> None:
    """Escape sequences, NUL and line breaks are removed from every text, in JSON as in Python."""
    dirty = "\x1b[31mone\x00\r\ntwo\u202e"
    names = ("progress", "work_item_id", "status", "summary", "error")
    for message in (heartbeat(**dict.fromkeys(names, dirty)), parse_message(wire(**dict.fromkeys(names, dirty)))):
        assert {getattr(message, name) for name in names} == {"one two"}


def test_metadata_is_cleaned_in_keys_and_values() -> None:
    """Control characters are found in keys, in nested values and behind JSON's escapes."""
    dirty = {"k\x1b[1m\x00ey": ["a\x7fb", {"c": "d\ne", "n": 1}], "bidi\u202e": "x\u2066y", "c1": "\x9bz"}
    clean = {"key": ["ab", {"c": "d e", "n": 1}], "bidi": "xy", "c1": "z"}
    assert heartbeat(metadata=dirty).metadata == clean
    assert parse_message(wire(metadata=dirty)).metadata == clean


@pytest.mark.parametrize(
    "point", [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x202E, 0x2028, 0x2066, 0xFEFF, 0xFFF9]
)
def test_a_single_control_character_is_cleaned(point: int) -> None:
    """Each control character is found in metadata also when it is the only one."""
    assert heartbeat(metadata={"a": f"x{chr(point)}"}).metadata == {"a": "x"}


def test_bytes_are_refused_as_text() -> None:
    """Bytes would bypass the cleaning, so they are refused."""
    with pytest.raises(ValidationError, match="valid string"):
        heartbeat(progress=b"\x1b[31m")


def test_lone_surrogates_in_python_texts_are_dropped() -> None:
    """A file name that is not UTF-8 can be reported, without the bytes that JSON can't hold."""
    message = heartbeat(progress="reading caf\udce9.txt")
    assert parse_message(message.to_wire()).progress == "reading caf.txt"


@pytest.mark.parametrize("length", [MAX_METADATA_BYTES - 8, MAX_METADATA_BYTES - 7])
def test_metadata_is_limited_in_bytes_of_json(length: int) -> None:
    """4 KiB of JSON are accepted and one byte more is not; characters count with their UTF-8 bytes."""
    for value in ("x" * length, "ü" * (length // 2) + "x" * (length % 2)):
        metadata = {"a": value}
        if len(json.dumps(metadata, ensure_ascii=False).encode()) <= MAX_METADATA_BYTES:
            assert heartbeat(metadata=metadata).metadata == metadata
        else:
            with pytest.raises(ValidationError, match="at most 4096"):
                heartbeat(metadata=metadata)


@pytest.mark.parametrize("value", [{1, 2}, object(), datetime.now(UTC), float("nan"), b"x"])
def test_metadata_other_than_json_is_refused(value: object) -> None:
    """A value that JSON can't hold is refused when the message is composed."""
    with pytest.raises(ValidationError, match="is not a JSON object"):
        heartbeat(metadata={"a": value})


def test_names_are_normalised() -> None:
    """A name written with combining characters is the same agent as the composed one, with one stable id."""
    composed = "Åse"
    apart = unicodedata.normalize("NFD", composed)
    assert apart != composed
    assert registration(agent_name=f" {apart}\n").agent_name == composed
    assert stable_session_id(apart) == stable_session_id(composed)


def test_stable_ids_never_change() -> None:
    """The id derived from a name is always the same UUIDv5, and differs from name to name."""
    assert stable_session_id("hint") == UUID("ec5a595f-bd66-5fd5-97db-77340b94cf1c")
    assert stable_session_id("hint").version == 5
    assert stable_session_id("hint") != stable_session_id("Hint")


@pytest.mark.parametrize(
    "name", ["", " \n", "\x00", "a\u200bb", "a\nb", "ev\x1b[31mil", "a\u202eb", "a\udcffb", "x" * 65, "\u0958" * 40]
)
def test_bad_names_are_refused(name: str) -> None:
    """Empty, unprintable and too long names are refused; length counts in the normal form, which may be longer."""
    with pytest.raises(ValidationError):
        registration(agent_name=name)


def test_a_name_is_never_turned_into_another_agents() -> None:
    """In JSON too, a name with an escape sequence is refused, instead of stored without it."""
    wire = registration(agent_name="evNAMEil", parallel=True).to_wire().replace(b"NAME", rb"\u001b[31m")
    with pytest.raises(InvalidMessage, match=r"agent_name: it has characters that can't be printed \(U\+001B\)"):
        parse_message(wire)


@given(st.text(max_size=70))
def test_an_accepted_name_is_printable_and_its_own_normal_form(name: str) -> None:
    """An accepted name has 1 to 64 printable characters and is accepted again unchanged."""
    try:
        accepted = registration(agent_name=name).agent_name
    except ValidationError:
        return
    assert 1 <= len(accepted) <= 64
    assert accepted.isprintable()
    assert registration(agent_name=accepted).agent_name == accepted


@pytest.mark.parametrize(
    "fields",
    [
        {"interval_seconds": None},
        {"schedule": "* * * * *"},
        {"time_zone": "UTC"},
        {"interval_seconds": 0.5},
        {"interval_seconds": 31 * 86_400 + 1},
        {"interval_seconds": float("inf")},
        {"interval_seconds": None, "schedule": "* * *"},
        {"interval_seconds": None, "schedule": "* * * * *", "time_zone": "Mars"},
        {"grace_seconds": -1},
        {"missed_intervals": 0},
        {"missed_intervals": 101},
        {"stuck_after": -1},
        {"stuck_after": 100_001},
        {"parent_id": SESSION},
        {"metadata": {"a": "x" * 5000}},
    ],
    ids=str,
)
def test_an_invalid_promise_is_refused(fields: dict[str, Any]) -> None:
    """A registration has either an interval or a schedule, within the limits, and isn't its own parent."""
    with pytest.raises(ValidationError):
        registration(**fields)


def test_messages_are_immutable() -> None:
    """A message's fields can't be set."""
    with pytest.raises(ValidationError):
        heartbeat().progress = "other"


def test_message_ids_are_uuid7_of_now() -> None:
    """An id starts with the time in milliseconds, has version and variant of UUIDv7, and isn't repeated."""
    before = time.time_ns() // 1_000_000
    ids = [new_message_id() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert all(before <= each.int >> 80 <= after for each in ids)
    assert {(each.version, each.variant) for each in ids} == {(7, "specified in RFC 4122")}
    assert len(set(ids)) == 1000

"""Validation errors of every field, whatever is wrong with it, are in our words."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from fleetbeat_shared.errors import InvalidMessage
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.messages import Deregister, Heartbeat, Register, describe, parse_message
from fleetbeat_shared.time_text import parse_duration

PYDANTIC = ("Input", "Value should", "String should", "Field required", "Extra inputs", "unable to", "tag")
"""Phrases of its errors."""

BAD: tuple[Any, ...] = (
    -1,
    10**5000,
    1e300,
    float("nan"),
    "",
    "x" * 3000,
    "x",
    7,
    1.5,
    [1],
    {"a": 1},
    None,
    b"x",
    "\x1b",
)


def errors_of(kind: type[Register | Heartbeat | Deregister], /, **fields: object) -> str:
    """Describe the errors of a message with these fields; empty if it is valid."""
    head = {"id": new_message_id(), "session_id": uuid4(), "sent_at": datetime.now(UTC)}
    promise = {"agent_name": "torv", "interval_seconds": 5} if kind is Register else {}
    try:
        kind.model_validate(head | promise | fields)
    except ValidationError as error:
        return describe(error)
    return ""


@pytest.mark.parametrize("kind", [Register, Heartbeat, Deregister])
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: type(bad).__name__)
def test_no_error_has_the_words_of_pydantic(kind: type[Register | Heartbeat | Deregister], bad: object) -> None:
    """Each field of each message with each kind of invalid value: the sentence is ours, short and printable."""
    for field in kind.model_fields:
        text = errors_of(kind, **{field: bad})
        assert not any(word in text for word in PYDANTIC), text
        assert text.isprintable()
        assert len(text) <= 500


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b"3", "3 is not a JSON object"),
        (b"{", "it is not JSON: EOF"),
        (b"{}", "kind: it is missing"),
        (b'{"kind": "shout"}', "kind: 'shout' is not allowed; only 'register', 'heartbeat', 'deregister' are"),
        (b'{"kind": "heartbeat"}', "id: it is missing; session_id: it is missing; sent_at: it is missing"),
        (json.dumps({"kind": "deregister", "surprise": 1}).encode(), "surprise: there is no such field"),
        (json.dumps({"kind": "deregister", "version": 2}).encode(), "version: 2 is not allowed; only 1 is"),
        (
            json.dumps({"kind": "deregister", "sent_at": "now"}).encode(),
            "sent_at: 'now' is not a time (example: 2026",
        ),
    ],
)
def test_an_invalid_message_is_described(wire: bytes, expected: str) -> None:
    """An agent in another language gets a reason that its author can understand."""
    with pytest.raises(InvalidMessage) as caught:
        parse_message(wire)
    assert expected in caught.value.detail


def test_a_duration_is_quoted_as_it_was_typed() -> None:
    """An error about `32d` quotes it and shows limits as durations; one about seconds shows seconds."""
    assert errors_of(Register, interval_seconds=parse_duration(" 1h 45D ")) == (
        "interval_seconds: 1h 45D is too large; 1s to 31d is allowed"
    )
    assert errors_of(Register, interval_seconds=0.5) == "interval_seconds: 0.5 is too small; 1 to 2678400 is allowed"


def test_an_error_about_several_fields_uses_their_labels() -> None:
    """An error about two fields names the options that set them."""
    with pytest.raises(ValidationError) as caught:
        Register.model_validate(
            {
                "id": new_message_id(),
                "session_id": uuid4(),
                "sent_at": datetime.now(UTC),
                "agent_name": "torv",
                "interval_seconds": 5,
                "time_zone": "UTC",
            }
        )
    assert describe(caught.value) == "time_zone goes with schedule"
    assert describe(caught.value, {"time_zone": "--time-zone", "schedule": "--cron"}) == "--time-zone goes with --cron"

"""What pydantic finds is told in our words: of every field, whatever is wrong with it."""

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
"""Words of its sentences."""

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


def found(kind: type[Register | Heartbeat | Deregister], /, **fields: object) -> str:
    """Return what is said of a message with these fields; nothing if it is fine."""
    head = {"id": new_message_id(), "session_id": uuid4(), "sent_at": datetime.now(UTC)}
    promise = {"agent_name": "torv", "interval_seconds": 5} if kind is Register else {}
    try:
        kind.model_validate(head | promise | fields)
    except ValidationError as error:
        return describe(error)
    return ""


@pytest.mark.parametrize("kind", [Register, Heartbeat, Deregister])
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: type(bad).__name__)
def test_no_field_is_told_in_the_words_of_pydantic(kind: type[Register | Heartbeat | Deregister], bad: object) -> None:
    """Each field of each message with each kind of nonsense: the sentence names it, and is ours."""
    for field in kind.model_fields:
        said = found(kind, **{field: bad})
        assert not any(word in said for word in PYDANTIC), said
        assert said.isprintable()
        assert len(said) <= 500


@pytest.mark.parametrize(
    ("wire", "says"),
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
def test_what_is_no_message_is_told_in_our_words(wire: bytes, says: str) -> None:
    """What agents in other languages send is set aside with a reason that their makers understand."""
    with pytest.raises(InvalidMessage) as caught:
        parse_message(wire)
    assert says in caught.value.detail


def test_a_duration_is_told_as_it_was_typed() -> None:
    """Who typed `32d` reads it again, with limits in the same words; who gave seconds reads seconds."""
    assert found(Register, interval_seconds=parse_duration(" 1h 45D ")) == (
        "interval_seconds: 1h 45D is too large; 1s to 31d is allowed"
    )
    assert found(Register, interval_seconds=0.5) == "interval_seconds: 0.5 is too small; 1 to 2678400 is allowed"


def test_what_concerns_several_fields_has_their_other_names() -> None:
    """An error about two fields names the options that they came from."""
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

"""What is wrong with a value, in words for whoever gave it.

pydantic finds it, and says it to programmers ("Input should be a valid UUID, invalid character: found `n` at 0"). This
is the one place where that becomes a sentence: what was given, what it isn't, and what is allowed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

from pydantic.fields import FieldInfo

from fleetbeat_shared.time_text import TypedSeconds, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

SHOWN_CHARACTERS = 40
"""How much of a text is shown."""
LARGEST_SHOWN = 10**18
"""A number that is further from 0 has more digits than anybody reads, and Python may refuse to write them."""

_TOO_LITTLE = {"greater_than", "greater_than_equal"}
_TOO_MUCH = {"less_than", "less_than_equal"}
_WRONG_LENGTH = {"string_too_short", "string_too_long", "too_short", "too_long"}
_NUMBERS = {
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), "no number"),
    **dict.fromkeys(("int_parsing", "int_parsing_size", "int_type", "int_from_float"), "no whole number"),
}
_NO_UUID = "{it} is no UUID; write it as in 0198c5a0-6b1e-4e0e-9d53-5d0f4f1a7c11"
_NO_BOOLEAN = "{it} is neither true nor false"
_KINDS = {
    "uuid_parsing": _NO_UUID,
    "uuid_type": _NO_UUID,
    "uuid_version": "{it} is no UUID of version 7",
    "string_type": "{it} is no text",
    "string_unicode": "{it} is no Unicode text",
    "bool_parsing": _NO_BOOLEAN,
    "bool_type": _NO_BOOLEAN,
    "dict_type": "{it} is no JSON object",
    "datetime": "{it} is no time; write it as in 2026-01-31T08:15:00Z",
    "timezone_aware": "{it} has no time zone; write it as in 2026-01-31T08:15:00Z",
    "missing": "it is missing",
    "extra_forbidden": "there is no such field",
    "literal_error": "{it} is not allowed; only {expected} is",
    "json_invalid": "it is no JSON: {error}",
    "union_tag_not_found": "kind: it is missing",
    "union_tag_invalid": "kind: {tag} is none; there are {expected_tags}",
}
"""Sentences by pydantic's type of error; a value goes where `{it}` stands."""


def whats_wrong(found: ErrorDetails, field: FieldInfo | None = None, *, is_secret: bool = False) -> str:
    """Return one of pydantic's errors as the second half of a sentence, for after the name of what it is about.

    `field` says what is allowed, where that is known. Of what is secret only numbers are shown. There may be control
    characters in it: clean it before it is shown.
    """
    kind, given = found["type"], found["input"]
    shown = "it" if is_secret else _shown(given)
    if kind in _TOO_LITTLE | _TOO_MUCH:
        how = "too little" if kind in _TOO_LITTLE else "too much"
        return f"{_shown(given)} is {how}{_allowed(field, in_words=isinstance(given, TypedSeconds))}"
    if kind in _WRONG_LENGTH:
        return _wrong_length(found, field)
    if kind in _NUMBERS:
        return f"{shown} is {_NUMBERS[kind]}{_allowed(field)}"
    sentence = _KINDS.get("datetime" if kind.startswith("datetime") else kind)
    if sentence is None:
        return found["msg"].removeprefix("Value error, ")  # what our own checks say
    return sentence.format_map({"it": shown, **_context(found)})


def _context(found: ErrorDetails) -> dict[str, Any]:
    context = found.get("ctx", {})
    return {**context, "tag": _shown(context.get("tag"))}


def _wrong_length(found: ErrorDetails, field: FieldInfo | None) -> str:
    given = found["input"]
    length = found.get("ctx", {}).get("actual_length", len(given) if isinstance(given, str) else None)
    low, high = (_limit(field, name) for name in ("min_length", "max_length"))
    allowed = f"at most {high}" if low is None else f"{low} to {high}"
    return (
        f"it is empty; {allowed} characters are allowed"
        if not length
        else f"it has {length} characters; {allowed} are allowed"
    )


def _allowed(field: FieldInfo | None, *, in_words: bool = False) -> str:
    """Return what a number may be, as an end of a sentence; durations in words where they were given in words."""

    def told(limit: float) -> str:
        return format_duration(limit) if in_words else _shown(limit)

    least, above, most, below = (_limit(field, name) for name in ("ge", "gt", "le", "lt"))
    parts = [
        None if above is None else f"more than {told(above)}",
        None if below is None else f"less than {told(below)}",
        None if most is None else f"at most {told(most)}",
        None if least is None else f"at least {told(least)}",
    ]
    if least is not None and most is not None:
        return f"; {told(least)} to {told(most)} is allowed"
    said = " and ".join(filter(None, parts))
    return f"; {said} is allowed" if said else ""


def _limit(field: FieldInfo | None, name: str) -> Any:  # noqa: ANN401 - a number, of whichever kind
    return None if field is None else next(_limits(field, name), None)


def _limits(field: object, name: str) -> Iterator[Any]:
    """Yield the limits of a kind that a field has; those of an optional one stand within its annotation."""
    inner = field.annotation if isinstance(field, FieldInfo) else field
    marks = [*field.metadata] if isinstance(field, FieldInfo) else [*getattr(field, "__metadata__", ())]
    for mark in marks:
        if isinstance(mark, FieldInfo):
            yield from _limits(mark, name)
        elif (limit := getattr(mark, name, None)) is not None:
            yield limit
    for part in get_args(inner):
        if get_args(part):
            yield from _limits(part, name)


def _shown(value: object) -> str:
    """Return a value as it was given, if it is short."""
    if isinstance(value, TypedSeconds):
        return value.typed
    if isinstance(value, bool) or value is None:
        return repr(value).lower()
    if isinstance(value, int):
        return str(value) if abs(value) <= LARGEST_SHOWN else "a number of that size"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) <= LARGEST_SHOWN else repr(value)
    if isinstance(value, str):
        is_number = re.fullmatch(r"[+-]?[0-9.]{1,20}", value)
        return value if is_number else repr(_cut(value))
    return "it"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def with_names(text: str, called: Mapping[str, str]) -> str:
    """Return a text about several fields with the names that these have for the reader."""
    return re.sub(r"\b[a-z]+(?:_[a-z]+)*\b", lambda word: called.get(word[0], word[0]), text)

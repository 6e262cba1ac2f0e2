"""Validation errors in words for the user who gave the value.

pydantic words its errors for programmers ("Input should be a valid UUID, invalid character: found `n` at 0"). This
module turns each into a sentence: what was given, what is wrong with it, and what is allowed.
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
"""How many characters of a text are shown."""
LARGEST_SHOWN = 10**18
"""A number further from 0 has too many digits to read, and Python may refuse to format them."""

_TOO_SMALL = {"greater_than", "greater_than_equal"}
_TOO_LARGE = {"less_than", "less_than_equal"}
_WRONG_LENGTH = {"string_too_short", "string_too_long", "too_short", "too_long"}
_NUMBERS = {
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), "not a number"),
    **dict.fromkeys(("int_parsing", "int_parsing_size", "int_type", "int_from_float"), "not a whole number"),
}
_NOT_UUID = "{it} is not a UUID (example: 0198c5a0-6b1e-4e0e-9d53-5d0f4f1a7c11)"
_NOT_BOOLEAN = "{it} is neither true nor false"
_SENTENCES = {
    "uuid_parsing": _NOT_UUID,
    "uuid_type": _NOT_UUID,
    "uuid_version": "{it} is not a UUID of version 7",
    "string_type": "{it} is not text",
    "string_unicode": "{it} is not Unicode text",
    "bool_parsing": _NOT_BOOLEAN,
    "bool_type": _NOT_BOOLEAN,
    "dict_type": "{it} is not a JSON object",
    "datetime": "{it} is not a time (example: 2026-01-31T08:15:00Z)",
    "timezone_aware": "{it} has no time zone (example: 2026-01-31T08:15:00Z)",
    "missing": "it is missing",
    "extra_forbidden": "there is no such field",
    "literal_error": "{it} is not allowed; only {expected} is",
    "json_invalid": "it is not JSON: {error}",
    "union_tag_not_found": "kind: it is missing",
    "union_tag_invalid": "kind: {tag} is not allowed; only {expected_tags} are",
}
"""Sentences by pydantic's type of error; the value replaces `{it}`."""


def describe_error(error: ErrorDetails, field: FieldInfo | None = None, *, is_secret: bool = False) -> str:
    """Describe one of pydantic's errors as a clause, to follow the name of the value.

    `field` tells what is allowed, where that is known. Of a secret value only numbers are shown. The clause may hold
    control characters of the value: clean it before showing it.
    """
    kind, value = error["type"], error["input"]
    shown = "it" if is_secret else _show(value)
    if kind in _TOO_SMALL | _TOO_LARGE:
        how = "too small" if kind in _TOO_SMALL else "too large"
        return f"{_show(value)} is {how}{_allowed(field, as_durations=isinstance(value, TypedSeconds))}"
    if kind in _WRONG_LENGTH:
        return _describe_length(error, field)
    if kind in _NUMBERS:
        return f"{shown} is {_NUMBERS[kind]}{_allowed(field)}"
    sentence = _SENTENCES.get("datetime" if kind.startswith("datetime") else kind)
    if sentence is None:
        return error["msg"].removeprefix("Value error, ")  # from a validator of ours
    context = error.get("ctx", {})
    return sentence.format_map({**context, "it": shown, "tag": _show(context.get("tag"))})


def replace_names(text: str, labels: Mapping[str, str]) -> str:
    """Replace the names of fields in a text by their labels."""
    return re.sub(r"\b[a-z]+(?:_[a-z]+)*\b", lambda word: labels.get(word[0], word[0]), text)


def _describe_length(error: ErrorDetails, field: FieldInfo | None) -> str:
    value = error["input"]
    length = error.get("ctx", {}).get("actual_length", len(value) if isinstance(value, str) else None)
    low, high = (_limit(field, name) for name in ("min_length", "max_length"))
    allowed = f"at most {high}" if low is None else f"{low} to {high}"
    if not length:
        return f"it is empty; {allowed} characters are allowed"
    return f"it has {length} characters; {allowed} are allowed"


def _allowed(field: FieldInfo | None, *, as_durations: bool = False) -> str:
    """Describe a field's range as the end of a sentence; as durations where the value was given as one."""

    def show(limit: float) -> str:
        return format_duration(limit) if as_durations else _show(limit)

    least, above, most, below = (_limit(field, name) for name in ("ge", "gt", "le", "lt"))
    if least is not None and most is not None:
        return f"; {show(least)} to {show(most)} is allowed"
    parts = [
        None if above is None else f"more than {show(above)}",
        None if below is None else f"less than {show(below)}",
        None if most is None else f"at most {show(most)}",
        None if least is None else f"at least {show(least)}",
    ]
    limits = " and ".join(filter(None, parts))
    return f"; {limits} is allowed" if limits else ""


def _limit(field: FieldInfo | None, name: str) -> Any:  # noqa: ANN401 - an int or a float
    return None if field is None else next(_limits(field, name), None)


def _limits(field: object, name: str) -> Iterator[Any]:
    """Yield a field's limits of one kind; those of an optional field are inside its annotation."""
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


def _show(value: object) -> str:
    """Format a value as it was given; "it" or a cut text if it is long."""
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
        cut = value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}…"
        return value if is_number else repr(cut)
    return "it"

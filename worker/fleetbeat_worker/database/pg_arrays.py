"""PostgreSQL arrays: encoding values in the binary format.

psycopg writes each array as text, and PostgreSQL reads it so: for a batch's ids that took six times as long as this,
a tenth of all of a batch's time. The format is that of PostgreSQL's `array_recv`: dimensions, whether there are nulls,
the type of the elements, their number, the first index; then for each element its length (-1 for NULL) and its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, LargeBinary, Text

from fleetbeat_worker.database.column_types import Identifier, Instant, JsonObject, to_json

_HEAD = struct.Struct(">iiIii")
_LENGTH = struct.Struct(">i")
_NULL = _LENGTH.pack(-1)


class Array(bytes):
    """An encoded array."""

    __slots__ = ()


class _Element(NamedTuple):
    """The binary format of a type's values."""

    name: str
    """Of the type, in SQL."""
    oid: int
    """Of the type: those of PostgreSQL's own types are the same everywhere (`pg_type.dat`)."""
    encode: Callable[[Any], bytes]
    size: int | None = None
    """In bytes, if all values have the same."""


_BIGINT = _Element("bigint", 20, struct.Struct(">q").pack, 8)

_ELEMENTS = {
    Identifier: _Element("uuid", 2950, attrgetter("bytes"), 16),
    Instant: _BIGINT,
    BigInteger: _BIGINT,
    Integer: _Element("integer", 23, struct.Struct(">i").pack, 4),
    Double: _Element("double precision", 701, struct.Struct(">d").pack, 8),
    Boolean: _Element("boolean", 16, struct.Struct(">?").pack, 1),
    Text: _Element("text", 25, str.encode),
    LargeBinary: _Element("bytea", 17, bytes),
    JsonObject: _Element("jsonb", 3802, lambda value: b"\x01" + to_json(value).encode()),
}
"""By a column's type. A time is sent as milliseconds since 1970; the 1 before JSON is the version of its format."""


def element_type(column: Column[Any]) -> str:
    """Get SQL's name of the type of an array's elements, for a column."""
    return _ELEMENTS[type(column.type)].name


def array_of(column: Column[Any], values: Sequence[Any]) -> Array:
    """Encode a column's values as an array."""
    _, oid, encode, size = _ELEMENTS[type(column.type)]
    if size is not None:
        length = _LENGTH.pack(size)
        parts = [_NULL if value is None else length + encode(value) for value in values]
    else:
        encoded = (None if value is None else encode(value) for value in values)
        parts = [_NULL if value is None else _LENGTH.pack(len(value)) + value for value in encoded]
    return Array(_HEAD.pack(1, int(_NULL in parts), oid, len(values), 1) + b"".join(parts))

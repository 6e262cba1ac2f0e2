"""Column types with the same meaning on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, LargeBinary, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds


class Instant(TypeDecorator[datetime]):
    """An aware datetime, to the millisecond: `timestamptz(3)`, or an integer of milliseconds since 1970 on SQLite."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column's type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True, precision=3))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> object:
        """Convert a datetime into the column's value."""
        if value is None:
            return None
        milliseconds = to_milliseconds(value)
        # PostgreSQL would round to the nearest millisecond; both databases must hold the same.
        return from_milliseconds(milliseconds) if dialect.name == "postgresql" else milliseconds

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ANN401 - the driver's
        """Convert the column's value into a datetime in UTC."""
        if value is None:
            return None
        return value.astimezone(UTC) if dialect.name == "postgresql" else from_milliseconds(value)


class Identifier(TypeDecorator[UUID]):
    """A UUID: `uuid`, or 16 bytes on SQLite, which sort as the UUID does and take half the space of its text."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column's type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID(as_uuid=True))
        return dialect.type_descriptor(LargeBinary(16))

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> object:
        """Convert a UUID into the column's value."""
        if value is None or dialect.name == "postgresql":
            return value
        return value.bytes

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:  # noqa: ANN401 - the driver's
        """Convert the column's value into a UUID."""
        if value is None or dialect.name == "postgresql":
            return value  # type: ignore[no-any-return]
        return UUID(bytes=value)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # json.dumps makes one for each object


def to_json(value: dict[str, Any]) -> str:
    """Encode a JSON object as it is stored."""
    return _encode(value)


class JsonObject(TypeDecorator[dict[str, Any]]):
    """A JSON object: `jsonb`, or its text on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column's type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.JSONB(none_as_null=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> object:
        """Convert an object into the column's value."""
        if value is None or dialect.name == "postgresql":
            return value
        return to_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> dict[str, Any] | None:  # noqa: ANN401
        """Convert the column's value into an object."""
        if value is None or dialect.name == "postgresql":
            return value  # type: ignore[no-any-return]
        return json.loads(value)  # type: ignore[no-any-return]

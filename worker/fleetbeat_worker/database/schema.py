"""Schema: upgrading the database to the schema of this version, and checking it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from fleetbeat_shared.errors import SchemaOutdated
from fleetbeat_worker.database.engine import place, reading, writing
from fleetbeat_worker.database.partitions import make_partitions

HEAD = "0007"
"""The newest migration; a test holds it equal to `migrations/versions`."""

_UPGRADE_LOCK = 0x666C656574  # "fleet": one number for all that upgrade at once on PostgreSQL


def revision(engine: Engine) -> str | None:
    """Read the migration that the database is at, or None for one without Fleetbeat's tables.

    Raises DatabaseUnavailable.
    """
    with reading(engine) as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def check(engine: Engine) -> None:
    """Raise SchemaOutdated unless the database is at the newest migration; DatabaseUnavailable if it can't be read."""
    found = revision(engine)
    if found == HEAD:
        return
    if found is not None and found > HEAD:
        message = (
            f"The database at {place(engine)} has schema {found}, newer than {HEAD}, which this version works with. "
            "Install the newer Fleetbeat."
        )
    else:
        message = (
            f"The database at {place(engine)} has schema {found or 'none'}, this version works with {HEAD}. "
            "Run: fleetbeat db upgrade"
        )
    raise SchemaOutdated(message)


def upgrade(engine: Engine) -> bool:
    """Upgrade the database to the newest migration; return whether that was necessary.

    Safe with several processes at once: the first one upgrades, the others wait.

    Raises DatabaseUnavailable; SchemaOutdated when the database is newer than this version.
    """
    from alembic import command  # costs 0.35 s, and is seldom needed
    from alembic.config import Config

    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        found = _revision(connection)
        if found != HEAD and (found is None or found < HEAD):
            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
            config.attributes["connection"] = connection
            command.upgrade(config, HEAD)
            make_partitions(connection, datetime.now(UTC))
            return True
    check(engine)
    return False


def prepare(engine: Engine) -> None:
    """Prepare the database for work: SQLite is upgraded, PostgreSQL is only checked.

    Raises DatabaseUnavailable, SchemaOutdated.
    """
    if engine.dialect.name == "sqlite" and revision(engine) != HEAD:
        upgrade(engine)
    else:
        check(engine)

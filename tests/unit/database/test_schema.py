from __future__ import annotations

from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from fleetbeat_shared.errors import SchemaOutdated
from fleetbeat_worker.database import schema
from fleetbeat_worker.database.engine import open_engine, writing
from helpers import schema_differences


def test_head_is_the_newest_migration() -> None:
    """The revision that the code requires is the last one of the package."""
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_the_migrations_make_the_tables_of_the_code(memory: Engine) -> None:
    """On SQLite, Alembic finds no difference between the migrated database and the tables of the code."""
    assert schema_differences(memory) == []


def test_an_empty_database_is_upgraded_once(tmp_path: Path) -> None:
    """The first upgrade creates the tables, the second one changes nothing, and the check passes."""
    engine = open_engine(f"sqlite:///{tmp_path / 'new' / 'fleetbeat.db'}")
    with pytest.raises(SchemaOutdated, match=r"has schema none.*Run: fleetbeat db upgrade"):
        schema.check(engine)
    assert schema.upgrade(engine)
    assert not schema.upgrade(engine)
    schema.check(engine)
    engine.dispose()


def test_sqlite_upgrades_itself(tmp_path: Path) -> None:
    """A worker with an empty SQLite file creates the tables."""
    engine = open_engine(f"sqlite:///{tmp_path / 'fleetbeat.db'}")
    schema.prepare(engine)
    assert schema.revision(engine) == schema.HEAD
    engine.dispose()


def test_a_newer_database_is_refused(memory: Engine) -> None:
    """A database that a newer version migrated is refused, with what to do, and not touched."""
    with writing(memory) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for act in (schema.check, schema.upgrade, schema.prepare):
        with pytest.raises(SchemaOutdated, match="Install the newer Fleetbeat"):
            act(memory)
    assert schema.revision(memory) == "9999"

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import IntegrityError, ProgrammingError

from fleetbeat_shared.errors import DatabaseUnavailable, SettingsError
from fleetbeat_worker.database import open_engine, reading, writing

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("look", [reading, writing])
@pytest.mark.parametrize("option", ["nonsense=x", "connecttimeout=1"])
def test_an_option_that_the_driver_refuses_is_a_bad_setting(look: object, option: str) -> None:
    """A misspelt option of a PostgreSQL URL is told by its name and the place, without the password."""
    engine = open_engine(f"postgresql://u:secret@127.0.0.1:1/x?{option}")
    with pytest.raises(SettingsError, match=option.partition("=")[0]) as found, look(engine):  # type: ignore[operator]
        pytest.fail("a transaction began")
    assert "postgresql://127.0.0.1:1/x" in str(found.value)
    assert "secret" not in str(found.value)


def test_a_server_that_is_away_is_no_bad_setting() -> None:
    """What trying again may mend stays that: nothing listens, so the database is unavailable."""
    engine = open_engine("postgresql://u:secret@127.0.0.1:1/x")
    with pytest.raises(DatabaseUnavailable, match="Trying again may help"), reading(engine):
        pytest.fail("a transaction began")


def test_faults_of_statements_stay_what_they_are() -> None:
    """A statement that the program or its data got wrong is no bad setting."""
    engine = open_engine("sqlite://")
    with writing(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE one (id INTEGER PRIMARY KEY)")
    with pytest.raises(IntegrityError), writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO one VALUES (1), (1)")
    with pytest.raises(ProgrammingError), writing(engine) as connection:
        connection.exec_driver_sql("SELECT ?", (1, 2))
    engine.dispose()


def test_folders_are_made_or_the_setting_is_refused(tmp_path: Path) -> None:
    """A file's folders are made as needed; where they can't be, the error names the folder and says why."""
    open_engine(f"sqlite:///{tmp_path / 'a' / 'b' / 'fleet.db'}")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"file/c in FLEETBEAT_DATABASE_URL can't be made \(Not a directory\)"):
        open_engine(f"sqlite:///{tmp_path / 'file' / 'c' / 'fleet.db'}")

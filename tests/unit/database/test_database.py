from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError, ProgrammingError

from fleetbeat_shared.errors import DatabaseUnavailable, SettingsError
from fleetbeat_worker.database.engine import flush, open_engine, reading, writing


@pytest.mark.parametrize("look", [reading, writing])
@pytest.mark.parametrize("option", ["nonsense=x", "connecttimeout=1"])
def test_an_option_that_the_driver_refuses_is_a_bad_setting(look: object, option: str) -> None:
    """The error for a misspelt option of a PostgreSQL URL has its name and the place, and not the password."""
    engine = open_engine(f"postgresql://u:secret@127.0.0.1:1/x?{option}")
    with pytest.raises(SettingsError, match=option.partition("=")[0]) as found, look(engine):  # type: ignore[operator]
        pytest.fail("a transaction began")
    assert "postgresql://127.0.0.1:1/x" in str(found.value)
    assert "secret" not in str(found.value)


def test_a_server_that_is_away_is_not_a_bad_setting() -> None:
    """Where no server listens the database is unavailable, and a retry may help."""
    engine = open_engine("postgresql://u:secret@127.0.0.1:1/x")
    with pytest.raises(DatabaseUnavailable, match="Trying again may help"), reading(engine):
        pytest.fail("a transaction began")


def test_faults_of_statements_are_not_translated() -> None:
    """A wrong statement or wrong data is not a bad setting."""
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


def test_a_commit_that_does_not_wait_for_the_disk_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `flush_later` SQLite's commits don't wait and `flush` writes its log to disk; otherwise they wait."""
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda file: flushed.append(os.fstat(file).st_ino))
    for flush_later, synchronous, files in ((False, 2, 0), (True, 1, 1)):
        engine = open_engine(url, flush_later=flush_later)
        with writing(engine) as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS one (id INTEGER PRIMARY KEY)")
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == synchronous
        flush(engine)
        assert flushed == [(tmp_path / "fleet.db-wal").stat().st_ino] * files
        engine.dispose()


def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed flush raises an error that names the database and the reason."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    engine = open_engine(f"sqlite:///{tmp_path / 'fleet.db'}", flush_later=True)
    with writing(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE one (id INTEGER PRIMARY KEY)")
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(DatabaseUnavailable, match=r"fleet.db can't be flushed to disk \(Input/output error\)"):
        flush(engine)
    engine.dispose()

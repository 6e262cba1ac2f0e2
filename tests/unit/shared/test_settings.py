from __future__ import annotations

from pathlib import Path

import pytest

from fleetbeat_shared.errors import SettingsError
from fleetbeat_shared.settings import Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    """Without variables everything has its default, and other programs' variables are ignored."""
    assert Settings.from_environment({"PATH": "/bin", "HOME": "/root"}) == Settings()


def test_variables_become_typed_values() -> None:
    """Texts from the environment become typed values."""
    found = Settings.from_environment({"FLEETBEAT_BATCH_SIZE": "10", "FLEETBEAT_SWEEP_SECONDS": "0.5"})
    assert (found.batch_size, found.sweep_seconds) == (10, 0.5)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FLEETBEAT_SWEEP_SECONDS", "soon"),
        ("FLEETBEAT_SWEEP_SECONDS", "nan"),
        ("FLEETBEAT_BATCH_SIZE", "0"),
        ("FLEETBEAT_MISSED_INTERVALS", "1.5"),
        ("FLEETBEAT_LOG_LEVEL", "LOUD"),
        ("FLEETBEAT_SWEEP_SECOND", "5"),
        ("FLEETBEAT_DATABASE_URL_FILE", "/does/not/exist"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str) -> None:
    """A malformed, unknown or unreadable variable raises an error with its name."""
    with pytest.raises(SettingsError, match=variable):
        Settings.from_environment({variable: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("SWEEP_SECONDS", "x", "it is not a number; 0.1 to 3600 is allowed."),
        ("SWEEP_SECONDS", "0", "0 is too small; 0.1 to 3600 is allowed."),
        ("REDIS_TIMEOUT_SECONDS", "61", "61 is too large; more than 0 and at most 60 is allowed."),
        ("MISSED_INTERVALS", "1.5", "it is not a whole number; 1 to 100 is allowed."),
        ("LOG_LEVEL", "LOUD", "it is not allowed; only 'DEBUG', 'INFO', 'WARNING' or 'ERROR' is."),
    ],
)
def test_an_error_shows_what_is_allowed(name: str, value: str, expected: str) -> None:
    """After the variable's name comes a sentence with its limits."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({f"FLEETBEAT_{name}": value})
    assert str(caught.value) == f"FLEETBEAT_{name} has a value that can't be used: {expected}"


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    """A variable with _FILE gives the content of the file without the trailing line break."""
    (tmp_path / "url").write_text("redis://:secret@host/1\n")
    found = Settings.from_environment({"FLEETBEAT_REDIS_URL_FILE": str(tmp_path / "url")})
    assert found.redis_url == "redis://:secret@host/1"


def test_a_value_and_its_file_exclude_each_other(tmp_path: Path) -> None:
    """A value given twice is ambiguous, so it is refused."""
    (tmp_path / "url").write_text("redis://host/1")
    both = {"FLEETBEAT_REDIS_URL": "redis://host/2", "FLEETBEAT_REDIS_URL_FILE": str(tmp_path / "url")}
    with pytest.raises(SettingsError, match="both set"):
        Settings.from_environment(both)


def test_passwords_are_not_shown() -> None:
    """Neither the settings' repr nor an error about them holds the URLs."""
    found = Settings.from_environment(
        {"FLEETBEAT_REDIS_URL": "redis://:hunter2@host", "FLEETBEAT_DATABASE_URL": "x://u:hunter2@h"}
    )
    assert "hunter2" not in repr(found)
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"FLEETBEAT_BATCH_SIZE": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_exported_settings_round_trip(tmp_path: Path) -> None:
    """A process that is started with the exported variables has the same settings, whatever was set before."""
    settings = Settings(data_dir=tmp_path, redis_url="redis://host:1/2", batch_size=7)
    environment = {"FLEETBEAT_DATABASE_URL": "sqlite:///old.db", "FLEETBEAT_REDIS_URL_FILE": "/old", "PATH": "/bin"}
    settings.export(environment)
    assert Settings.from_environment(environment) == settings
    assert environment["PATH"] == "/bin"


def test_the_database_defaults_to_a_file_in_the_data_directory(tmp_path: Path) -> None:
    """The data directory is used only without a database URL."""
    assert Settings(data_dir=tmp_path).sql_url == f"sqlite:///{tmp_path}/fleetbeat.db"
    assert Settings(data_dir=tmp_path, database_url="sqlite:///else.db").sql_url == "sqlite:///else.db"

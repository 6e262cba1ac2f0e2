"""Settings: one typed object, built once at start-up and passed down.

A setting `name` is read from the variable `FLEETBEAT_NAME`, or from the file that `FLEETBEAT_NAME_FILE` names.
pydantic alone does this: importing pydantic-settings would cost each agent another 0.17 s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleetbeat_shared.errors import SettingsError
from fleetbeat_shared.validation_errors import describe_error

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

PREFIX = "FLEETBEAT_"
DEFAULT_REDIS_PORT = 6390
"""The port of the embedded Valkey. Not Redis's own 6379, so that another server isn't used by mistake."""


class Settings(BaseModel):
    """All settings. Durations are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data_dir: Path = Field(
        default=Path("~/.fleetbeat"), description="Directory in which `fleetbeat up` keeps its data."
    )
    redis_url: str = Field(
        default=f"redis://127.0.0.1:{DEFAULT_REDIS_PORT}/0",
        description="URL of the Redis or Valkey that agents and workers share "
        "(`redis://`, `rediss://`, `unix://` or `redis+sentinel://`).",
        repr=False,
    )
    redis_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = Field(
        default=1.0, description="How long an agent's call waits for a connection to Redis, or for its answer."
    )
    spool_dir: Path = Field(
        default=Path("~/.local/state/fleetbeat/spool"),
        description="Directory in which `fleetbeat-agent` keeps heartbeats while Redis is away.",
    )
    database_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the SQL database (`sqlite:///…` or `postgresql://…`). "
        "Unset: `fleetbeat.db` in the data directory.",
        repr=False,
    )
    sweep_seconds: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=5.0,
        description="Interval between sweeps, which look for silent agents. It limits how late a verdict can be.",
    )
    missed_intervals: Annotated[int, Field(ge=1, le=100)] = Field(
        default=2, description="How many intervals an agent may miss before it is degraded."
    )
    stuck_after: Annotated[int | None, Field(ge=1, le=100_000)] = Field(
        default=None,
        description="After how many intervals without a change in its work an agent is stuck. Unset: never, unless the "
        "agent's registration says so.",
    )
    flapping_changes: Annotated[int, Field(ge=2, le=20)] = Field(
        default=6, description="An agent that changes its state more often than this within 20 intervals is flapping."
    )
    batch_size: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=4000, description="How many messages one database transaction stores at most."
    )
    lease_seconds: Annotated[float, Field(ge=0.5, le=3600)] = Field(
        default=30.0,
        description="How long a worker may hold messages without renewing its lease.",
    )
    linger_seconds: Annotated[float, Field(ge=0, le=60)] = Field(
        default=1.0, description="How long an ingest job waits for another message before it ends."
    )
    stale_task_seconds: Annotated[float, Field(ge=1, le=10 * 366 * 86_400)] = Field(
        default=86_400.0, description="How long an open task may stay untouched before it counts as stale."
    )
    notify_urls: str = Field(
        default="",
        description="Targets of notifications: Apprise URLs separated by white space, each with an optional pattern "
        "before it (`agent:crawler-*=mailto://…`, `project:billing=json://…`).",
        repr=False,
    )
    notify_reminder_hours: Annotated[float | None, Field(gt=0, le=8760)] = Field(
        default=None, description="Hours between reminders of an agent that stays degraded. Unset: no reminders."
    )
    notification_days: Annotated[int, Field(ge=1, le=36_500)] = Field(
        default=30, description="How many days sent notifications are kept."
    )
    metrics_port: Annotated[int | None, Field(ge=0, le=65_535)] = Field(
        default=None,
        description="Port on which workers serve Prometheus metrics; 0 takes a free one. Unset: no metrics are served.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address on which metrics are served; `0.0.0.0` stands for all addresses of the machine.",
    )
    retention_days: Annotated[int, Field(ge=1, le=36_500)] = Field(
        default=30, description="How many days heartbeats, events, and outages that no deadline depends on are kept."
    )
    rejected_days: Annotated[int, Field(ge=1, le=36_500)] = Field(
        default=30, description="How many days rejected messages are kept."
    )
    ended_session_days: Annotated[int, Field(ge=1, le=36_500)] = Field(
        default=90,
        description="How many days an ended session is kept, at least as long as its heartbeats.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="DEBUG, INFO, WARNING or ERROR."
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Build the settings from environment variables.

        Raises SettingsError, with the variable's name, for an unknown or malformed one.
        """
        values: dict[str, str] = {}
        for variable, value in environment.items():
            if not variable.startswith(PREFIX):
                continue
            name = variable.removeprefix(PREFIX).lower()
            text = value
            if name not in cls.model_fields and name.endswith("_file"):
                name = name.removesuffix("_file")
                text = _read_file(variable, value)
            if name not in cls.model_fields:
                message = (
                    f"{variable} is not a setting of Fleetbeat. Unset it. All settings are listed in docs/settings.md."
                )
                raise SettingsError(message)
            if name in values:
                message = f"{PREFIX}{name.upper()} and {PREFIX}{name.upper()}_FILE are both set. Unset one."
                raise SettingsError(message)
            values[name] = text
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            # Text other than a number stays out of the message: it may be a URL with a password, set by mistake.
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            what = describe_error(first, cls.model_fields.get(name), is_secret=True)
            message = f"{PREFIX}{name.upper()} has a value that can't be used: {what}."
            raise SettingsError(message) from None

    def export(self, environment: MutableMapping[str, str]) -> None:
        """Set the variables of these settings in an environment, for processes that are started with it."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            variable = PREFIX + name.upper()
            environment.pop(variable + "_FILE", None)
            if value is None:
                environment.pop(variable, None)
            else:
                environment[variable] = str(value)

    @property
    def sql_url(self) -> str:
        """The database's SQLAlchemy URL, with the default filled in."""
        return self.database_url or f"sqlite:///{self.data_path / 'fleetbeat.db'}"

    @property
    def data_path(self) -> Path:
        """The data directory with `~` expanded."""
        return self.data_dir.expanduser()


def _read_file(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{variable} names a file that can't be read: {path} ({type(error).__name__}). Correct the path."
        raise SettingsError(message) from error

"""Fleet file `agents.toml`: agents with their registrations and the heartbeats of their cron lines."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from fleetbeat_shared.errors import SettingsError
from fleetbeat_shared.identifiers import new_message_id, stable_session_id
from fleetbeat_shared.messages import Heartbeat, Register, describe
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.schedules import find_time_zone
from fleetbeat_shared.time_text import parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_Kind = TypeVar("_Kind", Register, Heartbeat)

DEFAULT_LOG_FILE = "~/.local/state/fleetbeat/cron.log"

# The keys of an agent, and the fields of messages that they set.
_REGISTRATION = {
    "name": "agent_name",
    "every": "interval_seconds",
    "cron": "schedule",
    "time_zone": "time_zone",
    "grace": "grace_seconds",
    "missed": "missed_intervals",
    "stuck_after": "stuck_after",
    "project": "project",
    "work": "work",
    "metadata": "metadata",
}
_HEARTBEAT = {
    "status": "status",
    "summary": "summary",
    "progress": "progress",
    "work_item": "work_item_id",
    "open_tasks": "open_tasks",
    "stale_tasks": "stale_tasks",
}
_AGENT_KEYS = [*_REGISTRATION, *_HEARTBEAT, "log_file"]
_TOP = "top level"
_SHARED_KEYS = ["time_zone", "grace", "missed", "stuck_after", "project", "status", "log_file"]


@dataclass(frozen=True, slots=True)
class FleetAgent:
    """An agent of the file, with the stable session of its name."""

    registration: Register
    heartbeat: Heartbeat
    """The heartbeat that its cron line sends."""
    time_zone: str
    """The time zone of its schedule, or of the hours of its interval."""
    log_file: Path

    @property
    def name(self) -> str:
        """The normalised name."""
        return self.registration.agent_name


@dataclass(frozen=True, slots=True)
class FleetFile:
    """The validated content of a file; all paths are absolute."""

    path: Path
    agents: tuple[FleetAgent, ...]
    redis_url_file: Path | None
    """The file that holds the URL of Redis."""


def read_fleet_file(path: Path) -> FleetFile:
    """Read and validate a fleet file.

    Raises SettingsError, with the file, the agent and the key, when it can't be used.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{path} can't be read: {error.strerror}. Give the path of a fleet file."
        raise SettingsError(message) from error
    except ValueError as error:  # not UTF-8, or not TOML
        message = f"{path} is not valid TOML: {error}. Correct it."
        raise SettingsError(message) from error
    return _Reader(path).read(tables)


def absolute(path: Path) -> Path:
    """Make a path absolute, without `..`; links are not followed."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links


class _Reader:
    """Reads one file; names the file in errors."""

    def __init__(self, path: Path) -> None:
        self._given = path
        self._path = absolute(path)

    def read(self, tables: Mapping[str, Any]) -> FleetFile:
        self._check_keys(tables, ["defaults", "agents"], _TOP)
        defaults = tables.get("defaults", {})
        if not isinstance(defaults, dict):
            what = "defaults: it is not a table; write [defaults] above the shared keys"
            raise self._error(_TOP, what)
        self._check_keys(defaults, [*_SHARED_KEYS, "redis_url_file"], "[defaults]")
        rows = tables.get("agents")
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            what = "agents: there are none; write [[agents]] above the keys of each agent"
            raise self._error(_TOP, what)
        shared = {key: defaults[key] for key in _SHARED_KEYS if key in defaults}
        agents: dict[str, FleetAgent] = {}
        for number, row in enumerate(rows, 1):
            agent = self._agent(row, shared, _describe_agent(row, number))
            if agent.name in agents:
                raise self._error(
                    _describe_agent(row, number), "name: another agent has the same name; names must be unique"
                )
            agents[agent.name] = agent
        url_file = defaults.get("redis_url_file")
        return FleetFile(
            self._path,
            tuple(agents.values()),
            None if url_file is None else self._file("redis_url_file", url_file, "[defaults]"),
        )

    def _agent(self, row: Mapping[str, Any], shared: Mapping[str, Any], who: str) -> FleetAgent:
        self._check_keys(row, _AGENT_KEYS, who)
        if "name" not in row:
            raise self._error(who, "name: it is missing")
        if ("every" in row) == ("cron" in row):
            raise self._error(who, 'every, cron: give either every = "6h" or cron = "15 8 * * *"')
        values = {"time_zone": "UTC", "log_file": DEFAULT_LOG_FILE, **shared, **row}
        time_zone = self._time_zone(values["time_zone"], who)
        log_file = self._file("log_file", values["log_file"], who)
        for key in {"every", "grace"} & values.keys():
            values[key] = self._seconds(key, values[key], who)
        if "every" in values:
            del values["time_zone"]  # an interval is the same in each zone
        elif row.get("stuck_after"):
            raise self._error(who, "stuck_after: it needs every; an agent on a schedule is never stuck")
        elif "stuck_after" not in row:
            values.pop("stuck_after", None)  # the default doesn't apply to an agent on a schedule
        return FleetAgent(
            registration=self._message(Register, values, _REGISTRATION, who),
            heartbeat=self._message(Heartbeat, values, _HEARTBEAT, who),
            time_zone=time_zone,
            log_file=log_file,
        )

    def _message(self, kind: type[_Kind], values: Mapping[str, Any], fields: Mapping[str, str], who: str) -> _Kind:
        """Build a message from an agent's keys; the message's own rules validate them."""
        known = {fields[key]: value for key, value in values.items() if key in fields}
        try:
            return kind.model_validate(
                {
                    "id": new_message_id(),
                    "session_id": stable_session_id(str(values["name"])),
                    "sent_at": datetime.now(UTC),
                    **known,
                }
            )
        except ValidationError as error:
            raise self._error(who, describe(error, {field: key for key, field in fields.items()})) from error

    def _time_zone(self, value: object, who: str) -> str:
        try:
            return find_time_zone(str(value)).key
        except ValueError as error:
            raise self._error(who, f"time_zone: {error}") from error

    def _seconds(self, key: str, value: object, who: str) -> float:
        if not isinstance(value, str):
            raise self._error(who, f'{key}: it needs quotes. Examples: "30s", "5m", "6h", "1d"')
        try:
            return parse_duration(value)
        except ValueError as error:
            raise self._error(who, f"{key}: {error}") from error

    def _file(self, key: str, value: object, who: str) -> Path:
        """Resolve a path: `~` is the user's home, and a relative path is relative to the file's folder."""
        if not isinstance(value, str) or not value.isprintable() or not value:
            raise self._error(who, f"{key}: it is not a path. Example: {DEFAULT_LOG_FILE!r}")
        return absolute(self._path.parent / Path(value).expanduser())

    def _check_keys(self, table: Mapping[str, Any], known: Sequence[str], who: str) -> None:
        for key in table:
            if key not in known:
                raise self._error(who, f"{clean(key)}: there is no such key; valid keys are {', '.join(known)}")

    def _error(self, who: str, what: str) -> SettingsError:
        return SettingsError(f"{self._given}, {who}: {what}. Correct it.")


def _describe_agent(row: Mapping[str, Any], number: int) -> str:
    name = row.get("name")
    return f'agent "{clean(name)}"' if isinstance(name, str) else f"agent {number}"

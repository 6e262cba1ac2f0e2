"""A fleet in a file: `agents.toml` lists agents, what they promise, and what their cron lines say of them."""

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

# The keys of an agent, and the fields of messages that they become.
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
_TOP = "at the top"
_SHARED_KEYS = ["time_zone", "grace", "missed", "stuck_after", "project", "status", "log_file"]


@dataclass(frozen=True, slots=True)
class FleetAgent:
    """An agent of the file, under the stable session of its name."""

    registration: Register
    """What it promises."""
    heartbeat: Heartbeat
    """What each beat of its cron line says."""
    time_zone: str
    """The zone in which its schedule, or the hours of its interval, are counted."""
    log_file: Path

    @property
    def name(self) -> str:
        """The name as it is stored."""
        return self.registration.agent_name


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What a file says, checked; all paths are absolute."""

    path: Path
    agents: tuple[FleetAgent, ...]
    redis_url_file: Path | None
    """The file that holds the URL of Redis."""


def read_fleet_file(path: Path) -> FleetFile:
    """Return the fleet that a file describes.

    Raises SettingsError, with the file, the agent and the key, when it can't be used.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{path} can't be read: {error.strerror}. Name a file that lists agents."
        raise SettingsError(message) from error
    except ValueError as error:  # no UTF-8, or no TOML
        message = f"{path} is no TOML: {error}. Correct it."
        raise SettingsError(message) from error
    return _Reader(path).read(tables)


def absolute(path: Path) -> Path:
    """Return a path from the root on, without `..`; a link stays a link."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links


class _Reader:
    """Reads one file; knows what to name in an error."""

    def __init__(self, path: Path) -> None:
        self._given = path
        self._path = absolute(path)

    def read(self, tables: Mapping[str, Any]) -> FleetFile:
        self._check_keys(tables, ["defaults", "agents"], _TOP)
        defaults = tables.get("defaults", {})
        if not isinstance(defaults, dict):
            what = "defaults: it is no table; write [defaults] above what the agents share"
            raise self._error(_TOP, what)
        self._check_keys(defaults, [*_SHARED_KEYS, "redis_url_file"], "[defaults]")
        rows = tables.get("agents")
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            what = "agents: there is none; write [[agents]] above the keys of each agent"
            raise self._error(_TOP, what)
        shared = {key: defaults[key] for key in _SHARED_KEYS if key in defaults}
        agents: dict[str, FleetAgent] = {}
        for number, row in enumerate(rows, 1):
            agent = self._agent(row, shared, _who(row, number))
            if agent.name in agents:
                raise self._error(_who(row, number), "name: another agent has it; give each a name of its own")
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
            raise self._error(who, "name: it is missing; give each agent a name of its own")
        if ("every" in row) == ("cron" in row):
            raise self._error(who, 'every, cron: give either every = "6h" or cron = "15 8 * * *"')
        values = {"time_zone": "UTC", "log_file": DEFAULT_LOG_FILE, **shared, **row}
        time_zone = self._time_zone(values["time_zone"], who)
        log_file = self._file("log_file", values["log_file"], who)
        for key in {"every", "grace"} & values.keys():
            values[key] = self._seconds(key, values[key], who)
        if "every" in values:
            del values["time_zone"]  # an interval is the same in each
        elif row.get("stuck_after"):
            raise self._error(who, "stuck_after: it goes with every; an agent on a schedule is never stuck")
        elif "stuck_after" not in row:
            values.pop("stuck_after", None)  # what the others share has no meaning for it
        return FleetAgent(
            registration=self._message(Register, values, _REGISTRATION, who),
            heartbeat=self._message(Heartbeat, values, _HEARTBEAT, who),
            time_zone=time_zone,
            log_file=log_file,
        )

    def _message(self, kind: type[_Kind], values: Mapping[str, Any], fields: Mapping[str, str], who: str) -> _Kind:
        """Make the message that an agent's keys become: what it may hold is said there, once for all."""
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
            raise self._error(who, f'{key}: it needs quotes; write for example "30s", "5m", "6h" or "1d"')
        try:
            return parse_duration(value)
        except ValueError as error:
            raise self._error(who, f"{key}: {error}") from error

    def _file(self, key: str, value: object, who: str) -> Path:
        """Return a path as it is meant: `~` is the user's home, and what is relative lies beside the file."""
        if not isinstance(value, str) or not value.isprintable() or not value:
            raise self._error(who, f"{key}: it is no path; write for example {DEFAULT_LOG_FILE!r}")
        return absolute(self._path.parent / Path(value).expanduser())

    def _check_keys(self, table: Mapping[str, Any], known: Sequence[str], who: str) -> None:
        for key in table:
            if key not in known:
                raise self._error(who, f"{clean(key)}: there is no such key; known are {', '.join(known)}")

    def _error(self, who: str, what: str) -> SettingsError:
        return SettingsError(f"{self._given}, {who}: {what}. Correct it.")


def _who(row: Mapping[str, Any], number: int) -> str:
    name = row.get("name")
    return f'agent "{clean(name)}"' if isinstance(name, str) else f"agent {number}"

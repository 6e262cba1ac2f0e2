"""The user's crontab: reads and writes the block of lines of a fleet, and leaves all other lines alone."""

from __future__ import annotations

import difflib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from fleetbeat_producer.cron.fleet_file import absolute
from fleetbeat_producer.cron.line_times import line_fields, schedule_of_interval
from fleetbeat_shared.errors import FleetbeatError, SettingsError
from fleetbeat_shared.sanitize import clean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, tzinfo

    from fleetbeat_producer.cron.fleet_file import FleetAgent, FleetFile

SCRIPT = "fleetbeat-agent"
MAX_COMMAND_BYTES = 998
"""The longest command that Debian's crontab accepts (measured); others accept more."""
CRONTAB_SECONDS = 30.0


class CrontabError(FleetbeatError):
    """The user's crontab can't be read or written, or its marked block is damaged."""

    code = "crontab"


def build_block(fleet: FleetFile, environment: Mapping[str, str], machine: Sequence[tzinfo], now: datetime) -> str:
    """Build the block of crontab lines for a fleet, with its markers.

    `machine` holds the time zones that cron may use; `now` is aware.

    Raises SettingsError when a part of it can't be written into a crontab.
    """
    begin, end = markers(fleet.path)
    start = [*_redis_words(fleet.redis_url_file, environment), str(find_script())]
    lines = [_line(fleet.path, agent, start, machine, now) for agent in fleet.agents]
    return "".join(f"{line}\n" for line in [begin, *lines, end])


def markers(path: Path) -> tuple[str, str]:
    """Build the lines around the block of a file.

    Raises SettingsError when its path can't be written into a line.
    """
    if not str(path).isprintable():
        message = f"{str(path)!r} can't be written into a crontab. Give the file a path of printable characters."
        raise SettingsError(message)
    return f"# fleetbeat begin {path}", f"# fleetbeat end {path}"


def find_script() -> Path:
    """Find the absolute path of this program, which is rarely on cron's PATH.

    Raises SettingsError when it isn't installed.
    """
    called = shutil.which(sys.argv[0]) if Path(sys.argv[0]).name == SCRIPT else None
    script = absolute(Path(called) if called else Path(sysconfig.get_path("scripts")) / SCRIPT)
    if not script.exists():
        message = f"{script} doesn't exist, so no crontab can call it. Install fleetbeat."
        raise SettingsError(message)
    return script


def _redis_words(url_file: Path | None, environment: Mapping[str, str]) -> list[str]:
    """Build the start of a command that sets the URL of Redis; refuse a URL with a password."""
    variable, value = "FLEETBEAT_REDIS_URL_FILE", url_file and str(url_file)
    if value is None and (named := environment.get(variable)):
        value = str(absolute(Path(named)))
    if value is None and (url := environment.get("FLEETBEAT_REDIS_URL")):
        if "@" in url or "password" in url:  # anywhere, as a malformed URL may hold a password too
            message = (
                "FLEETBEAT_REDIS_URL holds a password, which should not be in a crontab. "
                "Put the URL into a file that only you can read, and name it as redis_url_file under [defaults]."
            )
            raise SettingsError(message)
        variable, value = "FLEETBEAT_REDIS_URL", url
    return [] if value is None else ["/usr/bin/env", f"{variable}={value}"]


def _line(path: Path, agent: FleetAgent, start: Sequence[str], machine: Sequence[tzinfo], now: datetime) -> str:
    registration, heartbeat = agent.registration, agent.heartbeat
    try:
        schedule = registration.schedule or schedule_of_interval(registration.interval_seconds or 0)
    except ValueError as error:
        message = f'{path}, agent "{agent.name}", every: {error}.'
        raise SettingsError(message) from error
    fields, needs_check = line_fields(schedule, agent.time_zone, machine, now)
    options = {
        "--agent": agent.name,
        "--only-at": schedule if needs_check else None,
        "--time-zone": agent.time_zone if needs_check else None,
        "--status": heartbeat.status,
        "--summary": heartbeat.summary,
        "--progress": heartbeat.progress,
        "--work-item": heartbeat.work_item_id,
        "--open-tasks": heartbeat.open_tasks,
        "--stale-tasks": heartbeat.stale_tasks,
        "--log-file": agent.log_file,
    }
    words = [*start, "heartbeat"]
    for option, value in options.items():
        if value is not None:
            words += [option, str(value)]
    command = " ".join(map(quote, words)) + " >/dev/null"  # cron mails the rest, the warnings
    if clean(command) != command:  # a line break in a path or a URL, for example
        message = f'{path}, agent "{agent.name}": its crontab line would hold control characters. Remove them.'
        raise SettingsError(message)
    if len(command.encode()) > MAX_COMMAND_BYTES:
        message = (
            f'{path}, agent "{agent.name}": its crontab line is longer than the {MAX_COMMAND_BYTES} bytes that every '
            "cron accepts. Shorten its summary."
        )
        raise SettingsError(message)
    return f"{fields} {command}"


def quote(word: str) -> str:
    r"""Quote a word of a command for a crontab, and for the shell that cron starts.

    For most crons a `%` ends the command, `\%` is a `%`, and for some two backslashes are one; others change nothing.
    So each `%` is put outside of the quotes, where `\%` is right with and without cron, and each other backslash is
    followed by a quote.
    """
    if "%" not in word and "\\" not in word:
        return shlex.quote(word)
    return "'" + word.replace("'", "'\"'\"'").replace("\\", "\\''").replace("%", "'\\%'") + "'"


def replace_block(crontab: str, path: Path, block: str) -> str:
    """Replace a file's block in a crontab, or append it; an empty block removes it.

    All other lines stay as they are.

    Raises CrontabError when the markers aren't a pair.
    """
    lines = crontab.split("\n")
    begin, end = ([number for number, line in enumerate(lines) if line == marker] for marker in markers(path))
    if not begin and not end:
        gap = "\n" if block and crontab and not crontab.endswith("\n") else ""
        return crontab + gap + block
    if len(begin) != 1 or len(end) != 1 or begin > end:
        message = (
            f"The crontab's block of {path} is damaged: its begin and end lines aren't a pair. Nothing was changed. "
            "Repair them with: crontab -e"
        )
        raise CrontabError(message)
    before, after = lines[: begin[0]], lines[end[0] + 1 :]
    return "\n".join([*before, block.removesuffix("\n"), *after] if block else [*before, *after])


def diff_lines(before: str, after: str) -> list[str]:
    """Compare two crontabs; return the lines of a unified diff, safe to print."""
    old, new = (
        text.encode(errors="surrogateescape").decode(errors="replace").removesuffix("\n").split("\n")
        for text in (before, after)
    )
    return list(difflib.unified_diff(old, new, "crontab", "crontab, new", lineterm=""))


def read_crontab() -> str:
    """Read the user's crontab; bytes that are not UTF-8 are kept as surrogates.

    Raises CrontabError when it can't be read.
    """
    done = _run_crontab("-l")
    if done.returncode == 0:
        return _decode(done.stdout)
    if "no crontab for" in _decode(done.stderr).lower():
        return ""
    raise _refusal(done, what="read")


def write_crontab(text: str) -> None:
    """Replace the user's crontab.

    Raises CrontabError when it is refused; then the old crontab stays.
    """
    done = _run_crontab("-", stdin=text.encode(errors="surrogateescape"))
    if done.returncode != 0:
        raise _refusal(done, what="written")


def _run_crontab(argument: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("crontab")
    if program is None:
        message = "There is no crontab command on PATH. Install cron, or use `fleetbeat-agent cron print`."
        raise CrontabError(message)
    try:
        return subprocess.run(  # noqa: S603 - the user's own crontab command
            [program, argument],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},  # so that "no crontab for" is in English
            timeout=CRONTAB_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{program} can't be used ({type(error).__name__}). Test it with: crontab -l"
        raise CrontabError(message) from error


def _decode(output: bytes) -> str:
    return output.decode(errors="surrogateescape")


def _refusal(done: subprocess.CompletedProcess[bytes], *, what: str) -> CrontabError:
    reason = clean(_decode(done.stderr)) or f"exit status {done.returncode}"
    return CrontabError(f"The crontab can't be {what}: {reason}. Nothing was changed. Test it with: crontab -l")

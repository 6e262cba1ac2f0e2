"""The user's crontab: the lines of a fleet, in a marked block that is the only thing we touch."""

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
from fleetbeat_producer.cron.line_times import fields_of_line, schedule_of_interval
from fleetbeat_shared.errors import FleetbeatError, SettingsError
from fleetbeat_shared.sanitize import clean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, tzinfo

    from fleetbeat_producer.cron.fleet_file import FleetAgent, FleetFile

SCRIPT = "fleetbeat-agent"
MAX_COMMAND_BYTES = 998
"""The longest command that Debian's crontab takes (measured); others take more."""
CRONTAB_SECONDS = 30.0


class CrontabError(FleetbeatError):
    """The user's crontab can't be read or written, or its marked block is damaged."""

    code = "crontab"


def block_of(fleet: FleetFile, environment: Mapping[str, str], machine: Sequence[tzinfo], now: datetime) -> str:
    """Return the block of crontab lines for a fleet, with its markers.

    `machine` holds the zones that cron may go by; `now` is aware.

    Raises SettingsError when something of it can't stand in a crontab.
    """
    begin, end = markers(fleet.path)
    start = [*_redis_words(fleet.redis_url_file, environment), str(find_script())]
    lines = [_line(fleet.path, agent, start, machine, now) for agent in fleet.agents]
    return "".join(f"{line}\n" for line in [begin, *lines, end])


def markers(path: Path) -> tuple[str, str]:
    """Return the lines around the block of a file.

    Raises SettingsError when its path can't stand in a line.
    """
    if not str(path).isprintable():
        message = f"{str(path)!r} can't be named in a crontab. Give the file a path of printable characters."
        raise SettingsError(message)
    return f"# fleetbeat begin {path}", f"# fleetbeat end {path}"


def find_script() -> Path:
    """Return the absolute path of this program, as cron's PATH is poor.

    Raises SettingsError when it isn't installed.
    """
    called = shutil.which(sys.argv[0]) if Path(sys.argv[0]).name == SCRIPT else None
    script = absolute(Path(called) if called else Path(sysconfig.get_path("scripts")) / SCRIPT)
    if not script.exists():
        message = f"{script} isn't there, so no crontab can call it. Install fleetbeat."
        raise SettingsError(message)
    return script


def _redis_words(url_file: Path | None, environment: Mapping[str, str]) -> list[str]:
    """Return what a command begins with so that it finds Redis; never a secret, as a crontab is no place for one."""
    variable, value = "FLEETBEAT_REDIS_URL_FILE", url_file and str(url_file)
    if value is None and (named := environment.get(variable)):
        value = str(absolute(Path(named)))
    if value is None and (url := environment.get("FLEETBEAT_REDIS_URL")):
        if "@" in url or "password" in url:  # wherever they stand, as a malformed URL may hold one too
            message = (
                "FLEETBEAT_REDIS_URL holds a password, and a crontab is no place for one. "
                "Put the URL into a file that only you can read, and name it as redis_url_file under [defaults]."
            )
            raise SettingsError(message)
        variable, value = "FLEETBEAT_REDIS_URL", url
    return [] if value is None else ["/usr/bin/env", f"{variable}={value}"]


def _line(path: Path, agent: FleetAgent, start: Sequence[str], machine: Sequence[tzinfo], now: datetime) -> str:
    promised, said = agent.registration, agent.heartbeat
    try:
        schedule = promised.schedule or schedule_of_interval(promised.interval_seconds or 0)
    except ValueError as error:
        message = f'{path}, agent "{agent.name}", every: {error}.'
        raise SettingsError(message) from error
    fields, must_look = fields_of_line(schedule, agent.time_zone, machine, now)
    options = {
        "--agent": agent.name,
        "--only-at": schedule if must_look else None,
        "--time-zone": agent.time_zone if must_look else None,
        "--status": said.status,
        "--summary": said.summary,
        "--progress": said.progress,
        "--work-item": said.work_item_id,
        "--open-tasks": said.open_tasks,
        "--stale-tasks": said.stale_tasks,
        "--log-file": agent.log_file,
    }
    words = [*start, "heartbeat"]
    for option, value in options.items():
        if value is not None:
            words += [option, str(value)]
    command = " ".join(map(quote, words)) + " >/dev/null"  # cron sends what is left, the warnings, as mail
    if clean(command) != command:  # a line break, say, in a path or a URL
        message = f'{path}, agent "{agent.name}": its crontab line would hold control characters. Take them out.'
        raise SettingsError(message)
    if len(command.encode()) > MAX_COMMAND_BYTES:
        message = (
            f'{path}, agent "{agent.name}": its crontab line is longer than the {MAX_COMMAND_BYTES} bytes that every '
            "cron takes. Shorten its summary."
        )
        raise SettingsError(message)
    return f"{fields} {command}"


def quote(word: str) -> str:
    r"""Return a word of a command as a crontab holds it, for the shell that cron gives it to.

    For most crons a `%` ends the command, `\%` is a `%`, and for some two backslashes are one; others change nothing.
    So each `%` stands outside of the quotes, where `\%` is right with and without cron, and each other backslash has
    a quote after it.
    """
    if "%" not in word and "\\" not in word:
        return shlex.quote(word)
    return "'" + word.replace("'", "'\"'\"'").replace("\\", "\\''").replace("%", "'\\%'") + "'"


def with_block(crontab: str, path: Path, block: str) -> str:
    """Return a crontab with a file's block put in its place, or at the end; an empty block is taken out.

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
            "Put them right with: crontab -e"
        )
        raise CrontabError(message)
    before, after = lines[: begin[0]], lines[end[0] + 1 :]
    return "\n".join([*before, block.removesuffix("\n"), *after] if block else [*before, *after])


def difference(before: str, after: str) -> list[str]:
    """Return what changes, as the lines of a unified diff that can be shown."""
    old, new = (
        text.encode(errors="surrogateescape").decode(errors="replace").removesuffix("\n").split("\n")
        for text in (before, after)
    )
    return list(difflib.unified_diff(old, new, "crontab", "crontab, new", lineterm=""))


def read_crontab() -> str:
    """Return the user's crontab; bytes that are no UTF-8 are kept as surrogates.

    Raises CrontabError when it can't be read.
    """
    done = _crontab("-l")
    if done.returncode == 0:
        return _text(done.stdout)
    if "no crontab for" in _text(done.stderr).lower():
        return ""
    raise _refused(done, what="read")


def write_crontab(text: str) -> None:
    """Replace the user's crontab.

    Raises CrontabError when it is refused; then the old one stays.
    """
    done = _crontab("-", given=text.encode(errors="surrogateescape"))
    if done.returncode != 0:
        raise _refused(done, what="written")


def _crontab(argument: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("crontab")
    if program is None:
        message = "There is no crontab command on PATH. Install cron, or use `fleetbeat-agent cron print`."
        raise CrontabError(message)
    try:
        return subprocess.run(  # noqa: S603 - the user's own crontab command
            [program, argument],
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},  # so that "no crontab for" is said in English
            timeout=CRONTAB_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{program} can't be used ({type(error).__name__}). Try it by hand: crontab -l"
        raise CrontabError(message) from error


def _text(output: bytes) -> str:
    return output.decode(errors="surrogateescape")


def _refused(done: subprocess.CompletedProcess[bytes], *, what: str) -> CrontabError:
    said = clean(_text(done.stderr)) or f"exit status {done.returncode}"
    return CrontabError(f"The crontab can't be {what}: {said}. Nothing was changed. Try it by hand: crontab -l")

"""Wording: the facts of a notification, and the phrases that are made of them.

Pure. A phrase whose facts are missing or malformed is empty, so that any notification has a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.time_text import amount, exact, format_duration
from fleetbeat_worker.notifications.notice import DEREGISTERED, MAINTENANCE, PAUSE, REGISTRATION, RESTARTED
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.spans import parse_time

TEXT_LIMIT = 300
"""How many characters of an agent's text a message contains."""
NAME_LIMIT = 128
DURATION_LIMIT = 1e10
"""Seconds. What is longer, more than three centuries, is not a duration."""
MOVED_SECONDS = 0.001
"""By less than this a deadline wasn't moved: times are stored to the millisecond."""

_MENTIONS = re.compile(r"@(?=everyone|here|channel|all\b|room\b)|<(?=[!@#])", re.IGNORECASE)
"""What alerts all members of a chat in Slack, Discord or Matrix."""
_CLOCK_STARTS = {PAUSE: "its pause ended", MAINTENANCE: "maintenance ended"}


@dataclass(frozen=True, slots=True)
class Facts:
    """A notification as the outbox has it."""

    kind: NoticeKind
    key: str
    agent_name: str | None
    project: str | None
    created_at: datetime
    detail: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The agent's name, safe to send."""
        return safe_text(self.agent_name, NAME_LIMIT) or "an agent"

    def time(self, name: str) -> datetime | None:
        """Read a time from the detail."""
        return parse_time(self.detail.get(name))

    def number(self, name: str) -> float | None:
        """Read a number from the detail."""
        value = self.detail.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def duration(self, name: str) -> str | None:
        """Format a number of seconds from the detail for people, rounded."""
        seconds = self.number(name)
        return None if seconds is None or abs(seconds) > DURATION_LIMIT else format_duration(round(seconds))

    def amount(self, name: str) -> str | None:
        """Format a number of seconds from the detail exactly, so that it can be added up."""
        seconds = self.number(name)
        return None if seconds is None or abs(seconds) > DURATION_LIMIT else amount(seconds)

    def count(self, name: str) -> str:
        """Format a whole number from the detail."""
        number = self.number(name)
        return "some" if number is None else f"{int(number):,}"


def safe_text(text: object, limit: int = TEXT_LIMIT) -> str:
    """Make an agent's text safe to send: one line, without mentions, shortened to a number of characters."""
    safe = _MENTIONS.sub(lambda found: f"{found[0]} ", clean(text)) if isinstance(text, str) else ""
    return safe if len(safe) <= limit else f"{safe[:limit].rstrip()}… (+{len(safe) - limit})"


def time_text(time: datetime | None) -> str:
    """Format a time for titles, to the second."""
    return "an unknown time" if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def silent_since(facts: Facts) -> str:
    """Phrase since when an agent is silent, and what happened at that time, for a title."""
    since, why = time_text(facts.time("since")), facts.detail.get("since_is")
    if why == REGISTRATION:
        return f"no heartbeat since its registration at {since}"
    started = _CLOCK_STARTS.get(why) if isinstance(why, str) else None
    return f"silent since {started} at {since}" if started else f"silent since {since}"


def silent_for(facts: Facts) -> str:
    """Phrase for how long an agent is silent, as the rest of a title."""
    last = facts.time("registered_at" if _is_unseen(facts) else "last_seen_at") or facts.time("since")
    if last is None:
        return ""
    return f", {'no heartbeat' if _is_unseen(facts) else 'silent'} for {_between(last, facts.created_at)}"


def last_heartbeat(facts: Facts) -> str:
    """Phrase when an agent's last heartbeat was, and from when silence counts if that is later."""
    seen_at, registered_at = facts.time("last_seen_at"), facts.time("registered_at")
    if registered_at is None:
        return ""
    if seen_at is None:
        long = _between(registered_at, facts.created_at)
        text = f"No heartbeat in the {long} since its registration at {exact(registered_at)} UTC."
    elif _is_unseen(facts):
        text = f"Last heartbeat: {exact(seen_at)} UTC, before its registration at {exact(registered_at)} UTC."
    else:
        text = f"Last heartbeat: {exact(seen_at)} UTC, none for {_between(seen_at, facts.created_at)} since."
    return text + _clock_start(facts, "counts")


def recovery(facts: Facts) -> str:
    """Phrase how a silence ended, for a title."""
    silent = facts.duration("silent_seconds")
    after = f" after {silent} of silence" if silent else ""
    if end := session_end(facts):
        return end + after
    if _is_unseen(facts):
        return "sent its first heartbeat" + (" since its registration" if facts.time("last_seen_at") else "")
    return "has recovered" + after


def session_end(facts: Facts) -> str:
    """Phrase how a degraded or stuck session ended; empty if it goes on."""
    if facts.detail.get("end") == RESTARTED:
        return "was restarted"
    if facts.detail.get("end") != DEREGISTERED:
        return ""
    status = facts.number("exit_status")
    return "has ended" + (f" with exit status {int(status)}" if status else "")


def recovery_times(facts: Facts) -> str:
    """Phrase when a silence ended, and when the last heartbeat before it was."""
    ended_at, seen_at, registered_at = (facts.time(name) for name in ("seen_at", "last_seen_at", "registered_at"))
    if ended_at is None or registered_at is None:
        return ""
    if _is_unseen(facts):
        before = f"registration at {exact(registered_at)} UTC"
    else:
        before = f"previous heartbeat at {exact(seen_at)} UTC" if seen_at else ""
    ends = {RESTARTED: "Registered again", DEREGISTERED: "Deregistered"}
    end = ends.get(str(facts.detail.get("end")), "Heartbeat")
    return f"{end} at {exact(ended_at)} UTC; {before}." + _clock_start(facts, "counted")


def expectation(facts: Facts) -> str:
    """Phrase when heartbeats are expected, and the deadline, with exact numbers that can be added up."""
    every, grace, missed = facts.amount("interval_seconds"), facts.amount("grace_seconds"), facts.number("missed_limit")
    schedule, zone = safe_text(facts.detail.get("schedule")), safe_text(facts.detail.get("time_zone"))
    if schedule:
        text = f"Heartbeats are expected by the schedule {schedule}" + (f" ({zone})" if zone else "")
    elif every:
        text = f"Heartbeats are expected every {every}"
    else:
        return ""
    if missed is not None:
        text += f"; the limit is {int(missed):,} missed" + (f" and {grace} of grace" if grace else "")
    deadline = facts.time("deadline_at")
    return f"{text}." + (f" The deadline was {exact(deadline)} UTC{_moved(facts)}." if deadline else "")


def stuck_limit(facts: Facts) -> str:
    """Phrase for how long an agent's work may stay unchanged, as a further sentence."""
    limit, interval = facts.number("stuck_after"), facts.amount("interval_seconds")
    grace = facts.amount("grace_seconds")
    if limit is None or interval is None or grace is None:
        return ""
    return f" The limit is {int(limit):,} x {interval} and {grace} of grace."


def _is_unseen(facts: Facts) -> bool:
    """Whether there was no heartbeat since the registration."""
    seen_at, registered_at = facts.time("last_seen_at"), facts.time("registered_at")
    return registered_at is not None and (seen_at is None or seen_at < registered_at)


def _clock_start(facts: Facts, verb: str) -> str:
    """Phrase what silence counts from if it is later than the last heartbeat, as a further sentence."""
    since, why = facts.time("since"), facts.detail.get("since_is")
    started = _CLOCK_STARTS.get(why) if isinstance(why, str) else None
    return f" Silence {verb} from {exact(since)} UTC, when {started}." if started and since else ""


def _moved(facts: Facts) -> str:
    """Phrase by how much the deadline was moved, if the promise alone doesn't give it."""
    since, deadline = facts.time("since"), facts.time("deadline_at")
    found = [facts.number(name) for name in ("interval_seconds", "missed_limit", "grace_seconds")]
    numbers = [number for number in found if number is not None and abs(number) <= DURATION_LIMIT]
    if not since or not deadline or len(numbers) < len(found):
        return ""
    interval, missed, grace = numbers
    moved = (deadline - since).total_seconds() - (missed * interval + grace)
    if not MOVED_SECONDS <= moved <= DURATION_LIMIT:
        return ""
    return f": {amount(moved)} later, as outages and maintenance are excluded"


def _between(start: datetime, end: datetime) -> str:
    return format_duration(round(max(0.0, (end - start).total_seconds())))

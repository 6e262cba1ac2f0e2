"""How a silence and its end are told: since when, what happened then, when the agent was last heard, what it promised.

Pure. Notices of older versions say only since when silence counted, and are told by that.
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

MOVED_SECONDS = 0.001
"""By less than this a deadline wasn't moved: moments are stored to the millisecond."""

_CLOCK_STARTED = {PAUSE: "its pause ended", MAINTENANCE: "maintenance ended"}


def silent_since(facts: Facts) -> str:
    """Return since when an agent is silent, and what happened then, for a title."""
    since, why = at_text(facts.moment("since")), facts.detail.get("since_is")
    if why == REGISTRATION:
        return f"never heard since its registration at {since}"
    started = _CLOCK_STARTED.get(why) if isinstance(why, str) else None
    return f"silent since {started} at {since}" if started else f"silent since {since}"


def silent_for(facts: Facts) -> str:
    """Return for how long an agent is silent, to go on with in a title; empty if the facts don't tell."""
    sign = facts.moment("registered_at" if _is_unheard(facts) else "last_seen_at") or facts.moment("since")
    if sign is None:
        return ""
    return f", {'never heard' if _is_unheard(facts) else 'silent'} for {_between(sign, facts.created_at)}"


def last_sign(facts: Facts) -> str:
    """Return when an agent was last heard, and what started its clock anew after that."""
    heard_at, registered_at, since = (facts.moment(name) for name in ("last_seen_at", "registered_at", "since"))
    if registered_at is None:
        return f"Nothing was heard of it for {_between(since, facts.created_at)}." if since else ""
    if heard_at is None:
        long = _between(registered_at, facts.created_at)
        text = f"It was never heard in the {long} since its registration at {exact(registered_at)} UTC."
    elif _is_unheard(facts):
        text = f"It was last heard at {exact(heard_at)} UTC, before it was registered at {exact(registered_at)} UTC."
    else:
        text = f"It was last heard at {exact(heard_at)} UTC; nothing for {_between(heard_at, facts.created_at)}."
    return text + _clock(facts, "started")


def back(facts: Facts) -> str:
    """Return that an agent is heard, for a title: for how long it was silent, or that it is the first time."""
    if end := ended(facts):
        return end + (f" after {silent} of silence" if (silent := facts.duration("silent_seconds")) else "")
    if _is_unheard(facts):
        return "is heard for the first time" + (" since its registration" if facts.moment("last_seen_at") else "")
    silent = facts.duration("silent_seconds")
    return "is back" + (f" after {silent} of silence" if silent else "")


def ended(facts: Facts) -> str:
    """Return how a session ended that people were told of; empty if it goes on."""
    if facts.detail.get("end") == RESTARTED:
        return "was started anew"
    if facts.detail.get("end") != DEREGISTERED:
        return ""
    status = facts.number("exit_status")
    return "has ended" + (f" with exit status {int(status)}" if status else "")


def signs(facts: Facts) -> str:
    """Return when an agent that is back was heard, and when before."""
    seen_at, heard_at, registered_at = (facts.moment(name) for name in ("seen_at", "last_seen_at", "registered_at"))
    if seen_at is None or registered_at is None:
        since = facts.moment("since")
        return f"It had been silent since {exact(since)} UTC." if since else ""
    if _is_unheard(facts):
        before = f"it was registered at {exact(registered_at)} UTC"
    else:
        before = f"before that at {exact(heard_at)} UTC" if heard_at else ""
    sign = {RESTARTED: "was registered anew", DEREGISTERED: "said goodbye"}.get(
        str(facts.detail.get("end")), "was heard"
    )
    return f"It {sign} at {exact(seen_at)} UTC; {before}." + _clock(facts, "had started")


def promised(facts: Facts) -> str:
    """Return what an agent promised, and when that was broken; each number as it is, so that they can be added up."""
    schedule = told(facts.detail.get("schedule"))
    every = facts.amount("interval_seconds")
    zone = told(facts.detail.get("time_zone"))
    if schedule:
        text = f"It should beat by the schedule {schedule}" + (f" ({zone})" if zone else "")
    elif every:
        text = f"It should beat every {every}"
    else:
        return ""
    missed, grace = facts.number("missed_limit"), facts.amount("grace_seconds")
    allowed = f"; it may miss {int(missed):,}" if missed is not None else ""
    allowed += f", and has {grace} of grace" if missed is not None and grace else ""
    deadline = facts.moment("deadline_at")
    return f"{text}{allowed}." + (f" Its time was up at {exact(deadline)} UTC{_moved(facts)}." if deadline else "")


def repeated(facts: Facts) -> str:
    """Return for how long an agent may say the same; empty if the facts don't tell."""
    limit, interval, grace = (
        facts.number("stuck_after"),
        facts.amount("interval_seconds"),
        facts.amount("grace_seconds"),
    )
    if limit is None or interval is None or grace is None:
        return ""
    return f" It may say the same for {int(limit):,} x {interval} + {grace} of grace."


def _is_unheard(facts: Facts) -> bool:
    """Return whether nothing was heard since the registration, as far as the facts tell."""
    heard_at, registered_at = facts.moment("last_seen_at"), facts.moment("registered_at")
    return registered_at is not None and (heard_at is None or heard_at < registered_at)


def _clock(facts: Facts, verb: str) -> str:
    """Return a sentence of what started the agent's clock anew after its last sign; empty if nothing did."""
    since, why = facts.moment("since"), facts.detail.get("since_is")
    started = _CLOCK_STARTED.get(why) if isinstance(why, str) else None
    return f" Its clock {verb} anew when {started}, at {exact(since)} UTC." if started and since else ""


def _moved(facts: Facts) -> str:
    """Return by how much the deadline was moved, if the promise alone doesn't give it."""
    since, deadline = facts.moment("since"), facts.moment("deadline_at")
    found = [facts.number(name) for name in ("interval_seconds", "missed_limit", "grace_seconds")]
    numbers = [number for number in found if number is not None and abs(number) <= LONGEST_SECONDS]
    if not since or not deadline or "since_is" not in facts.detail or len(numbers) < len(found):
        return ""
    interval, missed, grace = numbers
    moved = (deadline - since).total_seconds() - (missed * interval + grace)
    if not MOVED_SECONDS <= moved <= LONGEST_SECONDS:
        return ""
    return f": {amount(moved)} later, as outages and maintenance count for nobody"


def _between(start: datetime, end: datetime) -> str:
    return format_duration(round(max(0.0, (end - start).total_seconds())))


LONGEST_TEXT = 300
"""How many letters of a text of an agent's are told."""


LONGEST_NAME = 128


LONGEST_SECONDS = 1e10
"""What is longer than three centuries is no duration."""


_CALLS = re.compile(r"@(?=everyone|here|channel|all\b|room\b)|<(?=[!@#])", re.IGNORECASE)
"""What calls everybody in Slack, Discord or Matrix."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A notification as it was laid down."""

    kind: NoticeKind
    key: str
    agent_name: str | None
    project: str | None
    created_at: datetime
    detail: Mapping[str, Any]

    @property
    def who(self) -> str:
        """The agent's name, made harmless."""
        return told(self.agent_name, LONGEST_NAME) or "an agent"

    def moment(self, name: str) -> datetime | None:
        """Return a moment of the detail."""
        return parse_time(self.detail.get(name))

    def number(self, name: str) -> float | None:
        """Return a number of the detail."""
        value = self.detail.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def duration(self, name: str) -> str | None:
        """Return a number of seconds as people say it."""
        seconds = self.number(name)
        return None if seconds is None or abs(seconds) > LONGEST_SECONDS else format_duration(round(seconds))

    def amount(self, name: str) -> str | None:
        """Return a number of seconds without loss, so that it can be added up."""
        seconds = self.number(name)
        return None if seconds is None or abs(seconds) > LONGEST_SECONDS else amount(seconds)

    def count(self, name: str) -> str:
        """Return a whole number of the detail."""
        number = self.number(name)
        return "some" if number is None else f"{int(number):,}"


def told(text: object, limit: int = LONGEST_TEXT) -> str:
    """Return a text of an agent's as it may be told."""
    harmless = _CALLS.sub(lambda found: f"{found[0]} ", clean(text)) if isinstance(text, str) else ""
    return harmless if len(harmless) <= limit else f"{harmless[:limit].rstrip()}… (+{len(harmless) - limit})"


def at_text(moment: datetime | None) -> str:
    """Return a moment as titles have it, to the second."""
    return "an unknown time" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"

"""Messages: the title and the body of each kind of notification.

Pure. Text that came from an agent is one line, shortened, without control characters for a terminal and without
mentions for a chat.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.notifications.notice import NAMED
from fleetbeat_worker.notifications.wording import (
    NAME_LIMIT,
    Facts,
    expectation,
    last_heartbeat,
    recovery,
    recovery_times,
    safe_text,
    session_end,
    silent_for,
    silent_since,
    stuck_limit,
    time_text,
)
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.liveness import State

LATE_SECONDS = 60
"""After this time a message says that it is late."""
UNCHANGED = "it sends heartbeats, but its reported work has not changed"


class MessageType(StrEnum):
    """The type of a message, for receivers with colours or icons: Apprise's names."""

    WARNING = "warning"
    SUCCESS = "success"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Message:
    """A message to a receiver."""

    title: str
    """One line."""
    body: str
    type: MessageType
    key: str
    """The same at each repetition."""
    kind: str
    """One of `NoticeKind`, or `test`."""
    agent_name: str | None
    project: str | None


def compose(facts: Facts, now: datetime) -> Message:
    """Compose the message for a notification that is sent now."""
    title, message_type, lines = _KINDS[facts.kind](facts)
    late = (now - facts.created_at).total_seconds()
    parts = [line for line in lines if line]
    if late >= LATE_SECONDS:
        parts.append(f"This notification is {format_duration(round(late))} late; it may be outdated.")
    parts += ["", f"Details: {_command(facts)}", f"Key: {clean(facts.key)}"]
    return Message(
        title=title,
        body="\n".join(parts),
        type=message_type,
        key=facts.key,
        kind=facts.kind.value,
        agent_name=facts.agent_name,
        project=facts.project,
    )


def compose_test(now: datetime) -> Message:
    """Compose the message of `fleetbeat notifications test`."""
    key = f"test:{int(now.timestamp() * 1000)}"
    body = f"Notifications from Fleetbeat arrive here. Sent by: fleetbeat notifications test\n\nKey: {key}"
    return Message("Fleetbeat: test notification", body, MessageType.INFO, key, "test", None, None)


def _command(facts: Facts) -> str:
    """Return the command that shows more; a name is quoted, so that a shell can't execute it."""
    if facts.agent_name is None:
        commands = {NoticeKind.OUTAGE: "events --limit 20", NoticeKind.UNJUDGED: "events --type unjudged"}
        return f"fleetbeat {commands.get(facts.kind, 'dashboard')}"
    name = clean(facts.agent_name)
    return f"fleetbeat explain {'-- ' if name.startswith('-') else ''}{shlex.quote(name)}"


def _work(facts: Facts) -> Iterator[str]:
    """Yield the agent's project, and what it last reported."""
    names = {
        "current_work": "Current work",
        "work_item_id": "Work item",
        "status": "Status",
        "progress": "Last progress",
        "summary": "Summary",
        "error": "Error",
    }
    yield f"Project: {safe_text(facts.project, NAME_LIMIT)}" if facts.project else ""
    shown: set[str] = set()
    for name, title in names.items():
        text = safe_text(facts.detail.get(name))
        if text and text not in shown:  # the current work is the last progress, unless the agent set it otherwise
            shown.add(text)
            yield f"{title}: {text}"


_Composed = tuple[str, MessageType, list[str]]
"""Title, type, and the lines of the body; empty lines are left out."""


def _degraded(facts: Facts) -> _Composed:
    title = f"{facts.name} is degraded: {silent_since(facts)}"
    return title, MessageType.WARNING, [last_heartbeat(facts), expectation(facts), *_work(facts)]


def _reminder(facts: Facts) -> _Composed:
    title = f"{facts.name} is still degraded{silent_for(facts)}"
    lines = [f"It is degraded: {silent_since(facts)}.", last_heartbeat(facts), expectation(facts), *_work(facts)]
    return title, MessageType.WARNING, lines


def _recovered(facts: Facts) -> _Composed:
    return f"{facts.name} {recovery(facts)}", _end_type(facts), [recovery_times(facts), *_work(facts)]


def _end_type(facts: Facts) -> MessageType:
    """Return the type of a message about an end of silence: an agent that ended with an error is no success."""
    return MessageType.INFO if facts.number("exit_status") else MessageType.SUCCESS


def _stuck(facts: Facts) -> _Composed:
    title = f"{facts.name} is stuck: no change since {time_text(facts.time('changed_at'))}"
    return title, MessageType.WARNING, [f"{UNCHANGED.capitalize()}.{stuck_limit(facts)}", *_work(facts)]


def _unstuck(facts: Facts) -> _Composed:
    if end := session_end(facts):
        return f"{facts.name} {end}", _end_type(facts), ["It was stuck.", *_work(facts)]
    return f"{facts.name} is no longer stuck", MessageType.SUCCESS, ["Its reported work has changed.", *_work(facts)]


def _flapping(facts: Facts) -> _Composed:
    state, *lines = _state(facts)
    what = "It changes its state too often. Single changes are not sent until it is calm again."
    title = f"{facts.name} is flapping" + (f", now {state}" if state else "")
    return title, MessageType.WARNING, [*lines, what, *_work(facts)]


def _calm(facts: Facts) -> _Composed:
    state, *lines = _state(facts)
    ok = state == State.OK
    title = f"{facts.name} is calm again" + (f", {'and' if ok else 'but'} {state}" if state else "")
    message_type = MessageType.SUCCESS if ok else MessageType.WARNING
    return title, message_type, [*lines, "Its changes are sent again.", *_work(facts)]


def _state(facts: Facts) -> list[str]:
    """Return an agent's state in a word, empty if it isn't known, and the lines that describe it.

    No other message has it while an agent flaps, not even if it stays silent from then on.
    """
    state = facts.detail.get("state")
    if not isinstance(state, str) or state not in set(State):
        return [""]
    if state == State.DEGRADED:
        since = f": {silent_since(facts)}." if facts.time("since") else "."
        return [state, f"It is degraded{since}", last_heartbeat(facts), expectation(facts)]
    if state == State.OK and facts.detail.get("stuck") is True:
        return ["stuck", f"It is stuck: {UNCHANGED}."]
    return [state, f"It is {state}."]


def _incident(facts: Facts) -> _Composed:
    first, last = facts.time("first_silent_at"), facts.time("last_silent_at")
    agents, live = facts.count("agents"), facts.count("live_agents")
    if first is not None and last is not None:
        at_once = time_text(first) == time_text(last)
        span = f"at {first:%H:%M:%S}" if at_once else f"between {first:%H:%M:%S} and {last:%H:%M:%S}"
        whole = f"{time_text(first)} to {time_text(last)}. "
        day = f"On {first:%Y-%m-%d} (UTC). " if first.date() == last.date() else whole
    else:
        span, day = "at once", ""
    if (earlier := facts.number("agents_before")) is None:
        title = f"{agents} of {live} agents went silent {span}"
        why = "So many at once suggest a shared cause: a machine, a network, an account."
    else:  # few agents must not look like another incident
        title = f"{agents} more of {live} agents went silent {span}, after {int(earlier):,} before"
        why = f"They belong to the incident of the {int(earlier):,} agents before."
    if (before := facts.number("notified_before")) is not None:
        why += f" For {int(before):,} of them there was a notification already."
    return title, MessageType.WARNING, [f"{day}{why}", _names(facts, "Agents", "agents")]


def _incident_over(facts: Facts) -> _Composed:
    since = f"The first went silent at {time_text(facts.time('first_silent_at'))}."
    names = _names(facts, "Still silent", "silent")
    together = f"of {facts.count('agents')} agents that went silent together are"
    if 2 * (facts.number("silent") or 0) <= (facts.number("agents") or 0):
        back = "back, paused or ended" if facts.number("away") else "back"
        return f"{facts.count('back')} {together} {back}", MessageType.SUCCESS, [since, names]
    why = "The incident is closed; from now on there is a notification for each agent that recovers."
    return f"{facts.count('silent')} {together} still silent", MessageType.WARNING, [f"{since} {why}", names]


def _names(facts: Facts, what: str, number: str) -> str:
    names = facts.detail.get("names")
    if not isinstance(names, list) or not names:
        return ""
    shown = [safe_text(name, NAME_LIMIT) for name in names[:NAMED]]
    more = int(facts.number(number) or len(names)) - len(shown)
    return f"{what}: {', '.join(shown)}" + (f", and {more:,} more" if more > 0 else "")


def _outage(facts: Facts) -> _Composed:
    title = f"Monitoring was interrupted for {facts.duration('seconds') or 'some time'}"
    moved = facts.number("deadlines_moved")
    span = f"from {time_text(facts.time('started_at'))} to {time_text(facts.time('ended_at'))}"
    why = f"No agent was judged {span}: the workers, Redis or the database were unavailable, or the machine slept."
    excluded = "This time is excluded from deadlines" + (f"; {int(moved):,} were moved." if moved is not None else ".")
    return title, MessageType.WARNING, [why, excluded]


def _unjudged(facts: Facts) -> _Composed:
    why = f"Reason: {safe_text(facts.detail.get('why'))}" if facts.detail.get("why") else ""
    if facts.agent_name is None:
        what = (
            "Their rows in the database can't be judged, all for the same reason. They are excluded until that changes."
        )
        title = f"{facts.count('agents')} agents can't be judged"
        return title, MessageType.WARNING, [what, why, _names(facts, "Agents", "agents")]
    what = (
        "Its row in the database can't be judged. It is excluded until that changes; most often a registration helps."
    )
    return f"{facts.name} can't be judged", MessageType.WARNING, [what, why, *_work(facts)]


_KINDS: dict[NoticeKind, Callable[[Facts], _Composed]] = {
    NoticeKind.DEGRADED: _degraded,
    NoticeKind.RECOVERED: _recovered,
    NoticeKind.REMINDER: _reminder,
    NoticeKind.STUCK: _stuck,
    NoticeKind.UNSTUCK: _unstuck,
    NoticeKind.FLAPPING: _flapping,
    NoticeKind.CALM: _calm,
    NoticeKind.INCIDENT: _incident,
    NoticeKind.INCIDENT_OVER: _incident_over,
    NoticeKind.OUTAGE: _outage,
    NoticeKind.UNJUDGED: _unjudged,
}

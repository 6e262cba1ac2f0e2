"""What a notification says: a title and a body, made of the facts that were laid down with the change.

Pure. Whatever came from an agent is one line, without anything that acts on a terminal, that calls people in a chat, or
that is longer than a reader takes.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.notifications.wording import (
    LONGEST_NAME,
    LONGEST_TEXT,
    Facts,
    at_text,
    back,
    ended,
    last_sign,
    promised,
    repeated,
    signs,
    silent_for,
    silent_since,
    told,
)
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.liveness import State

NAMED = 20
"""How many of many agents are named."""
LATE_SECONDS = 60
"""After this time a message says that it comes late."""


class Mood(StrEnum):
    """How a message looks where a receiver has colours or signs for it."""

    BAD = "warning"
    GOOD = "success"
    PLAIN = "info"


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent."""

    title: str
    """One line."""
    body: str
    mood: Mood
    key: str
    """The same at each repetition."""
    kind: str
    """One of `NoticeKind`, or `test`."""
    agent_name: str | None
    project: str | None


def compose(facts: Facts, now: datetime) -> Message:
    """Return the message for a notification that is sent now."""
    title, mood, lines = _KINDS[facts.kind](facts)
    late = (now - facts.created_at).total_seconds()
    parts = [line for line in lines if line]
    if late >= LATE_SECONDS:
        parts.append(f"This is told {format_duration(round(late))} late, and may be over: see how it stands now.")
    parts += ["", f"Look: {_command(facts)}", f"Key: {clean(facts.key)}"]
    return Message(
        title=title,
        body="\n".join(parts),
        mood=mood,
        key=facts.key,
        kind=facts.kind.value,
        agent_name=facts.agent_name,
        project=facts.project,
    )


def trial(now: datetime) -> Message:
    """Return a message that says that messages arrive."""
    key = f"test:{int(now.timestamp() * 1000)}"
    body = f"Messages of Fleetbeat arrive here. This one was asked for by fleetbeat notifications test.\n\nKey: {key}"
    return Message("Fleetbeat: a test", body, Mood.PLAIN, key, "test", None, None)


def _command(facts: Facts) -> str:
    """Return what tells more; a name is quoted, so that no shell makes anything of it."""
    if facts.agent_name is None:
        looks = {NoticeKind.OUTAGE: "events --limit 20", NoticeKind.UNJUDGED: "events --type unjudged"}
        return f"fleetbeat {looks.get(facts.kind, 'dashboard')}"
    name = clean(facts.agent_name)
    return f"fleetbeat explain {'-- ' if name.startswith('-') else ''}{shlex.quote(name)}"


def _doing(facts: Facts) -> Iterator[str]:
    """Yield what an agent was doing, as far as it said."""
    names = {
        "current_work": "Current work",
        "work_item_id": "Work item",
        "status": "Status",
        "progress": "Last progress",
        "summary": "Summary",
        "error": "Error",
    }
    yield f"Project: {told(facts.project, LONGEST_NAME)}" if facts.project else ""
    said: set[str] = set()
    for name, title in names.items():
        text = told(facts.detail.get(name))
        if text and text not in said:  # its last progress is its current work, unless it said something else
            said.add(text)
            yield f"{title}: {text}"


_Told = tuple[str, Mood, list[str]]


def _degraded(facts: Facts) -> _Told:
    title = f"{facts.who} is degraded: {silent_since(facts)}"
    return title, Mood.BAD, [last_sign(facts), promised(facts), *_doing(facts)]


def _reminder(facts: Facts) -> _Told:
    title = f"{facts.who} is still degraded{silent_for(facts)}"
    lines = [f"It is {silent_since(facts)}.", last_sign(facts), promised(facts), *_doing(facts)]
    return title, Mood.BAD, lines


def _recovered(facts: Facts) -> _Told:
    return f"{facts.who} {back(facts)}", _mood(facts), [signs(facts), *_doing(facts)]


def _mood(facts: Facts) -> Mood:
    """Return how good it is that something bad is over: an agent that ended in error isn't well."""
    return Mood.PLAIN if facts.number("exit_status") else Mood.GOOD


def _stuck(facts: Facts) -> _Told:
    title = f"{facts.who} is stuck: nothing new since {at_text(facts.moment('changed_at'))}"
    what = f"It beats, but what it does doesn't change.{repeated(facts)}"
    return title, Mood.BAD, [what, *_doing(facts)]


def _unstuck(facts: Facts) -> _Told:
    if end := ended(facts):
        return f"{facts.who} {end}", _mood(facts), ["It had been stuck.", *_doing(facts)]
    return f"{facts.who} goes on", Mood.GOOD, ["It does something else again.", *_doing(facts)]


def _flapping(facts: Facts) -> _Told:
    word, *standing = _standing(facts)
    what = "It changes its state again and again. Its single changes are told no longer until it is calm."
    title = f"{facts.who} is flapping" + (f", {word} now" if word else "")
    return title, Mood.BAD, [*standing, what, *_doing(facts)]


def _calm(facts: Facts) -> _Told:
    word, *standing = _standing(facts)
    well = word == State.OK
    title = f"{facts.who} is calm again" + (f", {'and' if well else 'but'} {word}" if word else "")
    return title, Mood.GOOD if well else Mood.BAD, [*standing, "Its changes are told again.", *_doing(facts)]


def _standing(facts: Facts) -> list[str]:
    """Return how an agent is, in a word that is empty if the facts don't tell, and in the lines of a body.

    While it flaps nothing else says it: the silence of an agent that fell silent for good is told here or nowhere.
    """
    state = facts.detail.get("state")
    if not isinstance(state, str) or state not in set(State):
        return [""]
    if state == State.DEGRADED:
        since = f": {silent_since(facts)}." if facts.moment("since") else "."
        return [state, f"It is degraded{since}", last_sign(facts), promised(facts)]
    if state == State.OK and facts.detail.get("stuck") is True:
        return ["stuck", "It is stuck: it beats, but what it does doesn't change."]
    return [state, f"It is {state}."]


def _incident(facts: Facts) -> _Told:
    first, last = facts.moment("first_silent_at"), facts.moment("last_silent_at")
    agents, live = facts.count("agents"), facts.count("live_agents")
    if first is not None and last is not None:
        span = f"between {first:%H:%M:%S} and {last:%H:%M:%S}"
        if at_text(first) == at_text(last):
            span = f"at {first:%H:%M:%S}"
        whole = f"{at_text(first)} to {at_text(last)}. "
        day = f"On {first:%Y-%m-%d} (UTC). " if first.date() == last.date() else whole
    else:
        span, day = "at once", ""
    title = f"{agents} of {live} agents went silent {span}"
    why = "So many at once point at what they share: a machine, a network, an account. They are told as one."
    if (earlier := facts.number("agents_before")) is not None:  # alone, so few would look like something else
        title += f", {int(earlier):,} before them"
        why = f"This belongs to the incident of {int(earlier):,} agents that you were told of."
    if (before := facts.number("notified_before")) is not None:
        why += f" Of {int(before):,} you were told before."
    return title, Mood.BAD, [f"{day}{why}", _names(facts, "Agents", "agents")]


def _incident_over(facts: Facts) -> _Told:
    since = f"They went silent from {at_text(facts.moment('first_silent_at'))} on."
    names = _names(facts, "Silent still", "silent")
    together = f"of {facts.count('agents')} agents that went silent together are"
    if 2 * (facts.number("silent") or 0) <= (facts.number("agents") or 0):
        back = "back, paused or ended" if facts.number("away") else "back"
        return f"{facts.count('back')} {together} {back}", Mood.GOOD, [since, names]
    why = "They are waited for no longer: from now on each return is told by itself."
    return f"{facts.count('silent')} {together} silent still", Mood.BAD, [f"{since} {why}", names]


def _names(facts: Facts, what: str, number: str) -> str:
    names = facts.detail.get("names")
    if not isinstance(names, list) or not names:
        return ""
    shown = [told(name, LONGEST_NAME) for name in names[:NAMED]]
    more = int(facts.number(number) or len(names)) - len(shown)
    return f"{what}: {', '.join(shown)}" + (f", and {more:,} more" if more > 0 else "")


def _outage(facts: Facts) -> _Told:
    title = f"Nobody watched the fleet for {facts.duration('seconds') or 'some time'}"
    moved = facts.number("deadlines_moved")
    span = f"From {at_text(facts.moment('started_at'))} to {at_text(facts.moment('ended_at'))}"
    why = f"{span} nobody was judged: the workers, Redis or the database couldn't be used, or the machine slept."
    spared = f"; {int(moved):,} deadlines were moved" if moved is not None else ""
    return title, Mood.BAD, [why, f"No agent is flagged for that time{spared}."]


def _unjudged(facts: Facts) -> _Told:
    why = f"Why: {told(facts.detail.get('why'), LONGEST_TEXT)}" if facts.detail.get("why") else ""
    if facts.agent_name is None:
        what = "Their rows in the database can't be judged, all for one reason. They are left out until that changes."
        return (
            f"{facts.count('agents')} agents can't be judged",
            Mood.BAD,
            [what, why, _names(facts, "Agents", "agents")],
        )
    what = "Its row in the database can't be judged. It is left out until it changes; a new registration mends most."
    return f"{facts.who} can't be judged", Mood.BAD, [what, why, *_doing(facts)]


_KINDS: dict[NoticeKind, Callable[[Facts], _Told]] = {
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

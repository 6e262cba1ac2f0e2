from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetbeat_worker.notifications.messages import Message, MessageType, compose
from fleetbeat_worker.notifications.wording import Facts
from fleetbeat_worker.rules.enums import NoticeKind

NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
AGENT = {
    "since": "2026-11-26T11:57:55.123+00:00",
    "since_is": "last heartbeat",
    "last_seen_at": "2026-11-26T11:57:55.123+00:00",
    "registered_at": "2026-11-26T11:00:00+00:00",
    "seen_at": "2026-11-26T12:00:00.123+00:00",
    "deadline_at": "2026-11-26T11:59:00.123+00:00",
    "watermark": "2026-11-26T12:00:00+00:00",
    "interval_seconds": 30.0,
    "grace_seconds": 5.0,
    "missed_limit": 2,
    "current_work": "index the archive",
    "progress": "page 7 of 9",
    "error": "disk full",
    "silent_seconds": 125.0,
    "changed_at": "2026-11-26T11:00:00+00:00",
}
INCIDENT = {
    "agents": 412,
    "live_agents": 800,
    "first_silent_at": "2026-11-26T12:00:05+00:00",
    "last_silent_at": "2026-11-26T12:00:20.900+00:00",
    "names": [f"agent-{number}" for number in range(20)],
    "back": 400,
    "silent": 12,
}


def message(kind: NoticeKind, detail: dict[str, Any], name: str | None = "torv", late: float = 0) -> Message:
    facts = Facts(kind, "the-key", name, "billing" if name else None, NOON, detail)
    return compose(facts, NOON + timedelta(seconds=late))


def test_a_degraded_agent_in_full() -> None:
    """The message has since when, for how long, the promise, the work, and the command that shows more."""
    sent = message(NoticeKind.DEGRADED, AGENT)
    assert sent.title == "torv is degraded: silent since 2026-11-26 11:57:55 UTC"
    assert sent.type is MessageType.WARNING
    assert sent.body.splitlines() == [
        "Last heartbeat: 2026-11-26 11:57:55.123 UTC, none for 2m 5s since.",
        (
            "Heartbeats are expected every 30s; the limit is 2 missed and 5s of grace. "
            "The deadline was 2026-11-26 11:59:00.123 UTC."
        ),
        "Project: billing",
        "Current work: index the archive",
        "Last progress: page 7 of 9",
        "Error: disk full",
        "",
        "Details: fleetbeat explain torv",
        "Key: the-key",
    ]


@pytest.mark.parametrize(
    ("detail", "state", "sentence"),
    [
        (
            {"state": "degraded", "stuck": False},
            "degraded",
            "It is degraded: silent since 2026-11-26 11:57:55 UTC.",
        ),
        (
            {"state": "ok", "stuck": True},
            "stuck",
            "It is stuck: it sends heartbeats, but its reported work has not changed.",
        ),
        ({"state": "paused"}, "paused", "It is paused."),
        ({"state": "ok", "stuck": False}, "ok", "It is ok."),
    ],
)
def test_messages_about_flapping_have_the_present_state(detail: dict[str, Any], state: str, sentence: str) -> None:
    """An agent that died while it flapped is reported only there, and not as a success."""
    calm, flapping = (message(kind, AGENT | detail) for kind in (NoticeKind.CALM, NoticeKind.FLAPPING))
    assert calm.title == f"torv is calm again, {'and' if state == 'ok' else 'but'} {state}"
    assert flapping.title == f"torv is flapping, now {state}"
    assert calm.body.startswith(f"{sentence}\n")
    assert "\nIts changes are sent again.\nProject: billing\nCurrent work: index the archive\n" in calm.body
    assert flapping.body.startswith(f"{sentence}\n")
    assert "\nIt changes its state too often." in flapping.body
    assert ("Heartbeats are expected every 30s" in calm.body) == (state == "degraded")
    assert calm.type is (MessageType.SUCCESS if state == "ok" else MessageType.WARNING)
    assert flapping.type is MessageType.WARNING


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        (NoticeKind.RECOVERED, "torv has recovered after 2m 5s of silence"),
        (NoticeKind.REMINDER, "torv is still degraded, silent for 2m 5s"),
        (NoticeKind.STUCK, "torv is stuck: no change since 2026-11-26 11:00:00 UTC"),
        (NoticeKind.UNSTUCK, "torv is no longer stuck"),
        (NoticeKind.FLAPPING, "torv is flapping"),
        (NoticeKind.CALM, "torv is calm again"),
        (NoticeKind.UNJUDGED, "torv can't be judged"),
    ],
)
def test_titles_of_an_agents_changes(kind: NoticeKind, title: str) -> None:
    """Each change of an agent has a title of its own, and the command that explains it."""
    sent = message(kind, AGENT)
    assert sent.title == title
    assert "Details: fleetbeat explain torv" in sent.body


UNSEEN = AGENT | {"since": AGENT["registered_at"], "since_is": "registration", "last_seen_at": None}
REGISTERED_AGAIN = AGENT | {"registered_at": "2026-11-26T11:59:00+00:00", "since": "2026-11-26T11:59:00+00:00"}
REGISTERED_AGAIN |= {"since_is": "registration"}
AFTER_A_PAUSE = AGENT | {"since": "2026-11-26T11:59:00+00:00", "since_is": "end of the pause"}
AFTER_MAINTENANCE = AFTER_A_PAUSE | {"since_is": "end of maintenance"}
UNSEEN_AFTER_A_PAUSE = AFTER_A_PAUSE | {"last_seen_at": None}


@pytest.mark.parametrize(
    ("facts", "long", "since", "last"),
    [
        (
            AGENT,
            "silent for 2m 5s",
            "silent since 2026-11-26 11:57:55 UTC",
            "Last heartbeat: 2026-11-26 11:57:55.123 UTC, none for 2m 5s since.",
        ),
        (
            UNSEEN,
            "no heartbeat for 1h",
            "no heartbeat since its registration at 2026-11-26 11:00:00 UTC",
            "No heartbeat in the 1h since its registration at 2026-11-26 11:00:00 UTC.",
        ),
        (
            REGISTERED_AGAIN,
            "no heartbeat for 1m",
            "no heartbeat since its registration at 2026-11-26 11:59:00 UTC",
            "Last heartbeat: 2026-11-26 11:57:55.123 UTC, before its registration at 2026-11-26 11:59:00 UTC.",
        ),
        (
            AFTER_A_PAUSE,
            "silent for 2m 5s",
            "silent since its pause ended at 2026-11-26 11:59:00 UTC",
            (
                "Last heartbeat: 2026-11-26 11:57:55.123 UTC, none for 2m 5s since. "
                "Silence counts from 2026-11-26 11:59:00 UTC, when its pause ended."
            ),
        ),
        (
            AFTER_MAINTENANCE,
            "silent for 2m 5s",
            "silent since maintenance ended at 2026-11-26 11:59:00 UTC",
            (
                "Last heartbeat: 2026-11-26 11:57:55.123 UTC, none for 2m 5s since. "
                "Silence counts from 2026-11-26 11:59:00 UTC, when maintenance ended."
            ),
        ),
        (
            UNSEEN_AFTER_A_PAUSE,
            "no heartbeat for 1h",
            "silent since its pause ended at 2026-11-26 11:59:00 UTC",
            (
                "No heartbeat in the 1h since its registration at 2026-11-26 11:00:00 UTC. "
                "Silence counts from 2026-11-26 11:59:00 UTC, when its pause ended."
            ),
        ),
    ],
)
def test_messages_about_silence_have_its_start_and_the_last_heartbeat(
    facts: dict[str, Any], long: str, since: str, last: str
) -> None:
    """The end of a pause or of maintenance, and a registration, are not taken for a heartbeat."""
    degraded = message(NoticeKind.DEGRADED, facts)
    assert degraded.title == f"torv is degraded: {since}"
    assert degraded.body.splitlines()[0] == last
    reminder = message(NoticeKind.REMINDER, facts)
    assert reminder.body.splitlines()[:2] == [f"It is degraded: {since}.", last]
    assert reminder.title == f"torv is still degraded, {long}"


RESTARTED = AGENT | {"end": "restarted"}
DEREGISTERED = {"end": "deregistered", "exit_status": 0}


@pytest.mark.parametrize(
    ("facts", "title", "first_line"),
    [
        (
            AGENT,
            "torv has recovered after 2m 5s of silence",
            "Heartbeat at 2026-11-26 12:00:00.123 UTC; previous heartbeat at 2026-11-26 11:57:55.123 UTC.",
        ),
        (
            UNSEEN,
            "torv sent its first heartbeat",
            "Heartbeat at 2026-11-26 12:00:00.123 UTC; registration at 2026-11-26 11:00:00 UTC.",
        ),
        (
            REGISTERED_AGAIN,
            "torv sent its first heartbeat since its registration",
            "Heartbeat at 2026-11-26 12:00:00.123 UTC; registration at 2026-11-26 11:59:00 UTC.",
        ),
        (
            AFTER_A_PAUSE,
            "torv has recovered after 2m 5s of silence",
            (
                "Heartbeat at 2026-11-26 12:00:00.123 UTC; previous heartbeat at 2026-11-26 11:57:55.123 "
                "UTC. Silence counted from 2026-11-26 11:59:00 UTC, when its pause ended."
            ),
        ),
        (
            RESTARTED,
            "torv was restarted after 2m 5s of silence",
            ("Registered again at 2026-11-26 12:00:00.123 UTC; previous heartbeat at 2026-11-26 11:57:55.123 UTC."),
        ),
        (
            AGENT | DEREGISTERED,
            "torv has ended after 2m 5s of silence",
            "Deregistered at 2026-11-26 12:00:00.123 UTC; previous heartbeat at 2026-11-26 11:57:55.123 UTC.",
        ),
        (
            UNSEEN | DEREGISTERED | {"exit_status": 3},
            "torv has ended with exit status 3 after 2m 5s of silence",
            "Deregistered at 2026-11-26 12:00:00.123 UTC; registration at 2026-11-26 11:00:00 UTC.",
        ),
    ],
)
def test_messages_about_the_end_of_silence(facts: dict[str, Any], title: str, first_line: str) -> None:
    """A pause doesn't shorten a silence; a session that ended hasn't recovered, and an error is no success."""
    sent = message(NoticeKind.RECOVERED, facts)
    assert (sent.title, sent.body.splitlines()[0]) == (title, first_line)
    assert sent.type is (MessageType.INFO if facts.get("exit_status") else MessageType.SUCCESS)


def test_the_end_of_a_stuck_session() -> None:
    """A session that was stuck until it was replaced has not resumed its work."""
    sent = message(NoticeKind.UNSTUCK, RESTARTED)
    assert (sent.title, sent.body.splitlines()[0]) == ("torv was restarted", "It was stuck.")


def test_the_deadline_can_be_calculated_from_the_message() -> None:
    """Durations that are added up are exact."""
    detail = AGENT | {"interval_seconds": 1.5, "grace_seconds": 0.25, "deadline_at": "2026-11-26T11:57:58.373+00:00"}
    body = message(NoticeKind.DEGRADED, detail).body
    assert "every 1.5s; the limit is 2 missed and 0.25s of grace. The deadline was 2026-11-26 11:57:58.373 UTC." in body


def test_a_stuck_agents_limit() -> None:
    """The limit is given with the interval that it counts and the grace."""
    body = message(NoticeKind.STUCK, AGENT | {"stuck_after": 20}).body
    assert "but its reported work has not changed. The limit is 20 x 30s and 5s of grace.\n" in body


def test_an_incident_within_one_second() -> None:
    """Silences that begin in the same second have one time."""
    detail = INCIDENT | {"last_silent_at": "2026-11-26T12:00:05.900+00:00"}
    sent = message(NoticeKind.INCIDENT, detail, None)
    assert sent.title == "412 of 800 agents went silent at 12:00:05"
    assert sent.body.startswith("On 2026-11-26 (UTC). ")


def test_an_incident() -> None:
    """One message has how many agents of how many, when, and the first names; its end has those still silent."""
    sent = message(NoticeKind.INCIDENT, INCIDENT, None)
    assert sent.title == "412 of 800 agents went silent between 12:00:05 and 12:00:20"
    assert "agent-19, and 392 more" in sent.body
    over = message(NoticeKind.INCIDENT_OVER, INCIDENT, None)
    assert over.title == "400 of 412 agents that went silent together are back"
    assert over.type is MessageType.SUCCESS
    few = message(NoticeKind.INCIDENT_OVER, INCIDENT | {"silent": 2, "names": ["torv", "hint"]}, None)
    assert few.body.count("Still silent: torv, hint\n") == 1
    closed = message(NoticeKind.INCIDENT_OVER, INCIDENT | {"silent": 400, "back": 12}, None)
    assert closed.title == "400 of 412 agents that went silent together are still silent"
    assert "agent-19, and 380 more" in closed.body
    assert closed.type is MessageType.WARNING


def test_an_incident_that_grows() -> None:
    """Few agents that join an incident don't look like another one: the message has the number before them."""
    sent = message(NoticeKind.INCIDENT, INCIDENT | {"agents": 15, "agents_before": 412, "names": ["torv"]}, None)
    assert sent.title == "15 more of 800 agents went silent between 12:00:05 and 12:00:20, after 412 before"
    assert "They belong to the incident of the 412 agents before.\nAgents: torv, and 14 more\n" in sent.body
    assert "many" not in sent.body
    late = message(NoticeKind.INCIDENT, INCIDENT | {"notified_before": 8}, None)
    assert late.title == "412 of 800 agents went silent between 12:00:05 and 12:00:20"
    assert "For 8 of them there was a notification already.\n" in late.body


def test_paused_and_ended_members_of_an_incident_are_named_as_such() -> None:
    """Agents that were paused, or ended, since they went silent are not simply back."""
    over = message(NoticeKind.INCIDENT_OVER, INCIDENT | {"away": 3}, None)
    assert over.title == "400 of 412 agents that went silent together are back, paused or ended"
    assert message(NoticeKind.INCIDENT_OVER, INCIDENT | {"away": 0}, None).title.endswith(" are back")


def test_many_agents_that_cannot_be_judged() -> None:
    """Agents that can't be judged for one reason share a message, with the reason and the first names."""
    sent = message(NoticeKind.UNJUDGED, {**INCIDENT, "why": "'Mars' is not a time zone"}, None)
    assert sent.title == "412 agents can't be judged"
    assert "Reason: 'Mars' is not a time zone\nAgents: agent-0, " in sent.body
    assert "agent-19, and 392 more" in sent.body
    assert "Details: fleetbeat events --type unjudged" in sent.body


def test_an_outage() -> None:
    """The message has the time that is excluded, and how many deadlines moved."""
    detail = {
        "started_at": "2026-11-26T10:00:00+00:00",
        "ended_at": "2026-11-26T11:00:00+00:00",
        "seconds": 3600.0,
        "deadlines_moved": 1200,
    }
    sent = message(NoticeKind.OUTAGE, detail, None)
    assert sent.title == "Monitoring was interrupted for 1h"
    assert (
        "No agent was judged from 2026-11-26 10:00:00 UTC to 2026-11-26 11:00:00 UTC: the workers, Redis" in sent.body
    )
    assert "1,200 were moved" in sent.body


def test_a_late_message_says_so() -> None:
    """A message that is an hour late may be outdated; one that is late by an attempt or two doesn't say so."""
    assert "This notification is 1h late" in message(NoticeKind.DEGRADED, AGENT, late=3600).body
    assert "late" not in message(NoticeKind.DEGRADED, AGENT, late=30).body


def test_a_schedule() -> None:
    """The message about an agent on a schedule has the schedule."""
    detail = {"schedule": "0 6 * * *", "time_zone": "Europe/Berlin", "missed_limit": 2}
    body = message(NoticeKind.DEGRADED, detail).body
    assert "by the schedule 0 6 * * * (Europe/Berlin); the limit is 2 missed." in body


@pytest.mark.parametrize("mention", ["@everyone", "@here", "@channel", "<!channel>", "<@U123>", "@all"])
def test_agents_mention_nobody(mention: str) -> None:
    """Mentions in an agent's name and texts are broken."""
    sent = message(NoticeKind.DEGRADED, {"progress": f"done {mention} now"}, f"bot {mention}")
    assert mention not in sent.title
    assert mention not in sent.body.partition("Details:")[0]


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("$(reboot)", "'$(reboot)'"), ("--help", "-- --help"), ("a b", "'a b'"), ("a';x", "'a'\"'\"';x'")],
)
def test_the_command_can_be_pasted(name: str, quoted: str) -> None:
    """An agent's name in the command is quoted, so that a shell doesn't execute it."""
    assert f"Details: fleetbeat explain {quoted}\n" in message(NoticeKind.DEGRADED, {}, name).body


def test_repeated_texts_are_shown_once() -> None:
    """Progress that is also the current work is one line."""
    body = message(NoticeKind.DEGRADED, {"current_work": "page 7", "progress": "page 7"}).body
    assert body.count("page 7") == 1


def test_long_texts_are_cut() -> None:
    """A long text of an agent's is cut, with the number of characters that are missing."""
    assert "x… (+700)" in message(NoticeKind.DEGRADED, {"summary": "x" * 1000}).body


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(
    kind=st.sampled_from(list(NoticeKind)),
    detail=st.dictionaries(
        st.sampled_from([*AGENT, *INCIDENT, "stuck_after", "state", "schedule", "seconds", "deadlines_moved"]), _JSON
    ),
    name=st.none() | st.text(max_size=20),
)
def test_any_detail_has_a_text(kind: NoticeKind, detail: dict[str, Any], name: str | None) -> None:
    """Whatever the detail contains, the title is one line, and only one line of the body begins with Key."""
    sent = message(kind, detail, name)
    assert sent.title
    assert "\n" not in sent.title
    keys = [line for line in sent.body.splitlines() if line.startswith("Key:")]
    assert keys == ["Key: the-key"]


def test_impossible_numbers_are_ignored() -> None:
    """Numbers that no agent can promise don't break the message."""
    detail = AGENT | {"missed_limit": 10**400, "grace_seconds": 1e300}
    assert "The deadline was 2026-11-26 11:59:00.123 UTC." in message(NoticeKind.DEGRADED, detail).body

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetbeat_worker.notifications.messages import Message, Mood, compose
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
    """The message says who, since when, for how long, what it was doing, what it promised, and what tells more."""
    told = message(NoticeKind.DEGRADED, AGENT)
    assert told.title == "torv is degraded: silent since 2026-11-26 11:57:55 UTC"
    assert told.mood is Mood.BAD
    assert told.body.splitlines() == [
        "It was last heard at 2026-11-26 11:57:55.123 UTC; nothing for 2m 5s.",
        "It should beat every 30s; it may miss 2, and has 5s of grace. Its time was up at 2026-11-26 11:59:00.123 UTC.",
        "Project: billing",
        "Current work: index the archive",
        "Last progress: page 7 of 9",
        "Error: disk full",
        "",
        "Look: fleetbeat explain torv",
        "Key: the-key",
    ]


@pytest.mark.parametrize(
    ("detail", "calm", "flapping", "sentence"),
    [
        (
            {"state": "degraded", "stuck": False},
            "torv is calm again, but degraded",
            "torv is flapping, degraded now",
            "It is degraded: silent since 2026-11-26 11:57:55 UTC.",
        ),
        (
            {"state": "ok", "stuck": True},
            "torv is calm again, but stuck",
            "torv is flapping, stuck now",
            "It is stuck: it beats, but what it does doesn't change.",
        ),
        ({"state": "paused"}, "torv is calm again, but paused", "torv is flapping, paused now", "It is paused."),
        (
            {"state": "ok", "stuck": False},
            "torv is calm again, and ok",
            "torv is flapping, ok now",
            "It is ok.",
        ),
    ],
)
def test_who_flaps_or_is_calm_is_told_with_its_state(
    detail: dict[str, Any], calm: str, flapping: str, sentence: str
) -> None:
    """No other message says it: an agent that died while it flapped is told of here or nowhere, and as no success."""
    is_calm, flaps = (message(kind, AGENT | detail) for kind in (NoticeKind.CALM, NoticeKind.FLAPPING))
    assert (is_calm.title, flaps.title) == (calm, flapping)
    assert is_calm.body.startswith(f"{sentence}\n")
    assert "\nIts changes are told again.\nProject: billing\nCurrent work: index the archive\n" in is_calm.body
    assert flaps.body.startswith(f"{sentence}\n")
    assert "\nIt changes its state again and again." in flaps.body
    assert ("It should beat every 30s" in is_calm.body) == calm.endswith("degraded")
    assert is_calm.mood is (Mood.GOOD if calm.endswith("ok") else Mood.BAD)
    assert flaps.mood is Mood.BAD


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        (NoticeKind.RECOVERED, "torv is back after 2m 5s of silence"),
        (NoticeKind.REMINDER, "torv is still degraded, silent for 2m 5s"),
        (NoticeKind.STUCK, "torv is stuck: nothing new since 2026-11-26 11:00:00 UTC"),
        (NoticeKind.UNSTUCK, "torv goes on"),
        (NoticeKind.FLAPPING, "torv is flapping"),
        (NoticeKind.CALM, "torv is calm again"),
        (NoticeKind.UNJUDGED, "torv can't be judged"),
    ],
)
def test_titles_of_an_agents_changes(kind: NoticeKind, title: str) -> None:
    """Each change of an agent has a title that says it, and the command that explains it."""
    told = message(kind, AGENT)
    assert told.title == title
    assert "Look: fleetbeat explain torv" in told.body


NEVER_HEARD = AGENT | {"since": AGENT["registered_at"], "since_is": "registration", "last_seen_at": None}
ENROLLED_ANEW = AGENT | {"registered_at": "2026-11-26T11:59:00+00:00", "since": "2026-11-26T11:59:00+00:00"}
ENROLLED_ANEW |= {"since_is": "registration"}
AFTER_A_PAUSE = AGENT | {"since": "2026-11-26T11:59:00+00:00", "since_is": "end of the pause"}
AFTER_MAINTENANCE = AFTER_A_PAUSE | {"since_is": "end of maintenance"}
UNHEARD_AFTER_A_PAUSE = AFTER_A_PAUSE | {"last_seen_at": None}
OLD = {name: AGENT[name] for name in ("since", "deadline_at", "interval_seconds", "grace_seconds", "missed_limit")}
OLD |= {"silent_seconds": 125.0}


@pytest.mark.parametrize(
    ("facts", "long", "silent", "heard"),
    [
        (
            AGENT,
            "silent for 2m 5s",
            "silent since 2026-11-26 11:57:55 UTC",
            "It was last heard at 2026-11-26 11:57:55.123 UTC; nothing for 2m 5s.",
        ),
        (
            NEVER_HEARD,
            "never heard for 1h",
            "never heard since its registration at 2026-11-26 11:00:00 UTC",
            "It was never heard in the 1h since its registration at 2026-11-26 11:00:00 UTC.",
        ),
        (
            ENROLLED_ANEW,
            "never heard for 1m",
            "never heard since its registration at 2026-11-26 11:59:00 UTC",
            "It was last heard at 2026-11-26 11:57:55.123 UTC, before it was registered at 2026-11-26 11:59:00 UTC.",
        ),
        (
            AFTER_A_PAUSE,
            "silent for 2m 5s",
            "silent since its pause ended at 2026-11-26 11:59:00 UTC",
            (
                "It was last heard at 2026-11-26 11:57:55.123 UTC; nothing for 2m 5s. "
                "Its clock started anew when its pause ended, at 2026-11-26 11:59:00 UTC."
            ),
        ),
        (
            AFTER_MAINTENANCE,
            "silent for 2m 5s",
            "silent since maintenance ended at 2026-11-26 11:59:00 UTC",
            (
                "It was last heard at 2026-11-26 11:57:55.123 UTC; nothing for 2m 5s. "
                "Its clock started anew when maintenance ended, at 2026-11-26 11:59:00 UTC."
            ),
        ),
        (
            UNHEARD_AFTER_A_PAUSE,
            "never heard for 1h",
            "silent since its pause ended at 2026-11-26 11:59:00 UTC",
            (
                "It was never heard in the 1h since its registration at 2026-11-26 11:00:00 UTC. "
                "Its clock started anew when its pause ended, at 2026-11-26 11:59:00 UTC."
            ),
        ),
        (OLD, "silent for 2m 5s", "silent since 2026-11-26 11:57:55 UTC", "Nothing was heard of it for 2m 5s."),
    ],
)
def test_a_silence_says_what_it_counts_from_and_when_the_agent_was_last_heard(
    facts: dict[str, Any], long: str, silent: str, heard: str
) -> None:
    """A pause that ended is no last sign, a registration neither; a notice of before tells what it has."""
    told = message(NoticeKind.DEGRADED, facts)
    assert told.title == f"torv is degraded: {silent}"
    assert told.body.splitlines()[0] == heard
    again = message(NoticeKind.REMINDER, facts)
    assert again.body.splitlines()[:2] == [f"It is {silent}.", heard]
    assert again.title == f"torv is still degraded, {long}"


@pytest.mark.parametrize(
    ("facts", "title", "heard"),
    [
        (
            AGENT,
            "torv is back after 2m 5s of silence",
            "It was heard at 2026-11-26 12:00:00.123 UTC; before that at 2026-11-26 11:57:55.123 UTC.",
        ),
        (
            NEVER_HEARD,
            "torv is heard for the first time",
            "It was heard at 2026-11-26 12:00:00.123 UTC; it was registered at 2026-11-26 11:00:00 UTC.",
        ),
        (
            ENROLLED_ANEW,
            "torv is heard for the first time since its registration",
            "It was heard at 2026-11-26 12:00:00.123 UTC; it was registered at 2026-11-26 11:59:00 UTC.",
        ),
        (
            AFTER_A_PAUSE,
            "torv is back after 2m 5s of silence",
            (
                "It was heard at 2026-11-26 12:00:00.123 UTC; before that at 2026-11-26 11:57:55.123 UTC. "
                "Its clock had started anew when its pause ended, at 2026-11-26 11:59:00 UTC."
            ),
        ),
        (OLD, "torv is back after 2m 5s of silence", "It had been silent since 2026-11-26 11:57:55.123 UTC."),
    ],
)
def test_a_return_says_when_the_agent_was_heard_before(facts: dict[str, Any], title: str, heard: str) -> None:
    """Who was never heard isn't back, and a pause that ended meanwhile makes no silence shorter."""
    told = message(NoticeKind.RECOVERED, facts)
    assert (told.title, told.body.splitlines()[0], told.mood) == (title, heard, Mood.GOOD)


@pytest.mark.parametrize(
    ("detail", "title", "heard", "mood"),
    [
        (
            AGENT | {"end": "restarted"},
            "torv was started anew after 2m 5s of silence",
            "It was registered anew at 2026-11-26 12:00:00.123 UTC; before that at 2026-11-26 11:57:55.123 UTC.",
            Mood.GOOD,
        ),
        (
            AGENT | {"end": "deregistered", "exit_status": 0},
            "torv has ended after 2m 5s of silence",
            "It said goodbye at 2026-11-26 12:00:00.123 UTC; before that at 2026-11-26 11:57:55.123 UTC.",
            Mood.GOOD,
        ),
        (
            NEVER_HEARD | {"end": "deregistered", "exit_status": 3},
            "torv has ended with exit status 3 after 2m 5s of silence",
            "It said goodbye at 2026-11-26 12:00:00.123 UTC; it was registered at 2026-11-26 11:00:00 UTC.",
            Mood.PLAIN,
        ),
    ],
)
def test_a_silence_that_its_end_ends_says_so(detail: dict[str, Any], title: str, heard: str, mood: Mood) -> None:
    """A session that is replaced, or that said goodbye, isn't back; one that ended in error is no good news."""
    told = message(NoticeKind.RECOVERED, detail)
    assert (told.title, told.body.splitlines()[0], told.mood) == (title, heard, mood)


def test_who_was_stuck_to_the_end_goes_on_no_more() -> None:
    """Its end is told as what it is."""
    told = message(NoticeKind.UNSTUCK, AGENT | {"end": "restarted"})
    assert (told.title, told.body.splitlines()[0]) == ("torv was started anew", "It had been stuck.")


def test_a_promise_can_be_added_up() -> None:
    """No part of a duration is left out where a moment and durations make another moment."""
    detail = AGENT | {"interval_seconds": 1.5, "grace_seconds": 0.25, "deadline_at": "2026-11-26T11:57:58.373+00:00"}
    body = message(NoticeKind.DEGRADED, detail).body
    assert "every 1.5s; it may miss 2, and has 0.25s of grace. Its time was up at 2026-11-26 11:57:58.373 UTC." in body


def test_stuck_says_how_long_the_same_may_last() -> None:
    """The limit stands in the message, with the interval that it counts and the grace."""
    body = message(NoticeKind.STUCK, AGENT | {"stuck_after": 20}).body
    assert "but what it does doesn't change. It may say the same for 20 x 30s + 5s of grace.\n" in body


def test_an_incident_of_one_second() -> None:
    """What begins and ends in the same second has one moment."""
    detail = INCIDENT | {"last_silent_at": "2026-11-26T12:00:05.900+00:00"}
    told = message(NoticeKind.INCIDENT, detail, None)
    assert told.title == "412 of 800 agents went silent at 12:00:05"
    assert told.body.startswith("On 2026-11-26 (UTC). ")


def test_an_incident() -> None:
    """Many agents are told as one, with how many, of how many, when, and who."""
    told = message(NoticeKind.INCIDENT, INCIDENT, None)
    assert told.title == "412 of 800 agents went silent between 12:00:05 and 12:00:20"
    assert "agent-19, and 392 more" in told.body
    over = message(NoticeKind.INCIDENT_OVER, INCIDENT, None)
    assert over.title == "400 of 412 agents that went silent together are back"
    assert over.mood is Mood.GOOD
    few = message(NoticeKind.INCIDENT_OVER, INCIDENT | {"silent": 2, "names": ["torv", "hint"]}, None)
    assert few.body.count("Silent still: torv, hint\n") == 1
    given_up = message(NoticeKind.INCIDENT_OVER, INCIDENT | {"silent": 400, "back": 12}, None)
    assert given_up.title == "400 of 412 agents that went silent together are silent still"
    assert "agent-19, and 380 more" in given_up.body
    assert given_up.mood is Mood.BAD


def test_an_incident_that_grows() -> None:
    """Who joins an incident is told with how many there were before: alone, few would look like another one."""
    told = message(NoticeKind.INCIDENT, INCIDENT | {"agents": 15, "agents_before": 412, "names": ["torv"]}, None)
    assert told.title == "15 of 800 agents went silent between 12:00:05 and 12:00:20, 412 before them"
    assert "This belongs to the incident of 412 agents that you were told of.\nAgents: torv, and 14 more\n" in told.body
    assert "many" not in told.body
    some = message(NoticeKind.INCIDENT, INCIDENT | {"notified_before": 8}, None)
    assert some.title == "412 of 800 agents went silent between 12:00:05 and 12:00:20"
    assert "Of 8 you were told before.\n" in some.body


def test_who_is_no_longer_waited_for_is_not_told_as_back() -> None:
    """Nobody heard of agents that were paused, or ended, since they went silent."""
    over = message(NoticeKind.INCIDENT_OVER, INCIDENT | {"away": 3}, None)
    assert over.title == "400 of 412 agents that went silent together are back, paused or ended"
    assert message(NoticeKind.INCIDENT_OVER, INCIDENT | {"away": 0}, None).title.endswith(" are back")


def test_many_that_cannot_be_judged() -> None:
    """Agents that are set aside for one reason are told as one, with the reason and the first names."""
    told = message(NoticeKind.UNJUDGED, {**INCIDENT, "why": "'Mars' is no time zone"}, None)
    assert told.title == "412 agents can't be judged"
    assert "Why: 'Mars' is no time zone\nAgents: agent-0, " in told.body
    assert "agent-19, and 392 more" in told.body
    assert "Look: fleetbeat events --type unjudged" in told.body


def test_an_outage() -> None:
    """An outage says from when to when, and that nobody is flagged for it."""
    detail = {
        "started_at": "2026-11-26T10:00:00+00:00",
        "ended_at": "2026-11-26T11:00:00+00:00",
        "seconds": 3600.0,
        "deadlines_moved": 1200,
    }
    told = message(NoticeKind.OUTAGE, detail, None)
    assert told.title == "Nobody watched the fleet for 1h"
    assert (
        "From 2026-11-26 10:00:00 UTC to 2026-11-26 11:00:00 UTC nobody was judged: the workers, Redis or the database"
        in told.body
    )
    assert "1,200 deadlines were moved" in told.body


def test_a_message_that_comes_late_says_so() -> None:
    """What is sent an hour after the fact may be over by then; a try or two later it says nothing."""
    assert "told 1h late" in message(NoticeKind.DEGRADED, AGENT, late=3600).body
    assert "late" not in message(NoticeKind.DEGRADED, AGENT, late=30).body


def test_a_schedule() -> None:
    """An agent on a schedule is told by that."""
    detail = {"schedule": "0 6 * * *", "time_zone": "Europe/Berlin", "missed_limit": 2}
    assert "by the schedule 0 6 * * * (Europe/Berlin); it may miss 2." in message(NoticeKind.DEGRADED, detail).body


@pytest.mark.parametrize("call", ["@everyone", "@here", "@channel", "<!channel>", "<@U123>", "@all"])
def test_agents_call_nobody(call: str) -> None:
    """What calls everybody in a chat is broken in an agent's name and texts."""
    told = message(NoticeKind.DEGRADED, {"progress": f"done {call} now"}, f"bot {call}")
    assert call not in told.title
    assert call not in told.body.partition("Look:")[0]


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("$(reboot)", "'$(reboot)'"), ("--help", "-- --help"), ("a b", "'a b'"), ("a';x", "'a'\"'\"';x'")],
)
def test_the_command_can_be_pasted(name: str, quoted: str) -> None:
    """An agent's name in the command is quoted: no shell makes anything of it."""
    assert f"Look: fleetbeat explain {quoted}\n" in message(NoticeKind.DEGRADED, {}, name).body


def test_nothing_is_said_twice() -> None:
    """Progress that is the current work too is one line."""
    body = message(NoticeKind.DEGRADED, {"current_work": "page 7", "progress": "page 7"}).body
    assert body.count("page 7") == 1


def test_long_texts_are_cut() -> None:
    """A text of an agent's is cut visibly."""
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
    """Whatever the detail holds, there is a one-line title, and no line of the body but ours begins with Key."""
    told = message(kind, detail, name)
    assert told.title
    assert "\n" not in told.title
    keys = [line for line in told.body.splitlines() if line.startswith("Key:")]
    assert keys == ["Key: the-key"]


def test_numbers_beyond_all_bounds_do_no_harm() -> None:
    """A number that no agent can promise is left out of the sum."""
    detail = AGENT | {"missed_limit": 10**400, "grace_seconds": 1e300}
    assert "Its time was up at 2026-11-26 11:59:00.123 UTC." in message(NoticeKind.DEGRADED, detail).body

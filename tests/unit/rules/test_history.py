from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetbeat_shared.time_text import amount
from fleetbeat_worker.explain.deadline_sum import Start, work_out
from fleetbeat_worker.rules.deadlines import DeadlineRule, Unwatched
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import Promise, deadline, extend_over_outages
from fleetbeat_worker.rules.replay import Silence
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from fleetbeat_worker.rules.timeline import Change, changes_of, live_spans, paused_spans, promise_told, told_silences
from simulated import at

NOON = to_milliseconds(at(0))

_PROMISES = st.one_of(
    st.builds(Promise, st.integers(1, 100_000).map(lambda ms: ms / 10), st.none(), st.none(), st.integers(0, 60)),
    st.builds(
        Promise,
        st.none(),
        st.sampled_from(["* * * * *", "*/7 * * * *", "15 8 * * *", "30 2 29 3 *"]),
        st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"]),
        st.integers(0, 100_000).map(lambda ms: ms / 1000),
    ),
)
_OUTAGES = st.lists(st.integers(0, 10**7), max_size=6, unique=True).map(
    lambda cuts: [(NOON + start, NOON + end) for start, end in zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)]
)


@given(promise=_PROMISES, since=st.integers(0, 10**7), limit=st.integers(1, 3), outages=_OUTAGES)
def test_deadlines_are_those_of_the_rules(
    promise: Promise, since: int, limit: int, outages: list[tuple[int, int]]
) -> None:
    """What is worked out fast, and what is written out as a sum, is what the rules say, to the millisecond."""
    since += NOON
    base = to_milliseconds(deadline(promise, from_milliseconds(since), limit))
    expected = extend_over_outages(base, since, outages)
    rule = DeadlineRule(promise, limit, Unwatched(outages))
    assert rule(since) == expected
    assert since + rule.least <= expected
    found = work_out(Start(from_milliseconds(since), "last heartbeat"), promise, limit, Unwatched(outages))
    assert (to_milliseconds(found.base_at), to_milliseconds(found.deadline_at)) == (base, expected)
    assert round(sum(move.seconds for move in found.moves) * 1000) == expected - base
    assert found.late_at <= found.deadline_at


@pytest.mark.parametrize(
    ("seconds", "text"), [(60, "1m"), (68.25, "68.25s"), (1.5, "1.5s"), (90_061, "90061s"), (0, "0s"), (88, "1m 28s")]
)
def test_amounts_can_be_added_up(seconds: float, text: str) -> None:
    """In a sum no part of a duration is left out."""
    assert amount(seconds) == text


def test_a_promise_of_before_is_what_its_event_tells() -> None:
    """The grace is told by events of today; for older ones it is what it is now, or the default of another promise."""
    now = Promise(30.0, None, None, 7.0)
    assert promise_told({"interval_seconds": 30.0}, now) == now
    assert promise_told({"interval_seconds": 60.0}, now) == Promise(60.0, None, None, 3.0)
    assert promise_told({"interval_seconds": 60.0, "grace_seconds": 0.0}, now) == Promise(60.0, None, None, 0.0)
    assert promise_told({"schedule": "* * * * *"}, now) == Promise(None, "* * * * *", "UTC", 60.0)


def row(state: str = "ok", **columns: Any) -> Any:
    """Return a session's row: registered at noon."""
    values = {"registered_at": at(0), "ended_at": None, "paused_at": None, "last_seen_at": None}
    return SimpleNamespace(**values | {"state": state, "state_changed_at": at(50)} | columns)


def change(kind: EventType, when: float, **detail: Any) -> Change:
    return Change(to_milliseconds(at(when)), kind, detail)


def span(start: float, end: float) -> tuple[int, int]:
    return to_milliseconds(at(start)), to_milliseconds(at(end))


def test_a_silence_is_told_by_its_events() -> None:
    """It begins at the last sign, is flagged at the deadline, and ends with a sign, a pause or the end."""
    events = [
        change(EventType.DEGRADED, 30, deadline_at=at(21).isoformat(), last_seen_at=None),
        change(EventType.PAUSED, 40),
        change(EventType.RESUMED, 45),
        change(EventType.DEGRADED, 90, deadline_at=at(81).isoformat(), last_seen_at=at(60).isoformat()),
    ]
    told = told_silences(row(), events)
    assert told == [Silence(*span(0, 21), span(40, 0)[0]), Silence(*span(60, 81))]
    assert told_silences(row("degraded", last_seen_at=at(20)), []) == [Silence(*span(20, 50))]
    assert told_silences(row(), []) == []


def test_lives_and_pauses_are_told_as_far_as_events_reach() -> None:
    """What no event tells any more is taken from the session's row; a goodbye ends a pause."""
    until = to_milliseconds(at(100))
    assert live_spans(row(), [], until) == [span(0, 100)]
    assert live_spans(row(ended_at=at(40)), [], until) == [span(0, 40)]
    assert live_spans(row(), [change(EventType.DEREGISTERED, 30)], until) == [span(0, 30)]
    reopened = [change(EventType.DEREGISTERED, 30), change(EventType.REGISTERED, 60)]
    assert live_spans(row(registered_at=at(60)), reopened, until) == [span(30, 30), span(60, 100)]
    assert paused_spans(row(paused_at=at(70)), [], until) == [span(70, 100)]
    paused = [change(EventType.PAUSED, 10), change(EventType.DEREGISTERED, 30)]
    assert paused_spans(row(), paused, until) == [span(10, 30)]
    again = [*paused, change(EventType.REGISTERED, 40), change(EventType.PAUSED, 50), change(EventType.RESUMED, 60)]
    assert paused_spans(row(), again, until) == [span(10, 30), span(50, 60)]


def test_what_was_overtaken_is_told_in_its_place() -> None:
    """A registration or an end that was stored after a newer one comes before it; the verdicts keep their order."""
    stored = [
        (EventType.REGISTERED, 0),
        (EventType.REGISTERED, 60),
        (EventType.PAUSED, 70),
        (EventType.DEREGISTERED, 30),
        (EventType.REGISTERED, 50),
        (EventType.DEGRADED, 95),
        (EventType.RECOVERED, 90),
        (EventType.DEREGISTERED, 99),
    ]
    rows: Any = [SimpleNamespace(occurred_at=at(when), type=kind.value, detail=None) for kind, when in stored]
    changes = changes_of(rows)
    order = [to_milliseconds(at(when)) for when in (0, 30, 50, 60, 70, 95, 90, 99)]
    assert [change.at for change in changes] == order
    until = to_milliseconds(at(100))
    assert live_spans(row(registered_at=at(50)), changes, until) == [span(0, 30), span(50, 99)]
    assert paused_spans(row(), changes, until) == [span(70, 99)]


def test_details_that_are_no_times_do_no_harm() -> None:
    """An event whose detail has something else in place of a moment is taken by its own time."""
    broken = [change(EventType.DEGRADED, 30, deadline_at="soon", last_seen_at=7)]
    assert told_silences(row(), broken) == [Silence(*span(0, 30))]

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings, strategies as st

from fleetbeat_shared.schedules import slots_after
from fleetbeat_worker.rules import liveness
from fleetbeat_worker.rules.liveness import (
    MISSED_COUNTED,
    Promise,
    State,
    deadline,
    default_grace_seconds,
    extend_over_outages,
    missed_intervals,
    shown_state,
    silent_since,
)

NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)

moments = st.datetimes(datetime(2024, 1, 1), datetime(2024, 12, 31)).map(lambda moment: moment.replace(tzinfo=UTC))  # noqa: DTZ001 - made aware here
spans = st.integers(0, 7 * 86_400_000).map(lambda milliseconds: timedelta(milliseconds=milliseconds))
limits = st.integers(1, 5)


@st.composite
def interval_promises(draw: st.DrawFn) -> Promise:
    interval = draw(st.integers(1000, 31 * 86_400_000)) / 1000
    grace = draw(st.none() | st.integers(0, 600_000))
    return Promise(interval, None, None, default_grace_seconds(interval) if grace is None else grace / 1000)


@st.composite
def schedule_promises(draw: st.DrawFn) -> Promise:
    schedule = draw(
        st.sampled_from(["* * * * *", "*/7 * * * *", "15 8 * * *", "0 */6 * * *", "30 2 * * 1-5", "0 * * * *"])
    )
    zone = draw(st.sampled_from([None, "UTC", "Europe/Berlin", "America/New_York"]))
    return Promise(None, schedule, zone, draw(st.sampled_from([0.0, 1.0, 60.0, 300.0])))


promises = interval_promises() | schedule_promises()


@st.composite
def outage_lists(draw: st.DrawFn) -> list[tuple[datetime, datetime]]:
    """Outages in order that don't overlap, around noon."""
    edges = sorted(draw(st.lists(st.integers(-7200, 7200), max_size=8, unique=True)))
    pairs = list(pairwise(edges))[::2]
    return [(NOON + start * SECOND, NOON + end * SECOND) for start, end in pairs]


@given(st.floats(1, 31 * 86_400))
def test_default_grace_is_a_twentieth_within_bounds(interval_seconds: float) -> None:
    """Grace is 5% of the interval, never under a second and never over a minute."""
    grace = default_grace_seconds(interval_seconds)
    assert 1 <= grace <= 60
    assert grace in {1.0, 60.0, interval_seconds * 0.05}


@pytest.mark.parametrize(
    ("interval_seconds", "grace"), [(1, 1), (20, 1), (60, 3), (1200, 60), (86_400, 60), (None, 60)]
)
def test_default_grace_at_known_intervals(interval_seconds: float | None, grace: float) -> None:
    """The bounds meet the 5% at 20 s and at 20 min; a cron schedule has a minute."""
    assert default_grace_seconds(interval_seconds) == grace


@settings(deadline=None)
@given(promises, moments, spans, limits)
def test_a_later_heartbeat_never_means_an_earlier_deadline(
    promise: Promise, since: datetime, later: timedelta, limit: int
) -> None:
    """The deadline is monotonic in the time at which an agent was last seen."""
    assert deadline(promise, since, limit) <= deadline(promise, since + later, limit)


@given(interval_promises(), moments)
def test_nobody_is_degraded_before_two_full_intervals(promise: Promise, since: datetime) -> None:
    """The deadline is two intervals and the whole grace after the last heartbeat."""
    assert promise.interval_seconds is not None
    silence = deadline(promise, since, 2) - since
    assert silence >= timedelta(seconds=2 * promise.interval_seconds)
    assert abs(silence.total_seconds() - 2 * promise.interval_seconds - promise.grace_seconds) < 1e-5


@settings(deadline=None)
@given(schedule_promises(), moments, limits)
def test_one_more_slot_may_be_missed_with_a_higher_limit(promise: Promise, since: datetime, limit: int) -> None:
    """On a schedule too, each missed slot that is allowed moves the deadline on, and it lies after the heartbeat."""
    assert since < deadline(promise, since, limit) < deadline(promise, since, limit + 1)


def test_a_heartbeat_within_grace_before_a_slot_counts_for_it() -> None:
    """Cron's clock and ours may differ: a heartbeat half a minute early isn't held against the agent."""
    promise = Promise(None, "15 8 * * *", "Europe/Berlin", 60)
    slot = datetime(2024, 6, 3, 8, 15, tzinfo=ZoneInfo("Europe/Berlin"))
    second_next = slot + timedelta(days=2, minutes=1)
    assert deadline(promise, (slot - 30 * SECOND).astimezone(UTC), 2) == second_next
    assert deadline(promise, (slot + 30 * SECOND).astimezone(UTC), 2) == second_next
    assert deadline(promise, (slot - 90 * SECOND).astimezone(UTC), 2) == second_next - timedelta(days=1)


def test_a_daily_deadline_follows_the_clocks() -> None:
    """In the night in which the clocks go forward a day has 23 hours."""
    promise = Promise(None, "15 8 * * *", "Europe/Berlin", 60)
    seen = datetime(2024, 3, 30, 7, 15, 5, tzinfo=UTC)  # 8:15 in winter time
    assert deadline(promise, seen, 2) == datetime(2024, 4, 1, 6, 16, tzinfo=UTC)


@settings(deadline=None, max_examples=50)
@given(
    st.sets(st.integers(0, 59), min_size=1, max_size=3), moments, st.integers(0, 3000), st.sampled_from([0, 60, 300])
)
def test_missed_slots_equal_a_slow_count(minutes: set[int], since: datetime, elapsed: int, grace: int) -> None:
    """The missed slots of an hourly schedule are those whose grace is over, counted minute by minute on the wall."""
    zone = ZoneInfo("Europe/Berlin")
    promise = Promise(None, f"{','.join(map(str, minutes))} * * * *", "Europe/Berlin", grace)
    as_of = since + elapsed * MINUTE
    slot, missed = since.replace(second=0, microsecond=0), 0
    while slot + grace * SECOND <= as_of:
        if slot > since + grace * SECOND and slot.astimezone(zone).minute in minutes:
            missed += 1
        slot += MINUTE
    at = deadline(promise, since, 2)
    assert missed_intervals(promise, since, at, as_of, 2, count_to=1000) == missed


@settings(deadline=None)
@given(promises, moments, limits)
def test_at_the_deadline_exactly_the_limit_is_missed(promise: Promise, since: datetime, limit: int) -> None:
    """Verdict and count agree: the limit is reached at the deadline, and not a moment before."""
    at = deadline(promise, since, limit)
    assert missed_intervals(promise, since, at, at, limit) == limit
    assert missed_intervals(promise, since, at, at - timedelta(microseconds=1), limit) == limit - 1


@settings(deadline=None)
@given(promises, moments, spans, spans, limits)
def test_missed_intervals_only_grow(
    promise: Promise, since: datetime, early: timedelta, later: timedelta, limit: int
) -> None:
    """As time passes without a heartbeat, what was missed stays missed; at the heartbeat itself nothing is."""
    at = deadline(promise, since, limit)
    first = missed_intervals(promise, since, at, since + early, limit)
    assert 0 <= first <= missed_intervals(promise, since, at, since + early + later, limit)
    assert missed_intervals(promise, since, at, since, limit) == 0


@pytest.mark.parametrize("promise", [Promise(None, "* * * * *", None, 60), Promise(60, None, None, 60)])
def test_counting_stops_somewhere(promise: Promise) -> None:
    """What promises every minute and is forgotten for a year isn't counted to half a million, on neither promise."""
    at = deadline(promise, NOON, 2)
    assert missed_intervals(promise, NOON, at, NOON + timedelta(days=365), 2) == MISSED_COUNTED
    assert missed_intervals(promise, NOON, at, at + (MISSED_COUNTED - 3) * MINUTE, 2) == MISSED_COUNTED - 1


def test_no_more_slots_are_looked_for_than_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots take time to find, so one that was asked for costs one, and the whole count no more than its bound."""
    promise, looked = Promise(None, "* * * * *", None, 60), []
    at = deadline(promise, NOON, 2)

    def counting(*arguments: Any) -> Iterator[datetime]:
        for slot in slots_after(*arguments):
            looked.append(slot)
            yield slot

    monkeypatch.setattr(liveness, "slots_after", counting)
    monkeypatch.setattr(liveness, "deadline", lambda *_: at)
    year = NOON + timedelta(days=365)
    assert missed_intervals(promise, NOON, at, year, 2, count_to=1) == 1
    assert len(looked) == 1
    assert missed_intervals(promise, NOON, at, year, 2) == MISSED_COUNTED
    assert len(looked) == 1 + MISSED_COUNTED


@settings(deadline=None)
@given(promises, moments, spans, st.integers(1, 5))
def test_a_lower_bound_only_cuts_the_count(
    promise: Promise, since: datetime, elapsed: timedelta, count_to: int
) -> None:
    """Counting to less gives the same number, cut there: so one slot is enough to tell whether any was missed."""
    at = deadline(promise, since, 2)
    whole = missed_intervals(promise, since, at, since + elapsed, 2)
    assert missed_intervals(promise, since, at, since + elapsed, 2, count_to=count_to) == min(whole, count_to)


@given(outage_lists(), st.integers(0, 3600))
def test_outages_move_a_deadline_on_by_what_nobody_watched(outages: list[tuple[datetime, datetime]], wait: int) -> None:
    """A deadline never moves back, nor by more than the outages' time after the heartbeat."""
    before = NOON + wait * SECOND
    after = extend_over_outages(before, NOON, outages)
    unwatched = sum((max(timedelta(), end - max(start, NOON)) for start, end in outages), timedelta())
    assert before <= after <= before + unwatched


@given(outage_lists(), st.integers(1, 3600))
def test_an_agent_gets_its_whole_time_watched(outages: list[tuple[datetime, datetime]], wait: int) -> None:
    """Between heartbeat and moved deadline lie exactly as many watched seconds as were promised."""
    after = extend_over_outages(NOON + wait * SECOND, NOON, outages)
    watched = sum(
        not any(start <= NOON + second * SECOND < end for start, end in outages)
        for second in range((after - NOON) // SECOND)
    )
    assert watched == wait


@given(outage_lists(), st.integers(0, 3600), st.integers(0, 3600))
def test_moved_deadlines_keep_their_order(outages: list[tuple[datetime, datetime]], wait: int, more: int) -> None:
    """Of two agents seen at the same time, the one with the later deadline keeps it."""
    first = extend_over_outages(NOON + wait * SECOND, NOON, outages)
    assert first <= extend_over_outages(NOON + (wait + more) * SECOND, NOON, outages)


def test_an_outage_counts_only_where_it_covers_the_silence() -> None:
    """One before the heartbeat and one after the deadline move nothing; one that began before counts from there."""
    due = NOON + 60 * SECOND

    def moved(start: int, end: int) -> int:
        outage = (NOON + start * SECOND, NOON + end * SECOND)
        return (extend_over_outages(due, NOON, [outage]) - due) // SECOND

    assert moved(-100, -10) == 0
    assert moved(60, 600) == 0
    assert moved(-100, 30) == 30
    assert moved(10, 40) == 30
    assert moved(59, 3659) == 3600


@settings(deadline=None)
@given(promises, moments, spans, spans)
def test_what_moves_the_deadline_moves_the_count(
    promise: Promise, since: datetime, moved: timedelta, later: timedelta
) -> None:
    """After an outage an agent has missed as many intervals as without it, that much earlier."""
    assume(promise.interval_seconds is not None or later < timedelta(days=2))
    at = deadline(promise, since, 2)
    plain = missed_intervals(promise, since, at, since + later, 2)
    assert missed_intervals(promise, since, at + moved, since + later + moved, 2) == plain


@pytest.mark.parametrize("stored", list(State))
def test_only_an_agent_that_is_ok_is_shown_late(stored: State) -> None:
    """Late is derived from ok alone: pending, degraded and ended stay what they are."""
    assert shown_state(stored, 0) is stored
    assert shown_state(stored, 1) is (State.LATE if stored is State.OK else stored)


@settings(deadline=None)
@given(promises, moments, st.integers(1, 20), st.integers(1, 20))
def test_an_agents_own_limit_goes_before_the_fleets(promise: Promise, since: datetime, own: int, fleets: int) -> None:
    """With a limit of its own an agent is judged as in a fleet of that limit, in deadline and count alike."""
    limited = replace(promise, missed_limit=own)
    at = deadline(limited, since, fleets)
    assert at == deadline(promise, since, own)
    assert missed_intervals(limited, since, at, at, fleets) == own


@given(moments, st.none() | moments, st.none() | moments)
def test_silence_counts_from_the_newest_sign(
    registered_at: datetime, last_seen_at: datetime | None, resumed_at: datetime | None
) -> None:
    """It is the latest of registration, heartbeat and end of a pause, whichever of them there are."""
    since = silent_since(registered_at, last_seen_at, resumed_at)
    known = [moment for moment in (registered_at, last_seen_at, resumed_at) if moment]
    assert since in known
    assert all(since >= moment for moment in known)

"""The pure rules of incidents, flapping and agents that are stuck."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from fleetbeat_worker.rules.anomalies import is_flapping, is_incident, is_over, joins, stuck_limit, window_start
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, Promise
from helpers import seconds

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
EACH_10_SECONDS = Promise(10.0, None, None, 1.0)
EACH_HOUR = Promise(None, "0 * * * *", "UTC", 60.0)


@pytest.mark.parametrize(
    ("silent", "live", "counts"),
    [(5, 9, True), (5, 10, False), (4, 4, False), (5, 5, True), (412, 800, True), (400, 800, False)],
)
def test_when_silences_are_an_incident(silent: int, live: int, counts: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """More than half of the live agents, and five at least: exactly half is none."""
    assert is_incident(silent, live) is counts


@pytest.mark.parametrize(
    ("silent", "age", "counts"), [(1, 0, True), (1, 119.9, True), (1, 120, False), (5, 120, True), (5, 9e6, True)]
)
def test_what_joins_an_incident(silent: int, age: float, counts: bool) -> None:  # noqa: FBT001 - as above
    """Within two minutes whoever goes silent does; later only those who would be an incident by themselves."""
    assert joins(silent, 9, NOON, NOON + seconds(age)) is counts


@pytest.mark.parametrize(("members", "silent", "over"), [(6, 4, False), (6, 3, True), (7, 4, False), (7, 3, True)])
def test_when_an_incident_is_over(members: int, silent: int, over: bool) -> None:  # noqa: FBT001 - as above
    """It is over when at least half are back."""
    assert is_over(members, silent, NOON, NOON) is over


def test_an_incident_is_given_up_after_a_day() -> None:
    """A day after the last flag among those that are silent still, nobody is waited for any more."""
    assert not is_over(6, 6, NOON, NOON + timedelta(days=1) - seconds(1))
    assert is_over(6, 6, NOON, NOON + timedelta(days=1))
    assert is_over(6, 0, None, NOON)


def test_an_agent_flaps_by_its_own_intervals() -> None:
    """More changes than the limit count within twenty intervals only; the limit itself is no flapping."""
    changes = [NOON - seconds(ago) for ago in (1, 50, 100, 150, 199)]
    assert is_flapping(changes, EACH_10_SECONDS, NOON, limit=4)
    assert not is_flapping(changes, EACH_10_SECONDS, NOON, limit=5)
    assert not is_flapping(changes, EACH_10_SECONDS, NOON + seconds(1), limit=4)


def test_a_schedule_counts_twenty_slots() -> None:
    """An hourly schedule looks back twenty hours; the time since the last slot makes no difference."""
    assert window_start(EACH_HOUR, NOON) == NOON - seconds(20 * 3600)
    assert window_start(EACH_HOUR, NOON + seconds(1800)) == NOON + seconds(1800) - seconds(20 * 3600)


def test_a_schedule_that_is_gone_is_told_of() -> None:
    """What can't be worked out raises one of the errors for which an agent is set aside."""
    for promise in (Promise(None, "0 * * * *", "Mars/Olympus", 60.0), Promise(None, "0 0 30 2 *", "UTC", 60.0)):
        with pytest.raises(UNJUDGEABLE):
            window_start(promise, NOON)


@given(st.lists(st.floats(0, 400), max_size=30), st.integers(2, 20))
def test_flapping_counts_what_a_simple_count_does(ages: list[float], limit: int) -> None:
    """However changes lie, the answer is that of counting those younger than two hundred seconds."""
    changes = [NOON - seconds(age) for age in ages]
    young = [change for change in changes if NOON - change < seconds(200)]
    assert is_flapping(changes, EACH_10_SECONDS, NOON, limit) is (len(young) > limit)


@pytest.mark.parametrize(
    ("own", "fleet", "limit"),
    [(None, None, None), (None, 7, 7), (3, 7, 3), (0, 7, None), (3, None, 3), (0, None, None)],
)
def test_whose_limit_counts(own: int | None, fleet: int | None, limit: int | None) -> None:
    """An agent's own limit comes before the fleet's, and nought means never."""
    assert stuck_limit(own, fleet) == limit

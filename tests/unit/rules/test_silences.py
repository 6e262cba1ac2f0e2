from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, strategies as st

from fleetbeat_worker.rules.replay import Replay, Silence
from fleetbeat_worker.rules.spans import clip, length, merge, subtract, uptime


@dataclass(frozen=True)
class After:
    """A promise whose deadline comes so many milliseconds after a sign."""

    least: int

    def __call__(self, since: int) -> int:
        """Return the deadline."""
        return since + self.least

    before_maintenance = __call__


def replay(least: int = 20) -> Replay:
    """Return a session that was registered at 0."""
    made = Replay(After(least))
    made.register(0, After(least))
    return made


def test_a_session_that_was_never_heard_is_silent_from_its_registration() -> None:
    """It is degraded when its deadline has passed, not at it."""
    one = replay()
    one.finish(20)
    assert one.silences == []
    one.finish(21)
    assert one.silences == [Silence(0, 20)]


def test_a_heartbeat_at_the_deadline_is_in_time() -> None:
    """A silence begins after the deadline; the next heartbeat ends it when it was seen."""
    one = replay()
    one.beat(20, 20)
    one.beat(41, 41)
    one.finish(50)
    assert one.silences == [Silence(20, 40, 41)]


def test_what_waited_too_long_revives_nobody() -> None:
    """A heartbeat whose own deadline has passed moves the clock and ends no silence; an older one changes nothing."""
    one = replay()
    one.beat(50, 25)
    one.beat(51, 24)
    assert (one.since, one.last_seen_at) == (25, 25)
    one.beat(60, 45)
    assert one.silences == [Silence(0, 20, 45)]


def test_a_pause_ends_a_silence_and_its_end_starts_the_clock_anew() -> None:
    """Nothing is flagged for what was paused."""
    one = replay()
    one.pause(30)
    one.resume(100)
    one.finish(120)
    assert one.silences == [Silence(0, 20, 30)]
    one.finish(121)
    assert one.silences[1:] == [Silence(100, 120)]


def test_an_end_ends_a_pause_too() -> None:
    """Who comes back after a goodbye is judged again, though nobody resumed it."""
    one = replay()
    one.pause(10)
    one.end(15)
    one.register(100, After(20))
    one.finish(121)
    assert one.silences == [Silence(100, 120)]


def test_an_end_ends_a_silence_and_a_registration_opens_the_session_anew() -> None:
    """Nothing is expected between; a second registration of a live session is no sign of life."""
    one = replay()
    one.end(30)
    one.finish(1000)
    one.register(1000, After(20))
    one.register(1010, After(30))
    one.finish(1031)
    assert one.silences == [Silence(0, 20, 30), Silence(1000, 1030)]


def test_who_was_degraded_at_the_start_is_flagged_once() -> None:
    """A silence that began before what is played back goes on."""
    one = Replay(After(20))
    one.start(100, live=True, paused=False)
    one.begin_degraded(50, 70)
    one.beat(200, 200)
    one.finish(220)
    assert one.silences == [Silence(50, 70, 200)]


@given(gaps=st.lists(st.integers(1, 60), max_size=30), least=st.integers(1, 40))
def test_silences_are_the_gaps_that_are_too_long(gaps: list[int], least: int) -> None:
    """Without anything else there is one silence for each gap between signs that is longer than allowed."""
    one = replay(least)
    now, expected = 0, []
    for gap in gaps:
        if gap > least:
            expected.append(Silence(now, now + least, now + gap))
        now += gap
        one.beat(now, now)
    one.finish(now + least)
    assert one.silences == expected


_SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8)


def moments(spans: list[tuple[int, int]]) -> set[int]:
    return {moment for start, end in spans for moment in range(start, end)}


@given(spans=_SPANS, holes=_SPANS, start=st.integers(0, 40), more=st.integers(0, 40))
def test_spans_are_sets_of_moments(
    spans: list[tuple[int, int]], holes: list[tuple[int, int]], start: int, more: int
) -> None:
    """Merging, subtracting and clipping spans is what it is for sets of moments, and lengths are their sizes."""
    within = (start, start + more)
    whole = moments(spans)
    assert moments(merge(spans)) == whole
    assert length(merge(spans)) == len(whole)
    assert moments(subtract(spans, holes)) == whole - moments(holes)
    assert moments(clip(spans, within)) == whole & moments([within])
    wanted = whole & moments([within])
    share = len(wanted & moments(holes)) / len(wanted) if wanted else None
    assert uptime(spans, holes, within) == share

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from fleetbeat_shared.time_text import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("6h", 21_600),
        ("1d", 86_400),
        ("2w", 1_209_600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 1.5H ", 5400),
        ("45", 45),
        ("0.5", 0.5),
    ],
)
def test_durations_are_parsed(text: str, seconds: float) -> None:
    """Units, sums of units, decimals and bare seconds are understood."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 apples", "1h30", "nan", "inf", "1e3", "٣s", "5s\n5"])
def test_an_invalid_duration_is_refused_with_examples(text: str) -> None:
    """A bad duration raises a ValueError that shows how to write one."""
    with pytest.raises(ValueError, match="30s, 5m, 6h, 1d"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "0.2s"),
        (45, "45s"),
        (60, "1m"),
        (90, "1m 30s"),
        (7500, "2h 5m"),
        (86_400, "1d"),
        (273_600, "3d 4h"),
        (-45, "45s"),
    ],
)
def test_durations_are_formatted_in_two_units(seconds: float, text: str) -> None:
    """Only the two largest units are shown, and zeros are omitted."""
    assert format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=59), st.integers(min_value=0, max_value=59))
def test_short_durations_round_trip(minutes: int, seconds: int) -> None:
    """A duration formatted in two units is parsed back to the same number of seconds."""
    total = minutes * 60 + seconds
    assert parse_duration(format_duration(total)) == total

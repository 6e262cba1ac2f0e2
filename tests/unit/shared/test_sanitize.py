from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from fleetbeat_shared.sanitize import clean

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=80)


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("plain", "plain"),
        ("  around \n", "around"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;owned\x07title", "title"),
        ("\x1b]8;;https://example.com\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mred", "31mred"),
        ("\x1b(0box", "box"),
        ("one\r\ntwo\tthree\u2028four", "one two three four"),
        ("a\x00b\x07c\x7fd", "abcd"),
        ("user\u202etxt.exe", "usertxt.exe"),
        ("\u2066isolated\u2069", "isolated"),
        ("\ufeffmark", "mark"),
        ("file\udcff", "file"),
        ("naïve \U0001f600 日本", "naïve \U0001f600 日本"),
    ],
)
def test_clean_keeps_text_and_drops_control_characters(dirty: str, expected: str) -> None:
    """Escape sequences, controls, bidirectional marks and lone surrogates are removed; line breaks become a space."""
    assert clean(dirty) == expected


@given(ANY_TEXT)
def test_clean_text_is_safe_and_stable(text: str) -> None:
    """Any text becomes one line of UTF-8 without controls, and cleaning it again changes nothing."""
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert len(cleaned.splitlines()) <= 1
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in cleaned)
    cleaned.encode()

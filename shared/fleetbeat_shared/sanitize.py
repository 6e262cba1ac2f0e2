"""Sanitizer of text from users: removes control characters and escape sequences."""

from __future__ import annotations

import re

_ESCAPE_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movement
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC and other strings: window titles, links, clipboard
    r"|\x1b[ -/]*[0-~]"  # the short ones
)
_LINE_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+")
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # C0 and C1 controls
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional overrides, which make text look like other text
    r"\u2028\u2029\ufeff\ufff9-\ufffb"  # line and paragraph separators, the byte order mark, annotations
    r"\ud800-\udfff]"  # lone surrogates, as in file names that are not UTF-8: neither JSON nor SQL accepts them
)


def clean(text: str) -> str:
    """Remove control characters, escape sequences and outer white space; line breaks and tabs become a space."""
    if _UNSAFE.search(text) is None:
        return text.strip()
    text = _ESCAPE_SEQUENCE.sub("", text)
    text = _LINE_BREAKS.sub(" ", text)
    return _UNSAFE.sub("", text).strip()

"""Whole numbers as options of commands. Only the command lines import it, as it needs click."""

from __future__ import annotations

import math
from typing import Any

import click

_ENDLESS = 10**9
"""A limit that nobody comes near with a real number: it tells nothing."""


class WholeNumber(click.IntRange):
    """A whole number within limits; a mistake is told with what was typed and what is allowed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401 - click's signature
        """Return the number that a text is."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is no whole number; {self._allowed(_ENDLESS)} is allowed.", param, ctx)
        for limit, how in ((self.min, "little"), (self.max, "much")):
            if limit is not None and (number < limit if how == "little" else number > limit):
                self.fail(f"{value} is too {how}; {self._allowed()} is allowed.", param, ctx)
        return number

    def _allowed(self, endless: float = math.inf) -> str:
        least = 0 if self.min is None else self.min
        return f"at least {least}" if self.max is None or self.max > endless else f"{least} to {self.max}"

"""Types of options that both commands share. Only command lines import this module, as it needs click."""

from __future__ import annotations

import math
from typing import Any

import click

_NO_LIMIT = 10**9
"""A maximum above this is left out of an error: no sensible number reaches it."""


class WholeNumber(click.IntRange):
    """A whole number within limits; an error shows what was typed and what is allowed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401 - click's signature
        """Parse the number."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number; {self._allowed(_NO_LIMIT)} is allowed.", param, ctx)
        if self.min is not None and number < self.min:
            self.fail(f"{value} is too small; {self._allowed()} is allowed.", param, ctx)
        if self.max is not None and number > self.max:
            self.fail(f"{value} is too large; {self._allowed()} is allowed.", param, ctx)
        return number

    def _allowed(self, largest: float = math.inf) -> str:
        least = 0 if self.min is None else self.min
        return f"at least {least}" if self.max is None or self.max > largest else f"{least} to {self.max}"

"""What the agents of a simulated fleet say of what they do: now this, now that, and some of the time in circles."""

from __future__ import annotations

import random

from simulation.draw import chance, log_uniform

FLEET_LIMITS = (None, 3, 6)
"""After how many intervals a fleet's agents are stuck."""
OWN_LIMITS = (None, None, None, 0, 2, 4)
"""What agents have of their own."""
WORDS = ((), ("progress",), ("status",), ("progress", "status"), ("progress", "work_item_id", "status"))
"""Of which of the three agents speak."""


class Talk:
    """What an agent says in its heartbeats, one after the other."""

    def __init__(self, draw: random.Random, interval: int | None, limit: int | None) -> None:
        self._draw = draw
        self._lasts = interval or 1
        self._longest = 3 * self._lasts * (limit or 3)
        self._words = draw.choice(WORDS)
        self._doing = dict.fromkeys(self._words, 0)
        self._until = 0

    def say(self, moment: int) -> dict[str, str]:
        """Return the words of a heartbeat: all that it uses, or now and then none."""
        draw = self._draw
        if not self._words or chance(draw, 0.1):
            return {}
        if moment >= self._until:
            word = draw.choice(self._words)
            self._doing[word] = (self._doing[word] + draw.randint(1, 2)) % 3  # so that some come back to what they did
            self._until = moment + log_uniform(draw, self._lasts // 4 + 1, self._longest)
        return {word: f"{word} {number}" for word, number in self._doing.items()}

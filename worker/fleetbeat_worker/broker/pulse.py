"""Redis availability: a timestamp, the pulse, that each pool writes twice a second. A gap means that Redis was away.

Redis may stand still for some seconds: it forks, moves to another host, fails over, is full. No agent can reach it
then, and sweeps alone can't see that: they run each 5 s and may be late for reasons of their own. So the time between
two pulses that are farther apart than pulses ever should be is a *gap*, which is excluded from deadlines. Any pool's
pulse counts, so that one pool's own failure is no gap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from threading import Event
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from fleetbeat_shared.connection import reason
from fleetbeat_shared.redis_keys import PULSE, PULSE_GAPS
from fleetbeat_worker.rules.spans import Span, to_milliseconds
from fleetbeat_worker.telemetry.log import logger

PULSE_SECONDS = 0.5
GAP_MILLISECONDS = 1250
"""Two pulses that are farther apart leave a gap. It must be less than any agent's interval and grace together."""
GAPS_KEPT = 1000
"""In Redis, until a sweep has written them to SQL."""

_PERIOD = round(PULSE_SECONDS * 1000)

# The write comes first, so that a Redis which refuses writes has no pulse. ARGV[1] is the last pulse that this writer
# knows, for a Redis that lost its data. A gap begins when the next pulse was due, so that pulses which all come late
# leave time between their gaps. A gap that begins at 0 began at an unknown time.
_WRITE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last = tonumber(redis.call('GET', KEYS[1]) or ARGV[1])
redis.call('SET', KEYS[1], now)
if now - last <= tonumber(ARGV[2]) then return now end
local from = 0
if last > 0 then from = last + tonumber(ARGV[3]) end
redis.call('RPUSH', KEYS[2], string.format('%d:%d', from, now))
redis.call('LTRIM', KEYS[2], -tonumber(ARGV[4]), -1)
return now
"""


@dataclass(frozen=True, slots=True)
class Pulse:
    """The last pulse and the last gaps. All times are Redis's, in milliseconds since 1970."""

    at: int | None = None
    """The last pulse; None if there never was any."""
    gaps: tuple[Span, ...] = ()
    """One that begins at 0 began at an unknown time."""

    def new_gaps(self, since: int, now: int, longest: int) -> list[Span]:
        """Derive the gaps that the last sweep, at `since`, could not know of.

        A pulse that is late is a gap already. But if it had been missing for longer than `longest` at that sweep, no
        pool is running, which says nothing of Redis.
        """
        spans = [gap for gap in self.gaps if gap[1] <= now]  # later ones are of before the clock was set back
        if self.at is not None and now - self.at > GAP_MILLISECONDS and since - self.at <= longest:
            spans.append((self.at + _PERIOD, now))
        since -= GAP_MILLISECONDS  # a pulse that was no later than this was no gap yet
        return [(max(start, since), min(end, now)) for start, end in spans if max(start, since) < min(end, now)]

    def or_last_known(self, last: datetime | None) -> Pulse:
        """Complete the pulse of a Redis that lost its data by the last one that a sweep wrote to SQL."""
        return self if self.at is not None or last is None else replace(self, at=to_milliseconds(last))


class PulseWriter:
    """Writes the pulse, in a thread of its own."""

    def __init__(self, client: Redis) -> None:
        """Use a client that no other thread waits on."""
        self._script: Any = client.register_script(_WRITE)
        self._last = 0

    def write(self) -> None:
        """Write one pulse. Raises redis-py's errors."""
        self._last = int(self._script([PULSE, PULSE_GAPS], [self._last, GAP_MILLISECONDS, _PERIOD, GAPS_KEPT]))

    def run(self, stop: Event) -> None:
        """Write pulses until asked to stop, whatever happens to Redis."""
        while not stop.wait(PULSE_SECONDS):
            try:
                self.write()
            except (RedisError, OSError) as error:  # the dispatcher reports it
                logger.debug("The pulse can't be written: %s", reason(error))


def read_pulse(client: Redis) -> Pulse:
    """Read the pulse and its gaps. Raises redis-py's errors."""
    with client.pipeline(transaction=True) as pipe:
        pipe.get(PULSE)
        pipe.lrange(PULSE_GAPS, 0, -1)
        at, gaps = pipe.execute()
    spans = (gap.split(b":") for gap in gaps)
    return Pulse(None if at is None else int(at), tuple((int(start), int(end)) for start, end in spans))

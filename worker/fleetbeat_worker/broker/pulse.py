"""The pulse: in which moments Redis took what was written to it, so that agents could be heard.

A Redis that stands still for some seconds (it forks, is moved to another host, fails over, is full) hears no agent, and
sweeps alone don't see that: they come each 5 s and may be late for reasons of their own. So each pool's steward writes
a pulse twice a second. Two that are farther apart than pulses ever should be leave a *gap*, in which nobody could be
heard, and which counts for nobody. Any pool's pulse will do, so that one pool's troubles are no gap.
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
"""From how far apart on two pulses leave a gap: it must be less than any agent's interval and grace together."""
GAPS_KEPT = 1000
"""In Redis, until a sweep has written them down."""

_PERIOD = round(PULSE_SECONDS * 1000)

# It writes before anything else, so that a Redis which refuses to be written to has no pulse. What it is told of the
# last pulse is for a Redis that lost its data. A gap begins when the next pulse was due: if each one comes late, time
# goes on all the same. One from 0 on began nobody knows when.
_BEAT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last = tonumber(redis.call('GET', KEYS[1]) or '') or tonumber(ARGV[1])
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
    """What is known of the pulse. All times are Redis's, in milliseconds since 1970."""

    at: int | None = None
    """The last one; None if there never was any."""
    gaps: tuple[Span, ...] = ()
    """The last gaps; one that began at 0 began nobody knows when."""

    def unheard(self, since: int, now: int, longest: int) -> list[Span]:
        """Return the spans in which nobody could be heard that a sweep at `since`, the last one, couldn't know of.

        A pulse that is late is a gap already. But if it had been missing for longer than `longest` when that sweep
        looked, it isn't Redis that stands still: nobody is there to write it.
        """
        spans = [gap for gap in self.gaps if gap[1] <= now]  # others are of before the clock was set back
        if self.at is not None and now - self.at > GAP_MILLISECONDS and since - self.at <= longest:
            spans.append((self.at + _PERIOD, now))
        since -= GAP_MILLISECONDS  # so late a pulse was none yet
        return [(max(start, since), min(end, now)) for start, end in spans if max(start, since) < min(end, now)]

    def known_by(self, last: datetime | None) -> Pulse:
        """Return the same of a Redis that lost its data, with the last pulse that a sweep knew of."""
        return self if self.at is not None or last is None else replace(self, at=to_milliseconds(last))


def read_pulse(client: Redis) -> Pulse:
    """Return what is known of the pulse. Raises redis-py's errors."""
    with client.pipeline(transaction=True) as pipe:
        pipe.get(PULSE)
        pipe.lrange(PULSE_GAPS, 0, -1)
        at, gaps = pipe.execute()
    spans = (gap.split(b":") for gap in gaps)
    return Pulse(None if at is None else int(at), tuple((int(start), int(end)) for start, end in spans))


class PulseWriter:
    """Writes the pulse, in a thread of its own."""

    def __init__(self, client: Redis) -> None:
        """Use a client that nobody else waits on."""
        self._beat: Any = client.register_script(_BEAT)
        self._last = 0

    def beat(self) -> None:
        """Write one pulse. Raises redis-py's errors."""
        self._last = int(self._beat([PULSE, PULSE_GAPS], [self._last, GAP_MILLISECONDS, _PERIOD, GAPS_KEPT]))

    def run(self, enough: Event) -> None:
        """Write pulses until it is enough, whatever happens to Redis."""
        while not enough.wait(PULSE_SECONDS):
            try:
                self.beat()
            except (RedisError, OSError) as error:  # the dispatcher tells about it
                logger.debug("The pulse can't be written now: %s", reason(error))

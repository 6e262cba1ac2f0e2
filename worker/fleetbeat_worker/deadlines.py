"""An agent's deadline in milliseconds since 1970, as batches and sweeps reckon with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetbeat_shared.liveness import allowed_silence_seconds, deadline, extend_over_outages
from fleetbeat_worker.column_types import from_milliseconds, to_milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fleetbeat_shared.liveness import Promise


def deadline_of(promise: Promise, since: int, missed_limit: int, outages: Sequence[tuple[int, int]]) -> int:
    """Return when an agent whose silence counts from `since` becomes degraded, moved by the outages after that."""
    allowed = allowed_silence_seconds(promise, missed_limit)
    if allowed is None:
        due = to_milliseconds(deadline(promise, from_milliseconds(since), missed_limit))
    else:
        due = since + round(allowed * 1000)
    return extend_over_outages(due, since, outages) if outages else due

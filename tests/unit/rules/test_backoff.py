from __future__ import annotations

from itertools import islice

from fleetbeat_worker.rules.backoff import backoff, backoff_seconds


def test_pauses_double_up_to_the_longest() -> None:
    """Each failure in a row doubles the pause; none means no pause, and very many stay at the longest."""
    assert list(islice(backoff(0.1, 1.0), 6)) == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert [backoff_seconds(failures, 0.1, 1.0) for failures in (0, 2, 10**6)] == [0.0, 0.2, 1.0]

"""How far the pipeline is, whether verdicts are held because of it, and what to do about it.

Pure: what was read from Redis and SQL comes in, nothing is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.rules.sweep_gaps import longest_gap_seconds
from fleetbeat_worker.store.pipeline import PipelineState
from fleetbeat_worker.workers.registry import WorkerHealth

LATE_SWEEPS = 2
"""Who looks at one agent is told that verdicts are late when they are by more sweeps than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineView:
    """How far the pipeline is."""

    now: datetime
    """Redis's time; with Redis away, this machine's."""
    as_of: datetime | None
    """The moment up to which anything is known; None if Redis is away and no sweep ever ran."""
    backlog: int | None
    lag_seconds: float | None
    workers: int | None
    last_sweep_at: datetime | None
    rejected: int
    held: bool
    """Whether verdicts stand still at `as_of`, because the pipeline is behind or away."""
    trouble: str | None
    """What is wrong and what to do, in a sentence or two."""
    sweep_seconds: float = 5.0
    """How often the workers sweep."""

    @property
    def is_late(self) -> bool:
        """Whether verdicts are later than they are when all goes well, though they may not be held yet."""
        return self.as_of is not None and (self.now - self.as_of).total_seconds() > LATE_SWEEPS * self.sweep_seconds

    def to_json(self) -> dict[str, Any]:
        """Return the pipeline as `--json` prints it."""
        return {
            "backlog": self.backlog,
            "lag_seconds": self.lag_seconds,
            "workers": self.workers,
            "last_sweep_at": self.last_sweep_at,
            "rejected": self.rejected,
            "held": self.held,
            "trouble": self.trouble,
        }


def slowest_sweep_seconds(settings: Settings, stored: PipelineState) -> float:
    """Return how often is swept: the workers may do it less often than the settings of whoever looks say."""
    return max(settings.sweep_seconds, stored.sweep_seconds or 0)


def view_pipeline(  # noqa: PLR0913 - everything that the view is made of
    settings: Settings,
    stored: PipelineState,
    horizon: Horizon | None,
    *,
    crew: WorkerHealth | None,
    rejected: int,
    away: str | None,
    now: datetime,
) -> PipelineView:
    """Return how far the pipeline is.

    `horizon` and `crew` are None when Redis is away, and `away` says why; `now` is this machine's time, for then.
    """
    if horizon is None:
        return PipelineView(
            now=now,
            as_of=stored.watermark,
            backlog=None,
            lag_seconds=None,
            workers=None,
            last_sweep_at=stored.last_sweep_at,
            rejected=rejected,
            held=True,
            trouble=away,
            sweep_seconds=slowest_sweep_seconds(settings, stored),
        )
    patience = longest_gap_seconds(slowest_sweep_seconds(settings, stored))  # as late as is an outage to the sweep
    crew = crew or WorkerHealth(0)
    # By a clock that was turned back the last watermark may not have come yet.
    known = None if stored.watermark is None else min(stored.watermark, horizon.now)
    as_of = max((moment for moment in (horizon.watermark, known) if moment is not None), default=None)
    lag = max(0.0, (horizon.now - (horizon.watermark or as_of or horizon.now)).total_seconds())
    behind = _FROM_FUTURE if horizon.watermark is None else _lag_trouble(patience, lag, horizon.backlog, crew)
    unwatched = _sweep_trouble(patience, stored.last_sweep_at, horizon.now, crew)
    unwatched_since = known if unwatched is not None else None
    if unwatched_since is not None:
        # Nobody watched since: the next sweep moves every deadline by that time, so it can't count as silence here.
        as_of = unwatched_since
    return PipelineView(
        now=horizon.now,
        as_of=as_of,
        backlog=horizon.backlog,
        lag_seconds=round(lag, 3),
        workers=crew.workers,
        last_sweep_at=stored.last_sweep_at,
        rejected=rejected,
        held=behind is not None or unwatched_since is not None,
        trouble=behind or unwatched,
        sweep_seconds=slowest_sweep_seconds(settings, stored),
    )


_FROM_FUTURE = (
    "The inbox has ids of the future, which some agent gave: nothing can be judged until the workers have drained it "
    "and made it anew."
)


def _lag_trouble(patience: float, lag_seconds: float, backlog: int, crew: WorkerHealth) -> str | None:
    if lag_seconds <= patience:
        return None
    message = f"The workers are {format_duration(round(lag_seconds))} behind ({backlog:,} messages wait). "
    if not crew.workers:
        return f"{message}None is running: fleetbeat worker"
    return message + (crew.advice() or "Start more: fleetbeat worker -n 4")


def _sweep_trouble(patience: float, last_sweep_at: datetime | None, now: datetime, crew: WorkerHealth) -> str | None:
    if last_sweep_at is None:
        return "No sweep has run yet, so no silence is noticed. Start a worker: fleetbeat worker"
    seconds = (now - last_sweep_at).total_seconds()
    if seconds <= patience:
        return None
    advice = crew.advice() or "Is a worker running (fleetbeat worker)?"
    return f"The last sweep was {format_duration(round(seconds))} ago. {advice}"

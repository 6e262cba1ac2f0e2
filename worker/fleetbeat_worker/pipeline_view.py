"""How far the pipeline is, whether verdicts are held because of it, and what to do about it.

Pure: what was read from Redis and SQL comes in, nothing is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetbeat_shared.durations import format_duration

if TYPE_CHECKING:
    from datetime import datetime

    from fleetbeat_shared.settings import Settings
    from fleetbeat_worker.inbox import Horizon
    from fleetbeat_worker.store.pipeline import StoredPipeline


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


def patience_seconds(settings: Settings, stored: StoredPipeline) -> float:
    """Return how late the pipeline may be before it counts as behind: as late as would be an outage to the sweep.

    The workers may sweep less often than the settings of whoever looks say.
    """
    from fleetbeat_worker.sweep import OUTAGE_SECONDS, OUTAGE_SWEEPS  # it imports RQ, for which looking needn't wait

    return max(OUTAGE_SECONDS, OUTAGE_SWEEPS * max(settings.sweep_seconds, stored.sweep_seconds or 0))


def view_pipeline(  # noqa: PLR0913 - everything that the view is made of
    settings: Settings,
    stored: StoredPipeline,
    horizon: Horizon | None,
    *,
    workers: int | None,
    rejected: int,
    away: str | None,
    now: datetime,
) -> PipelineView:
    """Return how far the pipeline is.

    `horizon` and `workers` are None when Redis is away, and `away` says why; `now` is this machine's time, for then.
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
        )
    patience = patience_seconds(settings, stored)
    as_of = max((moment for moment in (horizon.watermark, stored.watermark) if moment is not None), default=None)
    lag = max(0.0, (horizon.now - (horizon.watermark or as_of or horizon.now)).total_seconds())
    behind = _FROM_FUTURE if horizon.watermark is None else _lag_trouble(patience, lag, horizon.backlog, workers)
    unwatched = _sweep_trouble(patience, stored.last_sweep_at, horizon.now)
    unwatched_since = stored.watermark if unwatched is not None else None
    if unwatched_since is not None:
        # Nobody watched since: the next sweep moves every deadline by that time, so it can't count as silence here.
        as_of = unwatched_since
    return PipelineView(
        now=horizon.now,
        as_of=as_of,
        backlog=horizon.backlog,
        lag_seconds=round(lag, 3),
        workers=workers,
        last_sweep_at=stored.last_sweep_at,
        rejected=rejected,
        held=behind is not None or unwatched_since is not None,
        trouble=behind or unwatched,
    )


_FROM_FUTURE = (
    "The inbox has ids of the future, which some agent gave: nothing can be judged until the workers have drained it "
    "and made it anew."
)


def _lag_trouble(patience: float, lag_seconds: float, backlog: int, workers: int | None) -> str | None:
    if lag_seconds <= patience:
        return None
    message = f"The workers are {format_duration(round(lag_seconds))} behind ({backlog:,} messages wait). "
    return message + ("Start more: fleetbeat worker -n 4" if workers else "None is running: fleetbeat worker")


def _sweep_trouble(patience: float, last_sweep_at: datetime | None, now: datetime) -> str | None:
    if last_sweep_at is None:
        return "No sweep has run yet, so no silence is noticed. Start a worker: fleetbeat worker"
    seconds = (now - last_sweep_at).total_seconds()
    if seconds <= patience:
        return None
    return f"The last sweep was {format_duration(round(seconds))} ago. Is a worker running (fleetbeat worker)?"

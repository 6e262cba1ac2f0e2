"""`fleetbeat check`: the fleet's health in one line and an exit status, for scripts and health checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

import click
from redis import Redis
from sqlalchemy import Engine

from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.errors import FleetbeatError, RedisUnavailable, SettingsError
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.broker.server import read_eviction_warning
from fleetbeat_worker.cli.exit_codes import BEHIND, DONE, REFUSED
from fleetbeat_worker.cli.options import common_options, example, open_database, open_redis
from fleetbeat_worker.cli.output import ago, counted, incident_sentence, listed, maintenance_sentence, print_json
from fleetbeat_worker.cli.types import NameType
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.fleet.agents import AgentView, FleetView, IncidentView, Selection, maintenance_json, read_fleet
from fleetbeat_worker.notifications.outbox import read_outbox
from fleetbeat_worker.notifications.targets import parse_targets
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.rules.maintenance_windows import Window


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, with the fields of `--json`."""

    status: str
    """ok, degraded, unjudged, unknown (no live agent has this name) or pipeline."""
    exit_status: int
    text: str
    degraded: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    """Agents whose deadline can't be computed."""
    stuck: tuple[str, ...] = ()
    """Agents that send heartbeats without progress for longer than they may."""
    flapping: tuple[str, ...] = ()
    as_of: datetime | None = None
    warning: str | None = None
    """What works now and may fail later, with what to do."""
    maintenance: Window | None = None
    """The maintenance that runs now, so that no agent is flagged."""
    incident: IncidentView | None = None
    """The open incident."""


@click.command(
    epilog=example(
        "fleetbeat check", "fleetbeat check --agent hint", "fleetbeat check || mail -s 'Fleet' ops < /dev/null"
    )
)
@click.option("--agent", "agent_name", type=NameType(), help="Check only the agent of this name; it must be live.")
@common_options
def check(*, settings: Settings, agent_name: str | None, as_json: bool) -> None:
    """Report the fleet's health in one line and an exit status.

    \b
    Exit status:
      0  no agent is degraded
      1  an agent is degraded or can't be judged (with --agent: or no live agent has this name)
      3  the pipeline is behind or unavailable, so that states are unknown; this takes precedence over 1

    The pipeline is behind when its oldest waiting message, or its last sweep, is older than 30 s and than three sweep
    intervals (FLEETBEAT_SWEEP_SECONDS).

    A Redis that may evict queued messages, and notifications that could not be delivered within a day, cause a warning
    on stderr. Neither a warning nor a stuck or flapping agent changes the exit status.
    """  # noqa: D301 - \b is click's mark for lines that stay as they are
    verdict = _read_verdict(settings, agent_name)
    if as_json:
        incident = verdict.incident and verdict.incident.to_json()
        print_json(asdict(verdict) | {"maintenance": maintenance_json(verdict.maintenance), "incident": incident})
    else:
        click.echo(verdict.text)
        if verdict.warning:
            click.echo(f"Warning: {verdict.warning}", err=True)
    raise SystemExit(verdict.exit_status)


def _read_verdict(settings: Settings, agent_name: str | None) -> Verdict:
    parse_targets(settings.notify_urls)
    try:
        with open_database(settings) as engine, open_redis(settings) as client:
            view = read_fleet(settings, engine, client, Selection(agent_name=agent_name, count_missed=False))
            warnings = [_eviction_warning(settings, client), _undelivered_warning(engine)]
    except SettingsError:
        raise
    except FleetbeatError as error:
        return Verdict("pipeline", BEHIND, f"PIPELINE: {clean(str(error))}")
    return replace(
        judge(view, agent_name),
        stuck=_stuck(view),
        flapping=_flapping(view),
        as_of=view.as_of,
        warning=" ".join(filter(None, warnings)) or None,
        maintenance=view.maintenance,
        incident=view.incident,
    )


def _eviction_warning(settings: Settings, client: Redis) -> str | None:
    try:
        with redis_errors(settings.redis_url):
            return read_eviction_warning(client)
    except RedisUnavailable:
        return None  # the verdict reports it


def _undelivered_warning(engine: Engine) -> str | None:
    with reading(engine) as connection:
        dead = read_outbox(connection).dead
    if not dead:
        return None
    hint = "See: fleetbeat notifications list --state dead"
    return f"{counted(dead, 'notification')} could not be delivered within a day. {hint}"


def judge(view: FleetView, agent_name: str | None = None) -> Verdict:
    """Judge a fleet: all of it, or the agents of one name."""
    if view.pipeline.trouble:
        return Verdict("pipeline", BEHIND, f"PIPELINE: {clean(view.pipeline.trouble)}")
    if agent_name is not None and not view.agents:
        return Verdict("unknown", REFUSED, f"UNKNOWN: no live agent is named {clean(agent_name)}.")
    degraded = tuple(agent.agent_name for agent in view.agents if agent.degraded)
    unjudged = tuple(agent.agent_name for agent in view.agents if agent.unjudged)
    if degraded:
        return Verdict("degraded", REFUSED, " ".join(_degraded_sentences(view, unjudged)), degraded, unjudged)
    if unjudged:
        return Verdict("unjudged", REFUSED, _unjudged_text(unjudged), unjudged=unjudged)
    return Verdict("ok", DONE, " ".join(_ok_sentences(view)))


def _degraded_sentences(view: FleetView, unjudged: tuple[str, ...]) -> list[str]:
    degraded = [agent for agent in view.agents if agent.degraded]
    names = listed([_name_with_age(agent, view.pipeline.now) for agent in degraded])
    sentences = [f"DEGRADED: {len(degraded):,} of {counted(len(view.agents), 'agent')}: {names}."]
    sentences += _downtime_sentences(view)
    return [*sentences, _unjudged_text(unjudged)] if unjudged else sentences


def _name_with_age(agent: AgentView, now: datetime) -> str:
    seen = f"last seen {ago(agent.last_seen_at, now)}" if agent.last_seen_at else "never seen"
    return f"{clean(agent.agent_name)} ({seen})"


def _unjudged_text(names: Sequence[str]) -> str:
    return (
        f"UNJUDGED: {counted(len(names), 'agent')} can't be judged: {_names(names)}. "
        "For the reason see: fleetbeat events --type unjudged; to fix it, register again with another schedule."
    )


def _ok_sentences(view: FleetView) -> list[str]:
    others = [
        f"{view.counts[state]:,} {state}" for state in (State.LATE, State.PENDING, State.PAUSED) if state in view.counts
    ]
    agents = counted(len(view.agents), "agent") + (f" ({', '.join(others)})" if others else "")
    lag = format_duration(view.pipeline.lag_seconds or 0.0)
    sentences = [f"OK: {agents}, none degraded; backlog {view.pipeline.backlog or 0:,}, lag {lag}."]
    sentences += _downtime_sentences(view)
    marked = [f"{what}: {_names(names)}." for what, names in _marked(view).items() if names]
    return [*sentences, *marked, "For details see: fleetbeat explain NAME"] if marked else sentences


def _downtime_sentences(view: FleetView) -> list[str]:
    now = view.pipeline.now
    sentences = [maintenance_sentence(view.maintenance, now)] if view.maintenance else []
    return [*sentences, incident_sentence(view.incident, now)] if view.incident else sentences


def _marked(view: FleetView) -> dict[str, tuple[str, ...]]:
    return {"Stuck": _stuck(view), "Flapping": _flapping(view)}


def _stuck(view: FleetView) -> tuple[str, ...]:
    return tuple(agent.agent_name for agent in view.agents if agent.stuck)


def _flapping(view: FleetView) -> tuple[str, ...]:
    return tuple(agent.agent_name for agent in view.agents if agent.flapping)


def _names(names: Sequence[str]) -> str:
    return listed([clean(name) for name in names])

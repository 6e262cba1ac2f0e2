"""`fleetbeat check`: is all well? For scripts and health checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

import click
from redis import Redis
from sqlalchemy import Engine

from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.errors import FleetbeatError, RedisUnavailable, SettingsError
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.broker.server import eviction_warning
from fleetbeat_worker.cli.exit_codes import BEHIND, DONE, REFUSED
from fleetbeat_worker.cli.options import common_options, example, json_option, open_database, open_redis
from fleetbeat_worker.cli.output import ago, counted, print_json
from fleetbeat_worker.cli.rendering import incident_sentence, maintenance_sentence
from fleetbeat_worker.cli.types import NameType
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.fleet.agents import AgentView, FleetView, IncidentView, Selection, maintenance_json, read_fleet
from fleetbeat_worker.notifications.outbox import read_outbox
from fleetbeat_worker.notifications.targets import parse_targets
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.rules.maintenance_windows import Window

NAMED = 10
"""How many degraded agents are named in the one line."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer."""

    status: str
    """ok, degraded, unjudged, unknown (no live agent of that name) or pipeline."""
    exit_status: int
    text: str
    degraded: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    """Who beats, and does the same for longer than it may."""
    flapping: tuple[str, ...] = ()
    as_of: datetime | None = None
    warning: str | None = None
    """What is well now and may not stay so, with what to do."""
    maintenance: Window | None = None
    """What runs now, so that nobody is flagged."""
    incident: IncidentView | None = None
    """What is open now, of the whole fleet."""


@click.command(
    epilog=example(
        "fleetbeat check", "fleetbeat check --agent hint", "fleetbeat check || mail -s 'Fleet' ops < /dev/null"
    )
)
@click.option("--agent", "agent_name", type=NameType(), help="Only about the agent of this name; it must be live.")
@json_option
@common_options
def check(*, settings: Settings, agent_name: str | None, as_json: bool) -> None:
    """Say in one line whether all is well.

    \b
    Exit status:
      0  all is well
      1  some agent is degraded or can't be judged (with --agent: or no live agent has this name)
      3  the pipeline is behind or away, so that nothing is known; this wins over 1

    Behind is a pipeline whose oldest waiting message, or last sweep, is older than 30 s and than three sweep intervals
    (FLEETBEAT_SWEEP_SECONDS).

    A Redis that may throw queued messages away, and notifications that could not be sent for a day, get a warning on
    the error output, and change no exit status. Who is stuck or flaps is named, and changes none either.
    """  # noqa: D301 - \b is click's mark for lines that stay as they are
    verdict = _ask(settings, agent_name)
    if as_json:
        print_json(
            {
                "status": verdict.status,
                "exit_status": verdict.exit_status,
                "text": verdict.text,
                "degraded": list(verdict.degraded),
                "unjudged": list(verdict.unjudged),
                "stuck": list(verdict.stuck),
                "flapping": list(verdict.flapping),
                "as_of": verdict.as_of,
                "warning": verdict.warning,
                "maintenance": maintenance_json(verdict.maintenance),
                "incident": verdict.incident and verdict.incident.to_json(),
            }
        )
    else:
        click.echo(verdict.text)
        if verdict.warning:
            click.echo(f"Warning: {verdict.warning}", err=True)
    raise SystemExit(verdict.exit_status)


def _ask(settings: Settings, agent_name: str | None) -> Verdict:
    parse_targets(settings.notify_urls)
    try:
        with open_database(settings) as engine, open_redis(settings) as client:
            view = read_fleet(settings, engine, client, Selection(agent_name=agent_name, count_missed=False))
            warnings = [_warning(settings, client), _untold(engine)]
    except SettingsError:
        raise
    except FleetbeatError as error:
        return Verdict("pipeline", BEHIND, f"PIPELINE: {clean(str(error))}")
    said = " ".join(filter(None, warnings)) or None
    verdict = judge(view, agent_name)
    verdict = replace(verdict, warning=said, maintenance=view.maintenance, incident=view.incident)
    return replace(verdict, stuck=_stuck(view), flapping=_flapping(view))


def _warning(settings: Settings, client: Redis) -> str | None:
    try:
        with redis_errors(settings.redis_url):
            return eviction_warning(client)
    except RedisUnavailable:
        return None  # the verdict says so


def _untold(engine: Engine) -> str | None:
    with reading(engine) as connection:
        dead = read_outbox(connection).dead
    if not dead:
        return None
    return f"{counted(dead, 'notification')} could not be sent for a day: fleetbeat notifications list --state dead"


def judge(view: FleetView, agent_name: str | None = None) -> Verdict:
    """Return the answer for a fleet, all of it or the agents of one name."""
    if view.pipeline.trouble:
        return Verdict("pipeline", BEHIND, f"PIPELINE: {clean(view.pipeline.trouble)}", as_of=view.as_of)
    if agent_name is not None and not view.agents:
        return Verdict("unknown", REFUSED, f"UNKNOWN: no live agent is named {clean(agent_name)}.", as_of=view.as_of)
    degraded = [agent for agent in view.agents if agent.degraded]
    unjudged = tuple(agent.agent_name for agent in view.agents if agent.unjudged)
    if not degraded and unjudged:
        return Verdict("unjudged", REFUSED, _unjudged_text(unjudged), unjudged=unjudged, as_of=view.as_of)
    if not degraded:
        return Verdict("ok", DONE, f"OK: {_summary(view)}", as_of=view.as_of)
    now = view.pipeline.now
    listed = ", ".join(_name(agent, now) for agent in degraded[:NAMED])
    more = f" and {len(degraded) - NAMED:,} more" if len(degraded) > NAMED else ""
    names = tuple(agent.agent_name for agent in degraded)
    text = f"DEGRADED: {len(degraded):,} of {counted(len(view.agents), 'agent')}: {listed}{more}"
    if view.maintenance is not None:
        text += f". {maintenance_sentence(view.maintenance, now)}"
    if view.incident is not None:
        text += f". {incident_sentence(view.incident, now).removesuffix('.')}"
    if unjudged:
        text += f". {_unjudged_text(unjudged)}"
    return Verdict("degraded", REFUSED, text, names, unjudged, as_of=view.as_of)


def _unjudged_text(names: tuple[str, ...]) -> str:
    listed = ", ".join(clean(name) for name in names[:NAMED])
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    why = "fleetbeat events --type unjudged says why; registering again with another promise mends it."
    return f"UNJUDGED: {counted(len(names), 'agent')} can't be judged: {listed}{more}; {why}"


def _name(agent: AgentView, now: datetime) -> str:
    heard = f"last heard {ago(agent.last_seen_at, now)}" if agent.last_seen_at else "never heard"
    return f"{clean(agent.agent_name)} ({heard})"


def _summary(view: FleetView) -> str:
    others = [
        f"{view.counts[state]:,} {state}" for state in (State.LATE, State.PENDING, State.PAUSED) if state in view.counts
    ]
    agents = counted(len(view.agents), "agent") + (f" ({', '.join(others)})" if others else "")
    lag = format_duration(view.pipeline.lag_seconds or 0.0)
    window = view.maintenance
    quiet = f" {maintenance_sentence(window, view.pipeline.now)}" if window is not None else ""
    if view.incident is not None:
        quiet += f" {incident_sentence(view.incident, view.pipeline.now)}"
    return f"{agents}, none degraded; backlog {view.pipeline.backlog or 0:,}, lag {lag}.{quiet}{_beside(view)}"


def _beside(view: FleetView) -> str:
    """Return who is stuck or flaps: that is told, and no reason to end with another status."""
    text = ""
    for what, names in (("Stuck", _stuck(view)), ("Flapping", _flapping(view))):
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        text += f" {what}: {', '.join(clean(name) for name in names[:NAMED])}{more}." if names else ""
    return text and f"{text} fleetbeat explain NAME says why."


def _stuck(view: FleetView) -> tuple[str, ...]:
    return tuple(agent.agent_name for agent in view.agents if agent.stuck)


def _flapping(view: FleetView) -> tuple[str, ...]:
    return tuple(agent.agent_name for agent in view.agents if agent.flapping)

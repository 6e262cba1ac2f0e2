from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleetbeat_producer.cron.fleet_file import FleetFile, read_fleet_file
from fleetbeat_shared.errors import SettingsError
from fleetbeat_shared.identifiers import stable_session_id

EXAMPLE = Path(__file__).parents[3] / "docs" / "agents.toml"


def read(folder: Path, text: str) -> FleetFile:
    path = folder / "agents.toml"
    path.write_text(text, encoding="utf-8")
    return read_fleet_file(path)


def test_the_example_file_has_four_agents() -> None:
    """docs/agents.toml lists four agents with their intervals and schedules, each with a summary and a status."""
    agents = read_fleet_file(EXAMPLE).agents
    promised = [(agent.name, agent.registration.interval_seconds, agent.registration.schedule) for agent in agents]
    assert promised == [
        ("hint", 21_600, None),
        ("torv", None, "15 8 * * *"),
        ("rams", None, "20 8 * * *"),
        ("kami", None, "30 0 * * *"),
    ]
    assert {agent.time_zone for agent in agents} == {"UTC"}
    assert all(agent.heartbeat.status == "ok" and agent.heartbeat.summary for agent in agents)
    assert [agent.registration.session_id for agent in agents] == [stable_session_id(agent.name) for agent in agents]


def test_an_agents_own_keys_override_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key reaches its field; paths are relative to the file or to home; text is cleaned as in messages."""
    monkeypatch.setenv("HOME", "/home/somebody")
    fleet = read(
        tmp_path,
        """
        [defaults]
        time_zone = "Europe/Berlin"
        grace = "5m"
        missed = 3
        stuck_after = 20
        project = "shared"
        status = "ok"
        log_file = "~/beats.log"
        redis_url_file = "../secrets/redis url"

        [[agents]]
        name = " one "
        cron = " 15  8 * * * "

        [[agents]]
        name = "two"
        every = "1h30m"
        time_zone = "UTC"
        grace = "10s"
        missed = 1
        stuck_after = 0
        project = "own"
        status = "busy"
        log_file = "two.log"
        work = "w"
        summary = \"\"\"two
        lines\"\"\"
        progress = "p"
        work_item = "W-1"
        open_tasks = 3
        stale_tasks = 0
        metadata = { model = "small" }
        """,
    )
    one, two = fleet.agents
    assert fleet.path == tmp_path / "agents.toml"
    assert fleet.redis_url_file == tmp_path.parent / "secrets" / "redis url"
    assert (one.name, one.time_zone, one.log_file) == ("one", "Europe/Berlin", Path("/home/somebody/beats.log"))
    promised = one.registration
    assert (promised.schedule, promised.time_zone, promised.grace_seconds) == ("15 8 * * *", "Europe/Berlin", 300)
    assert (promised.project, one.heartbeat.status) == ("shared", "ok")
    assert [(agent.registration.missed_intervals, agent.registration.stuck_after) for agent in fleet.agents] == [
        (3, None),
        (1, 0),
    ]
    assert (two.time_zone, two.log_file) == ("UTC", tmp_path / "two.log")
    promised = two.registration
    assert (promised.interval_seconds, promised.time_zone, promised.grace_seconds) == (5400, None, 10)
    assert (promised.project, promised.work, promised.metadata) == ("own", "w", {"model": "small"})
    heartbeat = two.heartbeat
    assert (heartbeat.status, heartbeat.progress, heartbeat.work_item_id) == ("busy", "p", "W-1")
    assert re.fullmatch(r"two +lines", heartbeat.summary or "")
    assert (heartbeat.open_tasks, heartbeat.stale_tasks) == (3, 0)


ONE = '[[agents]]\nname = "torv"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"top level: agents: there are none; write \[\[agents\]\]"),
        ("agents = 3", "top level: agents: there are none"),
        ('[[agent]]\nname = "torv"', "top level: agent: there is no such key; valid keys are defaults, agents"),
        ("defaults = 3", "top level: defaults: it is not a table"),
        ("[[agents]", "is not valid TOML: .*line 1"),
        ("[defaults]\nevery = '6h'\n" + ONE, r"\[defaults\]: every: there is no such key; valid keys are time_zone"),
        ("[defaults]\nredis_url_file = ''\n" + ONE + 'every = "6h"', r"\[defaults\]: redis_url_file: it is not a path"),
        ('[[agents]]\nevery = "6h"', "agent 1: name: it is missing"),
        ('[[agents]]\nname = 7\nevery = "6h"', "agent 1: name: 7 is not text"),
        ('[[agents]]\nname = ""\nevery = "6h"', 'agent "": name: it is empty; 1 to 64 characters'),
        (ONE, 'agent "torv": every, cron: give either every = "6h" or cron ='),
        (ONE + 'every = "6h"\ncron = "15 8 * * *"', "every, cron: give either"),
        (ONE + 'every = "often"', 'agent "torv": every: .often. is not a duration. Examples: 30s'),
        (ONE + "every = 30", 'every: it needs quotes. Examples: "30s"'),
        (ONE + 'every = "0s"', "every: 0s is too small; 1s to 31d is allowed"),
        (ONE + 'every = "32d"', "every: 32d is too large; 1s to 31d is allowed"),
        (ONE + 'cron = "15 25 * * *"', "cron: '15 25 [*] [*] [*]' is not a cron expression"),
        (ONE + 'cron = "@daily"\nstuck_after = 5', "stuck_after: it needs every; an agent on a schedule is never"),
        (
            ONE.replace("torv", "to\\u001brv") + 'every = "6h"',
            r"name: it has characters that can't be printed \(U\+001B",
        ),
        (ONE + 'cron = "@reboot"', "cron: '@reboot' is not a cron expression"),
        (ONE + 'cron = "15 8 * * *"\ntime_zone = "Mars/Olympus"', "time_zone: 'Mars/Olympus' is not a time zone"),
        (ONE + 'every = "6h"\ntime_zone = "Mars/Olympus"', "time_zone: 'Mars/Olympus' is not a time zone"),
        (ONE + 'every = "6h"\nstatsu = "ok"', "statsu: there is no such key; valid keys are name, every"),
        (ONE + 'every = "6h"\nwork_item = 3', "work_item: 3 is not text"),
        (ONE + f'every = "6h"\nsummary = "{"x" * 501}"', "summary: it has 501 characters; at most 500 are"),
        (ONE + 'every = "6h"\nopen_tasks = -1', "open_tasks: -1 is too small; 0 to 2147483647 is allowed"),
        (ONE + 'every = "6h"\nlog_file = "a\\nb"', "log_file: it is not a path"),
        (
            ONE + 'every = "6h"\n' + ONE.replace("torv", " torv ") + 'every = "1h"',
            'agent "torv": name: another agent has',
        ),
    ],
)
def test_an_error_names_file_agent_and_key(tmp_path: Path, text: str, expected: str) -> None:
    """Whatever is wrong, the sentence says where, and what would be right."""
    with pytest.raises(SettingsError, match=expected) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'agents.toml'}")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file that doesn't exist, or isn't text, is reported with its path."""
    with pytest.raises(SettingsError, match=r"gone\.toml can't be read: No such file"):
        read_fleet_file(tmp_path / "gone.toml")
    (tmp_path / "agents.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not valid TOML"):
        read_fleet_file(tmp_path / "agents.toml")

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleetbeat_shared.errors import SettingsError
from fleetbeat_worker.notifications.apprise_sender import check_targets, hide
from fleetbeat_worker.notifications.targets import parse_targets, targets_for


def numbers(text: str, agent_name: str | None, project: str | None = None, *, fleet_wide: bool = False) -> list[int]:
    found = targets_for(parse_targets(text), agent_name, project, fleet_wide=fleet_wide)
    return [target.number for target in found]


URLS = """
    json://all.example/a=b:c
    agent:crawler-*=mailto://u:p@mail.example?to=x@y.example
    project:billing=json://billing.example/
"""


@pytest.mark.parametrize(
    ("agent_name", "project", "expected"),
    [
        ("torv", None, [1]),
        ("crawler-7", None, [1, 2]),
        ("crawler-7", "billing", [1, 2, 3]),
        ("Crawler-7", "Billing", [1]),
        (None, None, [1]),
    ],
)
def test_patterns_choose(agent_name: str | None, project: str | None, expected: list[int]) -> None:
    """A target without a pattern gets all; one with a pattern what concerns an agent or a project that fits it."""
    assert numbers(URLS, agent_name, project) == expected


def test_what_concerns_the_fleet() -> None:
    """It goes to the targets without a pattern; if each has one, to all of them."""
    assert numbers(URLS, None, fleet_wide=True) == [1]
    assert numbers("agent:a=json://x agent:b=json://y", None, fleet_wide=True) == [1, 2]


def test_each_url_once() -> None:
    """Who is named twice is told once, by whichever pattern fits."""
    assert numbers("json://x json://x agent:a*=json://x project:p=json://x", "ab", "p") == [1]
    assert numbers("agent:z=json://x project:p=json://x", "ab", "p") == [2]


def test_names_are_compared_in_one_spelling() -> None:
    """A pattern with a decomposed letter fits the name that is stored composed."""
    assert numbers("agent:cafe\u0301=json://x", "caf\u00e9") == [1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("json://x s3cret-thing", "target 2 is no URL"),
        ("agent:crawler-*=s3cret", "target 1 is no URL"),
        ("agent:=json://s3cret", "target 1 has no pattern or no URL after agent:"),
        ("project:s3cret", "target 1 has no pattern or no URL after project:"),
        ("://s3cret", "target 1 is no URL"),
    ],
)
def test_malformed_targets(text: str, told: str) -> None:
    """A target that can't be one is told by its place, with what to write, and without anything of it."""
    with pytest.raises(SettingsError) as caught:
        parse_targets(text)
    assert told in str(caught.value)
    assert "FLEETBEAT_NOTIFY_URLS" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_nothing_of_a_url_is_shown() -> None:
    """A target's title and its repr have the scheme and the pattern; its fingerprint follows the URL alone."""
    first, second, third = parse_targets("slack://T0K3N/b agent:x=slack://T0K3N/b slack://other")
    assert first.title == "target 1 (slack)"
    assert second.title == "target 2 (slack, agent:x)"
    assert "T0K3N" not in repr((first, second))
    assert first.fingerprint == second.fingerprint != third.fingerprint


def test_the_documentations_examples_can_be_used() -> None:
    """Each target in docs/notifications.md is one that Apprise takes."""
    page = (Path(__file__).parents[3] / "docs" / "notifications.md").read_text()
    examples = [block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "://" in block]
    assert len(examples) == 2
    for block in examples:
        check_targets(block)


@pytest.mark.parametrize(
    ("url", "said", "told"),
    [
        ("json://u:pass%40word@h.example/T0K3N?-sig=abc", "no pass@word at h.example/T0K3N, abc", "no …@… at …/…, …"),
        ("slack://T1/A1/xyz", "T1 is no A1: xyzzy", "… is no …: xyzzy"),
        ("json://h/", "oh, h", "oh, …"),
        ("json://u:secret@h/", "Secretly secretsecret\nsecret", "Secretly …… …"),
    ],
)
def test_what_stands_in_a_url_is_hidden(url: str, said: str, told: str) -> None:
    """Parts of a URL are hidden in what a service says, as written and as meant; short ones where they are a word."""
    assert hide(said, url) == told

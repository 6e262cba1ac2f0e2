from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleetbeat_shared.errors import SettingsError
from fleetbeat_worker.notifications.apprise_sender import check_targets, hide
from fleetbeat_worker.notifications.targets import parse_targets, select_targets


def numbers(text: str, agent_name: str | None, project: str | None = None) -> list[int]:
    return [target.number for target in select_targets(parse_targets(text), agent_name, project)]


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
def test_patterns_select_targets(agent_name: str | None, project: str | None, expected: list[int]) -> None:
    """Targets with a pattern get what matches it; those without one get everything, also about the fleet."""
    assert numbers(URLS, agent_name, project) == expected


def test_the_fleet_has_a_target_if_there_is_any() -> None:
    """If every target has a pattern, notifications about the fleet go to all."""
    assert numbers("agent:a=json://x agent:b=json://y", None) == [1, 2]


def test_each_url_is_selected_once() -> None:
    """A URL that several targets have is selected once, with whichever pattern matches."""
    assert numbers("json://x json://x agent:a*=json://x project:p=json://x", "ab", "p") == [1]
    assert numbers("agent:z=json://x project:p=json://x", "ab", "p") == [2]


def test_patterns_are_normalised() -> None:
    """A pattern with a decomposed letter matches a name, which is stored composed."""
    assert numbers("agent:cafe\u0301=json://x", "caf\u00e9") == [1]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("json://x s3cret-thing", "target 2 is not a URL"),
        ("agent:crawler-*=s3cret", "target 1 is not a URL"),
        ("agent:=json://s3cret", "target 1 has no pattern or no URL. Write agent:PATTERN=URL."),
        ("project:s3cret", "target 1 has no pattern or no URL. Write project:PATTERN=URL."),
        ("://s3cret", "target 1 is not a URL"),
    ],
)
def test_malformed_targets(text: str, error: str) -> None:
    """The error has the variable and the target's position, and no part of its URL."""
    with pytest.raises(SettingsError) as caught:
        parse_targets(text)
    assert str(caught.value).startswith(f"FLEETBEAT_NOTIFY_URLS: {error}")
    assert "s3cret" not in str(caught.value)


def test_targets_are_shown_without_their_url() -> None:
    """A target's title and repr have the scheme and the pattern; its fingerprint depends on the URL only."""
    first, second, third = parse_targets("slack://T0K3N/b agent:x=slack://T0K3N/b slack://other")
    assert first.title == "target 1 (slack)"
    assert second.title == "target 2 (slack, agent:x)"
    assert "T0K3N" not in repr((first, second))
    assert first.fingerprint == second.fingerprint != third.fingerprint


def test_the_examples_in_the_docs_can_be_used() -> None:
    """Apprise accepts each target in docs/notifications.md."""
    page = (Path(__file__).parents[3] / "docs" / "notifications.md").read_text()
    examples = [block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "://" in block]
    assert len(examples) == 2
    for block in examples:
        check_targets(block)


@pytest.mark.parametrize(
    ("url", "text", "hidden"),
    [
        ("json://u:pass%40word@h.example/T0K3N?-sig=abc", "no pass@word at h.example/T0K3N, abc", "no …@… at …/…, …"),
        ("slack://T1/A1/xyz", "T1 is no A1: xyzzy", "… is no …: xyzzy"),
        ("json://h/", "oh, h", "oh, …"),
        ("json://u:secret@h/", "Secretly secretsecret\nsecret", "Secretly …… …"),
    ],
)
def test_parts_of_a_url_are_hidden_in_failures(url: str, text: str, hidden: str) -> None:
    """Parts of a URL are hidden in a service's answer, encoded and decoded; short ones only as whole words."""
    assert hide(text, url) == hidden

"""Targets: parses FLEETBEAT_NOTIFY_URLS, and selects the targets of a notification.

Pure. Any part of a target's URL may be secret, so nothing here shows more of it than the scheme.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256

from fleetbeat_shared.errors import SettingsError
from fleetbeat_shared.identifiers import normalise_name

VARIABLE = "FLEETBEAT_NOTIFY_URLS"

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://\S+", re.ASCII)
_ROUTED = re.compile(r"(agent|project):(?!//)([^=]*)(=?)(.*)", re.DOTALL)
_FINGERPRINT_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Target:
    """A receiver of notifications."""

    number: int
    """Its position in the variable, from 1 on."""
    url: str = field(repr=False)
    scheme: str
    scope: str | None = None
    """What the pattern is compared with: `agent`, `project`, or nothing."""
    pattern: str | None = None
    """`*` matches any characters, `?` one, `[ab]` one of these."""

    @property
    def fingerprint(self) -> str:
        """Identifies the target in SQL, as long as its URL is the same."""
        return sha256(self.url.encode()).hexdigest()[:_FINGERPRINT_LENGTH]

    @property
    def title(self) -> str:
        """Identifies the target for people: `target 2 (mailto, agent:crawler-*)`."""
        route = f", {self.scope}:{self.pattern}" if self.scope else ""
        return f"target {self.number} ({self.scheme}{route})"

    def matches(self, agent_name: str | None, project: str | None) -> bool:
        """Whether notifications about an agent of this name and project go to it."""
        if self.pattern is None:
            return True
        name = agent_name if self.scope == "agent" else project
        return name is not None and fnmatchcase(name, self.pattern)


def parse_targets(text: str) -> list[Target]:
    """Parse the value of FLEETBEAT_NOTIFY_URLS; a URL that is repeated with the same pattern is one target.

    Raises SettingsError, which names the target by its position and shows nothing of its URL.
    """
    targets: list[Target] = []
    for number, word in enumerate(text.split(), start=1):
        target = _parse(number, word)
        known = [(other.url, other.scope, other.pattern) for other in targets]
        if (target.url, target.scope, target.pattern) not in known:
            targets.append(target)
    return targets


def _parse(number: int, word: str) -> Target:
    scope = pattern = None
    url = word
    routed = _ROUTED.fullmatch(word)
    if routed is not None:
        scope, pattern, equals, url = routed.groups()
        pattern = normalise_name(pattern)
        if not pattern or not equals:
            message = f"{VARIABLE}: target {number} has no pattern or no URL. Write {scope}:PATTERN=URL."
            raise SettingsError(message)
    scheme = _URL.fullmatch(url)
    if scheme is None:
        message = (
            f"{VARIABLE}: target {number} is not a URL. Write SCHEME://…, agent:PATTERN=SCHEME://… or "
            "project:PATTERN=SCHEME://…, with white space between targets. docs/notifications.md has examples."
        )
        raise SettingsError(message)
    return Target(number, url, scheme.group(1).lower(), scope, pattern)


def select_targets(targets: Sequence[Target], agent_name: str | None, project: str | None) -> list[Target]:
    """Select the targets of a notification about an agent, or without a name about the fleet; each URL once.

    Notifications about the fleet go to the targets without a pattern, or to all if each has one: rather to too many
    than to none.
    """
    if agent_name is None:
        selected = [target for target in targets if target.pattern is None] or list(targets)
    else:
        selected = [target for target in targets if target.matches(agent_name, project)]
    by_url: dict[str, Target] = {}
    for target in selected:
        by_url.setdefault(target.url, target)
    return list(by_url.values())

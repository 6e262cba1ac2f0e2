"""Who is told what: the targets that FLEETBEAT_NOTIFY_URLS names, and which of them a notification is for.

Pure. A target's URL has secrets in it, and not only where a password stands: nothing here shows any part of it but the
scheme.
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
_PATTERN = re.compile(r"(agent|project):(?!//)([^=]*)(=?)(.*)", re.DOTALL)
_FINGERPRINT_LETTERS = 16


@dataclass(frozen=True, slots=True)
class Target:
    """Somewhere that notifications are sent to."""

    number: int
    """Its place in the variable, from 1 on."""
    url: str = field(repr=False)
    scheme: str
    by: str | None = None
    """`agent` or `project`, if it is told only of some."""
    pattern: str | None = None
    """Which: `*` stands for any letters, `?` for one, `[ab]` for one of these."""

    @property
    def fingerprint(self) -> str:
        """What stands for it in SQL: the same as long as its URL is the same."""
        return sha256(self.url.encode()).hexdigest()[:_FINGERPRINT_LETTERS]

    @property
    def title(self) -> str:
        """What people know it by: `target 2 (mailto, agent:crawler-*)`."""
        chosen = f", {self.by}:{self.pattern}" if self.by else ""
        return f"target {self.number} ({self.scheme}{chosen})"

    def wants(self, agent_name: str | None, project: str | None) -> bool:
        """Return whether it is told what concerns an agent of this name, of this project."""
        if self.pattern is None:
            return True
        name = agent_name if self.by == "agent" else project
        return name is not None and fnmatchcase(name, self.pattern)


def parse_targets(text: str) -> list[Target]:
    """Return the targets that FLEETBEAT_NOTIFY_URLS names, each URL with the same pattern once.

    Raises SettingsError, which says what is wrong with which of them, and shows nothing of a URL.
    """
    targets: list[Target] = []
    for number, word in enumerate(text.split(), start=1):
        target = _parse(number, word)
        if all((target.url, target.by, target.pattern) != (one.url, one.by, one.pattern) for one in targets):
            targets.append(target)
    return targets


def _parse(number: int, word: str) -> Target:
    by = pattern = None
    url = word
    chosen = _PATTERN.fullmatch(word)
    if chosen is not None:
        by, pattern, equals, url = chosen.groups()
        pattern = normalise_name(pattern)
        if not pattern or not equals:
            message = f"{VARIABLE}: target {number} has no pattern or no URL after {by}:; write {by}:PATTERN=URL."
            raise SettingsError(message)
    scheme = _URL.fullmatch(url)
    if scheme is None:
        message = (
            f"{VARIABLE}: target {number} is no URL; write SCHEME://…, or agent:PATTERN=SCHEME://…, or "
            "project:PATTERN=SCHEME://…, with white space between targets. docs/notifications.md has examples."
        )
        raise SettingsError(message)
    return Target(number, url, scheme.group(1).lower(), by, pattern)


def targets_for(
    targets: Sequence[Target], agent_name: str | None, project: str | None, *, fleet_wide: bool
) -> list[Target]:
    """Return whom a notification is for, each URL once.

    What concerns the whole fleet goes to the targets without a pattern, or to all if each has one: better told to too
    many than to nobody.
    """
    if fleet_wide:
        chosen = [target for target in targets if target.pattern is None] or list(targets)
    else:
        chosen = [target for target in targets if target.wants(agent_name, project)]
    by_url: dict[str, Target] = {}
    for target in chosen:
        by_url.setdefault(target.url, target)
    return list(by_url.values())

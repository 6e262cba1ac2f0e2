"""Sending a message to one target through Apprise.

Apprise is imported here alone, when the first target is opened: nobody pays for it who sends nothing. A URL's secrets
stay in it: what Apprise says is kept out of the log, and told without anything that stands in the URL.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from fleetbeat_shared.errors import SettingsError
from fleetbeat_shared.sanitize import clean
from fleetbeat_worker.notifications.messages import Message
from fleetbeat_worker.notifications.targets import VARIABLE, Target, parse_targets

if TYPE_CHECKING:
    from apprise import AppriseAsset

SEND_SECONDS = 15.0
"""How long a receiver may take for one message, however it dawdles: a worker that waits for it does nothing else."""
LONGEST_REASON = 300

_WITH_DATA = {"json", "jsons", "xml", "xmls", "form", "forms"}
"""Receivers that are programs: they get the key and what it is about as fields of their own, too."""
_SURE_LETTERS = 5
"""A part of a URL with so many letters is hidden wherever it stands, a shorter one where it is a word."""


class Sender:
    """Sends to one target."""

    def __init__(self, target: Target) -> None:
        """Open a target; nothing is sent by that. Raises SettingsError when its URL is none that Apprise can use."""
        self.target = target
        self._asset = _asset()
        self._plugin = self._open(target.url)

    @property
    def pause_seconds(self) -> float:
        """How long to wait between two messages, as the service behind it asks for."""
        return float(self._plugin.request_rate_per_sec)

    def send(self, message: Message) -> str | None:
        """Send a message; return why it didn't arrive, without secrets, or None if it did. Raises nothing."""
        answer: list[str | None] = []

        def ask() -> None:
            try:
                answer.append(self._send(message))
            except Exception as error:  # noqa: BLE001 - any of a hundred services' plugins
                answer.append(hide(f"{type(error).__name__}: {error}", self.target.url))

        # A socket's time-out bounds each wait for it, and not their sum. A thread that hangs is left behind; it ends
        # with the job's process, if not before.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(SEND_SECONDS)
        return answer[0] if answer else f"It didn't answer within {SEND_SECONDS:g} s."

    def _send(self, message: Message) -> str | None:
        from apprise import Apprise, NotifyFormat

        plugin = self._plugin
        if self.target.scheme in _WITH_DATA:
            plugin = self._open(_with_data(self.target.url, message))
        courier = Apprise(asset=self._asset)
        courier.add(plugin)
        result = courier.notify(
            body=message.body, title=message.title, notify_type=message.mood.value, body_format=NotifyFormat.TEXT
        )
        if result:
            return None
        said = [entry.message for entry in result.logs()]
        return hide(" ".join(said) or "It was refused, and nothing was said about it.", self.target.url)

    def _open(self, url: str) -> Any:  # noqa: ANN401 - one of Apprise's plugins, which have no common type for this
        from apprise import Apprise

        with warnings.catch_warnings():  # its modules are loaded at the first URL
            warnings.simplefilter("ignore", DeprecationWarning)
            plugin = Apprise.instantiate(url, asset=self._asset)
        if plugin is None:
            message = (
                f"{VARIABLE}: {self.target.title} can't be used: Apprise knows no such scheme, or a part of the URL is "
                "missing or malformed. https://appriseit.com says how it is written."
            )
            raise SettingsError(message)
        return plugin


def check_targets(text: str) -> None:
    """Make sure that each target of FLEETBEAT_NOTIFY_URLS can be used; nothing is sent. Raises SettingsError.

    A process that does this before it forks has imported Apprise for its children.
    """
    for target in parse_targets(text):
        Sender(target)


def hide(text: str, url: str) -> str:
    """Return a text on one line, with everything that stands in a URL, but its scheme, replaced by `…`."""
    told = clean(text)
    for part in sorted(set(_parts(url)), key=len, reverse=True):
        word = re.escape(part)
        told = re.sub(word if len(part) >= _SURE_LETTERS else rf"(?<!\w){word}(?!\w)", "…", told)
    return told if len(told) <= LONGEST_REASON else f"{told[:LONGEST_REASON]}…"


def _parts(url: str) -> Iterator[str]:
    """Yield what may be secret, as it is written and as it is meant: in some URLs the host is a token."""
    _, _, rest = url.partition("://")
    bare, _, query = rest.partition("?")
    values = [value for _, value in parse_qsl(query)]
    for text in (bare, unquote(bare), *values, *(value.partition("=")[2] for value in query.split("&"))):
        yield from (part for part in re.split(r"[/:@,?&#\s]+", text) if part)


def _with_data(url: str, message: Message) -> str:
    fields = {
        "key": message.key,
        "kind": message.kind,
        "agent": message.agent_name or "",
        "project": message.project or "",
    }
    extras = urlencode({f":{name}": value for name, value in fields.items() if value})
    return f"{url}{'&' if urlsplit(url).query else '?'}{extras}"


@lru_cache
def _asset() -> AppriseAsset:
    """Import Apprise; return what all its plugins share."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it looks for modules that newer Pythons lack
        from apprise import AppriseAsset, PersistentStoreMode

    for name in ("apprise", "urllib3", "requests"):  # they would log URLs
        silent = logging.getLogger(name)
        silent.propagate = False
        silent.addHandler(logging.NullHandler())
    return AppriseAsset(
        app_id="Fleetbeat",
        app_desc="Fleetbeat",
        app_url="",
        image_url_mask="",
        image_url_logo="",
        async_mode=False,
        allow_templates=False,
        pgp_autogen=False,
        pem_autogen=False,
        service_timeout=0,  # ours; Apprise would use a pool of threads, which no fork survives
        storage_mode=PersistentStoreMode.MEMORY,
    )

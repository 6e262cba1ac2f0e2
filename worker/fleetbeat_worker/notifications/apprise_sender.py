"""Apprise sender: sends messages to one target through Apprise.

Apprise is imported here only, when the first target is opened, so that processes that send nothing don't load it.
A target's URL contains secrets: Apprise's own log records are discarded, and failures are stored without any part of
the URL.
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
"""How long a receiver may take for one message in all: a worker that waits for it does nothing else."""
REASON_LIMIT = 300
"""How many characters of a failure's reason are kept."""

_WITH_DATA = {"json", "jsons", "xml", "xmls", "form", "forms"}
"""Schemes of webhooks: they also get the key, the kind, the agent and the project as fields."""
_UNIQUE_LENGTH = 5
"""A part of a URL with this many characters is hidden wherever it occurs; a shorter one only as a whole word."""


class Sender:
    """Sends to one target."""

    def __init__(self, target: Target) -> None:
        """Open a target without sending anything. Raises SettingsError when Apprise can't use its URL."""
        self.target = target
        self._asset = _asset()
        self._plugin = self._open(target.url)

    @property
    def pause_seconds(self) -> float:
        """The pause between two messages that the service requires."""
        return float(self._plugin.request_rate_per_sec)

    def send(self, message: Message) -> str | None:
        """Send a message; return the reason of a failure without secrets, or None. Raises nothing."""
        result: list[str | None] = []

        def send() -> None:
            try:
                result.append(self._send(message))
            except Exception as error:  # noqa: BLE001 - any of a hundred services' plugins
                result.append(hide(f"{type(error).__name__}: {error}", self.target.url))

        # A socket's time-out bounds each read, not their sum. A thread that hangs is abandoned; it ends at the latest
        # with the job's process.
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        thread.join(SEND_SECONDS)
        return result[0] if result else f"No answer within {SEND_SECONDS:g} s."

    def _send(self, message: Message) -> str | None:
        from apprise import Apprise, NotifyFormat

        plugin = self._plugin
        if self.target.scheme in _WITH_DATA:
            plugin = self._open(_with_data(self.target.url, message))
        apprise = Apprise(asset=self._asset)
        apprise.add(plugin)
        result = apprise.notify(
            body=message.body, title=message.title, notify_type=message.type.value, body_format=NotifyFormat.TEXT
        )
        if result:
            return None
        reasons = " ".join(entry.message for entry in result.logs())
        return hide(reasons or "The service refused it without a reason.", self.target.url)

    def _open(self, url: str) -> Any:  # noqa: ANN401 - one of Apprise's plugins, which have no common type for this
        from apprise import Apprise

        with warnings.catch_warnings():  # its modules are loaded at the first URL
            warnings.simplefilter("ignore", DeprecationWarning)
            plugin = Apprise.instantiate(url, asset=self._asset)
        if plugin is None:
            message = (
                f"{VARIABLE}: {self.target.title} can't be used: its scheme is unknown, or its URL is malformed. "
                "See https://appriseit.com"
            )
            raise SettingsError(message)
        return plugin


def check_targets(text: str) -> None:
    """Check that each target of FLEETBEAT_NOTIFY_URLS can be used, without sending anything. Raises SettingsError.

    A process that does this before it forks has imported Apprise for its children.
    """
    for target in parse_targets(text):
        Sender(target)


def hide(text: str, url: str) -> str:
    """Reduce a text to one line, in which every part of a URL except its scheme is replaced by `…`."""
    hidden = clean(text)
    for part in sorted(set(_parts(url)), key=len, reverse=True):
        pattern = re.escape(part)
        hidden = re.sub(pattern if len(part) >= _UNIQUE_LENGTH else rf"(?<!\w){pattern}(?!\w)", "…", hidden)
    return hidden if len(hidden) <= REASON_LIMIT else f"{hidden[:REASON_LIMIT]}…"


def _parts(url: str) -> Iterator[str]:
    """Yield the parts that may be secret, encoded and decoded: in some URLs the host is a token."""
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
    """Import Apprise; return the settings that all its plugins share."""
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

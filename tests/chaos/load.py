"""Load of a chaos round: producers that send all kinds of messages, and the audit of where these ended up."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import UUID, uuid4

from sqlalchemy import func, select

from chaos.rig import Rig
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.messages import Deregister, Heartbeat, Reason, Register
from fleetbeat_shared.redis_keys import INBOX, SESSIONS
from fleetbeat_worker.database.tables import Event, RejectedMessage, StoredHeartbeat
from fleetbeat_worker.rules.enums import EventType

PRODUCERS = 2
AGENTS = 4
"""Of each producer, in each round."""
LOAD_SECONDS = 1.5
"""How long the messages of a round take, without obstacles."""

_BAD = (b"no JSON", b"[" * 5000, b'{"kind":"heartbeat","id":NaN}', b"\x00\xff", b'{"kind":"register"}', b"x" * 40_000)


class Load:
    """Producers that send the messages of a round, each until Redis has acknowledged it."""

    def __init__(self, rig: Rig, messages: int, seed: int) -> None:
        """Start sending."""
        self._rig = rig
        self._threads = ThreadPoolExecutor(PRODUCERS)
        self._sent = [
            self._threads.submit(self._send, messages // PRODUCERS, random.Random(seed + number))  # noqa: S311 - the same mix in each run
            for number in range(PRODUCERS)
        ]

    def wait(self) -> None:
        """Wait until everything is sent. Raises the error of a producer."""
        self._threads.shutdown()
        for sent in self._sent:
            sent.result()

    def _send(self, messages: int, draw: random.Random) -> None:
        registrations = [registration() for _ in range(AGENTS)]
        for message in registrations:
            self._rig.send(message)
        pause = LOAD_SECONDS / max(1, messages)
        for _ in range(messages - 2 * AGENTS):
            chance, opened = draw.random(), draw.choice(registrations)
            if chance < 0.1:
                self._rig.send(draw.choice(_BAD), stream_of_bytes=draw.choice((INBOX, SESSIONS)))
            elif chance < 0.2:  # the agent registers again, sometimes after a deregistration
                ends = [deregistration(opened.session_id)][: draw.randrange(2)]
                self._rig.send(*ends, opened.model_copy(update={"id": new_message_id()}))
            else:
                progress = f"page {draw.randrange(1000)}" if chance < 0.4 else None
                self._rig.send(heartbeat(opened.session_id, progress))
            time.sleep(pause)
        for opened in registrations:  # so that no agent is flagged after the round
            self._rig.send(deregistration(opened.session_id))


def registration(agent_name: str | None = None) -> Register:
    """Return the registration of a new agent with an interval of 30 s."""
    session_id, now = uuid4(), datetime.now(UTC)
    name = agent_name or f"agent-{session_id.hex[:8]}"
    return Register(id=new_message_id(), session_id=session_id, sent_at=now, agent_name=name, interval_seconds=30)


def heartbeat(session_id: UUID, progress: str | None) -> Heartbeat:
    """Return a new heartbeat."""
    return Heartbeat(id=new_message_id(), session_id=session_id, sent_at=datetime.now(UTC), progress=progress)


def deregistration(session_id: UUID) -> Deregister:
    """Return the deregistration of an agent."""
    return Deregister(id=new_message_id(), session_id=session_id, sent_at=datetime.now(UTC))


def audit(rig: Rig) -> dict[str, int]:
    """Count where all acknowledged messages are."""
    applied = [EventType.REGISTERED.value, EventType.DEREGISTERED.value]
    with rig.engine.connect() as connection:
        stored = Counter(connection.execute(select(StoredHeartbeat.id)).scalars())
        stored.update(connection.execute(select(Event.message_id).where(Event.type.in_(applied))).scalars())
        found_rejected = connection.execute(select(RejectedMessage.entry_id, RejectedMessage.reason)).all()
        flags = select(func.count()).where(Event.type == EventType.DEGRADED.value)
        false_flags = connection.execute(flags).scalar_one()
    rejected = Counter(entry_id for entry_id, _ in found_rejected)
    blamed = {(entry_id, reason) for entry_id, reason in found_rejected if reason in {Reason.POISON, Reason.FAILED}}
    found = Counter[str]()
    for entry_id, message_id in rig.acknowledged.items():
        times_stored = stored[message_id] if message_id else 0
        found["stored"] += times_stored == 1
        found["rejected"] += rejected[entry_id] == 1
        found["lost"] += times_stored + rejected[entry_id] == 0
        found["duplicated"] += times_stored + rejected[entry_id] > 1
    names = ("stored", "rejected", "lost", "duplicated")
    wrong = {"misjudged": len(blamed ^ set(rig.harmful.items())), "false_flags": false_flags}
    return {"sent": len(rig.acknowledged), **{name: found[name] for name in names}, **wrong}

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from redis import Redis

from acceptance.place import Done, Place
from fleetbeat_producer.cli import main as fleetbeat_agent
from fleetbeat_shared.messages import Heartbeat, parse_message
from fleetbeat_shared.redis_keys import FIELD, INBOX, SESSIONS
from helpers import free_port
from processes import end_of, fork

AGENT = "fleetbeat-agent"
BEAT = (AGENT, "heartbeat", "--agent", "hint")


def spool_of(place: Place) -> Path:
    return place.directory / ".local" / "state" / "fleetbeat" / "spool"


def kept(place: Place) -> list[Path]:
    return sorted(spool_of(place).glob("*.json"))


def received(redis: Redis) -> list[Heartbeat]:
    """Read the inbox in its own order; nothing else was sent."""
    assert redis.xlen(SESSIONS) == 0
    found = [parse_message(fields[FIELD.encode()]) for _, fields in redis.xrange(INBOX)]
    assert all(isinstance(message, Heartbeat) for message in found)
    return found  # type: ignore[return-value] # as just looked at


def refused_url() -> str:
    return f"redis://agent:hunter2@127.0.0.1:{free_port()}/0"


@contextmanager
def hung_url() -> Iterator[str]:
    """Yield the URL of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://agent:hunter2@127.0.0.1:{server.getsockname()[1]}/0"


def run_at_once(place: Place, *commands: tuple[str, ...], **variables: str) -> list[Done]:
    """Run commands of `fleetbeat-agent` at the same time, in processes that are forked, as starting so many is slow."""

    def main(number: int) -> None:
        os.environ.clear()
        os.environ.update(place.environment | variables)
        os.chdir(place.directory)
        for descriptor in (1, 2):
            os.dup2(os.open(f"{number}.{descriptor}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
        fleetbeat_agent(commands[number][1:])

    processes = [fork(partial(main, number)) for number in range(len(commands))]
    return [
        Done(end_of(process), *((place.directory / f"{number}.{descriptor}").read_text() for descriptor in (1, 2)))
        for number, process in enumerate(processes)
    ]


def test_twenty_at_once_while_redis_is_away(pipeline: Place, redis: Redis) -> None:
    """20 processes keep a heartbeat each; the next call sends all, oldest first, once, and with how long they waited.

    Each says so on stderr and in the log, and succeeds; nobody but the user may read what is kept, and no password is
    told anywhere.
    """
    began = time.time()
    log = ("--log-file", "beats.log")
    beats = [(*BEAT, "--progress", f"page {number}", *log) for number in range(20)]
    told = run_at_once(pipeline, *beats, FLEETBEAT_REDIS_URL=refused_url())
    assert {done.exit_status for done in told} == {0}
    assert all(done.stdout == "Kept a heartbeat for hint in the spool.\n" for done in told)
    assert all(done.stderr.startswith("Warning: Redis at redis://127.0.0.1:") for done in told)
    assert all(done.stderr.count("\n") == 1 for done in told)
    files = kept(pipeline)
    assert len(files) == 20
    assert {path.stat().st_mode & 0o777 for path in [spool_of(pipeline), *files]} == {0o700, 0o600}

    assert pipeline.json(*BEAT, "--progress", "the last", *log)["spooled"] is False
    took = time.time() - began
    *late, last = received(redis)
    assert [f"{message.id}.json" for message in late] == [path.name for path in files]
    assert {message.progress for message in late} == {f"page {number}" for number in range(20)}
    assert all(message.buffered_seconds is not None and 0 <= message.buffered_seconds <= took for message in late)
    assert (last.progress, last.buffered_seconds) == ("the last", None)
    assert kept(pipeline) == []

    lines = [line.split("\t") for line in (pipeline.directory / "beats.log").read_text().splitlines()]
    assert [(agent, outcome) for _, agent, outcome, _ in lines] == [("hint", "spooled")] * 20 + [("hint", "sent")]
    assert {json.loads(sent)["id"] for *_, sent in lines} == {str(message.id) for message in [*late, last]}
    everything = [done.all for done in told] + ["\t".join(line) for line in lines]
    assert not any("hunter2" in text for text in everything)


def test_several_send_what_waits_at_once(pipeline: Place, redis: Redis) -> None:
    """Processes that find the same spool send each message once."""
    pipeline.run(*BEAT, FLEETBEAT_REDIS_URL=refused_url())
    (one,) = kept(pipeline)
    record = json.loads(one.read_text())
    first = int(record["message"]["id"].replace("-", ""), 16)
    for number in range(1, 600):
        digits = f"{first + number:032x}"
        record["message"]["id"] = "-".join(
            (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]),
        )
        one.with_name(f"{record['message']['id']}.json").write_text(json.dumps(record))
    told = run_at_once(pipeline, *[BEAT] * 6)
    assert all(done.exit_status == 0 for done in told), told
    messages = received(redis)
    assert len(messages) == len({message.id for message in messages}) == 606
    waited = [message.id for message in messages if message.buffered_seconds is not None]
    assert waited == sorted(waited)
    assert kept(pipeline) == []


def test_a_redis_that_hangs(place: Place) -> None:
    """--timeout bounds the whole call, whatever hangs, and the heartbeat is kept."""
    with hung_url() as url:
        began = time.monotonic()
        done = place.run(*BEAT, "--timeout", "0.3", "--log-file", "beats.log", FLEETBEAT_REDIS_URL=url)
        assert time.monotonic() - began < 20  # redis-py's own retries would take longer
    assert "no answer in time" in done.stderr
    assert len(kept(place)) == 1
    assert "\tspooled\t" in (place.directory / "beats.log").read_text()

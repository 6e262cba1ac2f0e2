"""Agents that the tests run as processes of their own: a few lines of Python each, and the messages that they sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from redis import Redis

from fleetbeat_shared.messages import Heartbeat
from helpers import sent_messages

BEGIN = """
import os, sys, time, fleetbeat_producer as fleetbeat
session = fleetbeat.AgentSession('hint', interval_seconds=86_400)
"""
"""On this long interval no automatic heartbeat is sent during a test."""


def environment(redis_url: str) -> dict[str, str]:
    return {**os.environ, "FLEETBEAT_REDIS_URL": redis_url}


def run(code: str | Path, redis_url: str, *, exits: int = 0) -> str:
    """Run an agent to its end; return what it printed. No traceback may be printed."""
    done = subprocess.run(
        [sys.executable, *(["-c", BEGIN + code] if isinstance(code, str) else [str(code)])],
        env=environment(redis_url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == exits, done.stderr
    assert exits == 1 or "Traceback" not in done.stderr, done.stderr
    return done.stdout


def start(code: str, redis_url: str) -> subprocess.Popen[str]:
    """Start an agent that the test controls over stdin and stdout."""
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + code],
        env=environment(redis_url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def inbox(redis: Redis) -> list[Any]:
    """Return the messages that were sent."""
    return sent_messages(redis)


def progress(redis: Redis) -> list[str]:
    """Return the progress of the heartbeats that have one, in order."""
    return [message.progress for message in inbox(redis) if isinstance(message, Heartbeat) and message.progress]

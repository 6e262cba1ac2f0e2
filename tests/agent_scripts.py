"""Agents that the tests run as processes of their own: a few lines of Python each, and what they sent."""

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
"""The beats that the session sends by itself would be one too many: on this interval none comes in a test's time."""


def environment(redis_url: str) -> dict[str, str]:
    return {**os.environ, "FLEETBEAT_REDIS_URL": redis_url}


def run(code: str | Path, redis_url: str, *, exits: int = 0) -> str:
    """Run an agent to its end; return what it printed. Nothing of ours may reach it as a traceback."""
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
    """Start an agent that is talked with over its stdin and stdout."""
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
    """Return what the heartbeats say, in their order, without those that say nothing."""
    return [message.progress for message in inbox(redis) if isinstance(message, Heartbeat) and message.progress]

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from agent_scripts import inbox, progress, start

RIGHTS = ("+@connection", "+xadd", "~*")
AGENT = """
session.start()
for n in range(50): session.progress(str(n))
while not fleetbeat.stats().last_error: time.sleep(0.01)
def tell(*words):
    counts = fleetbeat.stats()
    print(*words, counts.queued, counts.sent, counts.dropped, counts.last_error, flush=True)
tell()
sys.stdin.readline()
tell(fleetbeat.flush(30))
"""
TROUBLES = {
    "wrong password": (
        ("ACL", "SETUSER", "agent", "on", ">another", *RIGHTS),
        ("ACL", "SETUSER", "agent", ">hunter2"),
        "wrong user or password",
    ),
    "no rights": (
        ("ACL", "SETUSER", "agent", "on", ">hunter2", "+@connection"),
        ("ACL", "SETUSER", "agent", *RIGHTS),
        "the user lacks the rights",
    ),
    "read-only replica": (
        ("REPLICAOF", "127.0.0.1", "1"),
        ("REPLICAOF", "NO", "ONE"),
        "it is a read-only replica",
    ),
    "no replica": (
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
        "too few replicas are connected",
    ),
    "full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "its memory is full"),
}
"""Commands that make a server refuse an agent's messages, commands that repair it, and the reported reason."""


@pytest.fixture
def agents_url(redis: Redis, redis_url: str) -> Iterator[str]:
    """Return the URL by which an agent logs in; what a test changed in the server is as it was before."""
    redis.execute_command("ACL", "SETUSER", "agent", "on", ">hunter2", *RIGHTS)
    yield redis_url.replace("://", "://agent:hunter2@")
    redis.execute_command("REPLICAOF", "NO", "ONE")
    redis.execute_command("CONFIG", "SET", "maxmemory", "0")
    redis.execute_command("CONFIG", "SET", "min-replicas-to-write", "0")
    redis.execute_command("ACL", "DELUSER", "agent")


@pytest.mark.parametrize("trouble", TROUBLES)
def test_refused_messages_are_kept_until_redis_accepts_them(redis: Redis, agents_url: str, trouble: str) -> None:
    """A server that refuses loses no message: the reason is logged without the password, and later all arrive."""
    break_it, repair, words = TROUBLES[trouble]
    if break_it[:2] == ("ACL", "SETUSER"):
        redis.execute_command("ACL", "DELUSER", "agent")
    redis.execute_command(*break_it)
    with start(AGENT, agents_url) as agent:
        try:
            assert agent.stdout
            assert agent.stdout.readline() == f"51 0 0 {words}\n"
            redis.execute_command(*repair)
            printed, errors = agent.communicate("\n", timeout=60)
        finally:
            agent.kill()
    assert (agent.returncode, printed) == (0, "True 0 51 0 None\n")
    assert inbox(redis)[0].kind == "register"
    assert progress(redis) == [str(number) for number in range(50)]
    (warning,) = errors.splitlines()
    assert words in warning
    assert "hunter2" not in warning

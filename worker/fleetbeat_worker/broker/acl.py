"""What each side's user may do in Redis or Valkey, as rules of its access control lists.

docker-compose.yml has these rules too; a test holds them equal.
"""

from __future__ import annotations

from fleetbeat_shared.redis_keys import INBOX, REPLY_PREFIX

PRODUCER_RULES = (
    # In parentheses, a command with the only keys that it may be used on: in one list, XADD would be allowed on the
    # keys of answers, too, where nobody ever takes away what it adds.
    f"(+xadd %W~{INBOX})",
    f"(+blpop %RW~{REPLY_PREFIX}*)",
    "+ping",
    "+hello",
    "+auth",
    "+select",
    "+client|setinfo",
    "+client|setname",
)
"""What an agent needs: add to the inbox, wait for its own answers, connect."""

WORKER_RULES = (
    "~fleetbeat:*",
    "~rq:*",
    "&rq:*",  # on these channels RQ tells its workers to stop a job
    # By category, as RQ's next version may use another command on its keys; what endangers the server comes off again.
    "+@read",
    "+@write",
    "+@transaction",
    "+@pubsub",
    "+@connection",
    "-@dangerous",
    "-function",
    "-scan",
    "-randomkey",
    "+eval",
    "+evalsha",
    "+script|load",
    "+script|exists",
    "+time",
    "+info",  # RQ looks up the server's version
    "+client|list",  # … and its own address
)
"""What workers, the dispatcher, the commands of `fleetbeat` and RQ need, on Fleetbeat's and RQ's keys alone."""


def user_line(name: str, rules: tuple[str, ...]) -> str:
    """Return a line of an ACL file: the user with exactly these rules, and no password to log in with yet."""
    return " ".join(("user", name, "reset", "on", *rules))

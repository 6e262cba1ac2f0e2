"""Access control: what the user of agents and the user of workers may do in Redis or Valkey, as ACL rules.

docker-compose.yml has these rules too; a test holds them equal.
"""

from __future__ import annotations

from fleetbeat_shared.redis_keys import INBOX, REPLY_PREFIX, SESSIONS

PRODUCER_RULES = (
    # In parentheses, a command with the only keys that it may be used on: in one list, XADD would be allowed on the
    # keys of replies too, where no worker would ever remove what it adds.
    f"(+xadd %W~{INBOX} %W~{SESSIONS})",
    f"(+blpop %RW~{REPLY_PREFIX}*)",
    "+ping",
    "+hello",
    "+auth",
    "+select",
    "+client|setinfo",
    "+client|setname",
)
"""For an agent: add to the inbox and the session lane, wait for its own replies, connect."""

WORKER_RULES = (
    "~fleetbeat:*",
    "~rq:*",
    "&rq:*",  # on these channels RQ tells its workers to stop a job
    # By category, as RQ's next version may use another command on its keys; dangerous commands are taken off again.
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
    "+info",  # RQ reads the server's version
    "+client|list",  # … and its own address
)
"""For workers, dispatchers, the commands of `fleetbeat` and RQ, on Fleetbeat's and RQ's keys alone."""


def user_line(name: str, rules: tuple[str, ...]) -> str:
    """Compose a line of an ACL file: the user with exactly these rules, and no password to log in with yet."""
    return " ".join(("user", name, "reset", "on", *rules))

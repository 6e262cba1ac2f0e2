"""`fleetbeat acl`: the least Redis permissions that agents and workers need."""

from __future__ import annotations

import click

from fleetbeat_worker.broker.acl import PRODUCER_RULES, WORKER_RULES, user_line
from fleetbeat_worker.cli.options import example, json_option
from fleetbeat_worker.cli.output import print_json


class _UserName(click.ParamType[str]):
    """A user name that is one word in a line of an ACL file."""

    name = "NAME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name."""
        text = str(value)
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            self.fail(f"{text!r} is not a user name; use printable ASCII characters without spaces.", param, ctx)
        return text


@click.command(
    epilog=example(
        "fleetbeat acl >> users.acl",
        "fleetbeat acl --producer-user crawlers --json",
    )
)
@click.option("--producer-user", type=_UserName(), default="agent", show_default=True, help="The user of agents.")
@click.option("--worker-user", type=_UserName(), default="worker", show_default=True, help="The user of workers.")
@json_option
def acl(*, producer_user: str, worker_user: str, as_json: bool) -> None:
    """Print the least Redis permissions of agents and workers, as lines of an ACL file of Redis 7 or Valkey.

    No password is printed. A user without one can't log in: add ">PASSWORD", or "#" and its SHA-256 in hexadecimal, at
    the end of its line, or set it afterwards with ACL SETUSER.
    """
    if producer_user == worker_user:
        message = "Agents and workers need different users, because they have different permissions."
        raise click.UsageError(message)
    users = {producer_user: PRODUCER_RULES, worker_user: WORKER_RULES}
    if as_json:
        print_json({"users": [{"name": name, "rules": ["reset", "on", *rules]} for name, rules in users.items()]})
        return
    for name, rules in users.items():
        click.echo(user_line(name, rules))

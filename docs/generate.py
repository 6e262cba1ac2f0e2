"""Write what the code itself can tell: the tables in docs/settings.md and docs/metrics.md, and all of docs/cli.md.

Run by `make docs`. A test holds the pages equal to what this makes.
"""  # noqa: INP001 - a script, no package

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleetbeat_producer.cli import main as fleetbeat_agent
from fleetbeat_shared.settings import PREFIX, Settings
from fleetbeat_worker.cli import main as fleetbeat
from fleetbeat_worker.telemetry.metrics import COUNTED, GAUGES, Counter, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic.fields import FieldInfo

    from fleetbeat_worker.telemetry.metrics import Gauge

DOCS = Path(__file__).parent
SCRIPTS = {"fleetbeat": fleetbeat, "fleetbeat-agent": fleetbeat_agent}
WIDTH = 100
"""Columns of the help texts, whatever terminal this runs in."""

_CLI_INTRODUCTION = """\
# Commands

There are two scripts. `fleetbeat` is for the people who run a fleet (install `fleetbeat[worker]`). `fleetbeat-agent` is
for shells, cron lines and agents in other languages (the base install); agents in Python call `fleetbeat_producer`.

This page is what `--help` says of each command. Errors go to stderr, as a sentence. The exit status is 0 when all is
done, 1 when something was refused or failed, 2 for wrong usage or a setting that can't be used, and 75 when Redis or
the database is away, so that trying again later may help. `fleetbeat-agent heartbeat` keeps its message on disk then
and exits with 0, see [shell.md](shell.md). `fleetbeat check` has its own, [below](#fleetbeat-check).
"""


def settings_table() -> str:
    """Return the table of all settings, in Markdown."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | {_default(field)} | {_allowed(field)} | {_cell(field.description or '')} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| Variable | Default | Allowed | Meaning |", "| --- | --- | --- | --- |", *rows, ""])


def _default(field: FieldInfo) -> str:
    if field.default is None:
        return "unset"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def _allowed(field: FieldInfo) -> str:
    """Return the range of a number; for anything else the meaning says what is allowed."""
    above, least, most = (_rule(field, name) for name in ("gt", "ge", "le"))
    if above is not None:
        told = f"above {above:g}"
        return told if most is None else f"{told}, up to {most:,g}"
    if least is not None:
        return f"{least:g} or more" if most is None else f"{least:g} to {most:,g}"
    return ""


def _rule(field: FieldInfo, name: str) -> float | None:
    return next((getattr(rule, name) for rule in field.metadata if hasattr(rule, name)), None)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def settings_page(page: str) -> str:
    """Return docs/settings.md with the table as it should be; the text around it is written by hand."""
    return _with_table(page, "settings", settings_table())


def metrics_page(page: str) -> str:
    """Return docs/metrics.md with both tables as they should be."""
    return _with_table(_with_table(page, "counters", _metrics_table(COUNTED)), "gauges", _metrics_table(GAUGES))


def _metrics_table(metrics: Iterable[Counter | Histogram | Gauge]) -> str:
    rows = [
        f"| `{metric.name}` | {type(metric).__name__.lower()} | {_labels(metric)} | {_cell(metric.meaning)} |"
        for metric in metrics
    ]
    return "\n".join(["| Name | Type | Label | Meaning |", "| --- | --- | --- | --- |", *rows, ""])


def _labels(metric: Counter | Histogram | Gauge) -> str:
    if isinstance(metric, Histogram) or metric.label is None:
        return ""
    first = f"`{metric.label}`: {', '.join(metric.values)}"
    if not isinstance(metric, Counter) or metric.second_label is None:
        return first
    return f"{first}; `{metric.second_label}`: {', '.join(metric.second_values)}"


def _with_table(page: str, name: str, table: str) -> str:
    """Return a page with the table between the comments of a name replaced."""
    place = re.compile(rf"(?<=<!-- {name} -->\n).*(?=<!-- end of {name} -->)", re.DOTALL)
    return place.sub(lambda _: table, page)


def cli_page() -> str:
    """Return docs/cli.md: the help text of every command."""
    parts = [_CLI_INTRODUCTION]
    parts += [f"{'#' * (level + 2)} {path}\n\n```text\n{text}\n```\n" for level, path, text in help_texts()]
    return "\n".join(parts)


def help_texts() -> Iterator[tuple[int, str, str]]:
    """Yield the depth, the path and the help text of every command."""
    for name, script in SCRIPTS.items():
        yield from _helps(script, click.Context(script, info_name=name, terminal_width=WIDTH))


def _helps(command: click.Command, context: click.Context, level: int = 0) -> Iterator[tuple[int, str, str]]:
    """Yield the depth, the path and the help text of a command and of all below it."""
    context.help_option_names = command.context_settings.get("help_option_names", context.help_option_names)
    yield level, context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield from _helps(below, click.Context(below, info_name=name, parent=context), level + 1)


def main() -> None:
    """Write the pages."""
    for name, make in {"settings.md": settings_page, "metrics.md": metrics_page}.items():
        page = DOCS / name
        page.write_text(make(page.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "cli.md").write_text(cli_page(), encoding="utf-8")


if __name__ == "__main__":
    main()

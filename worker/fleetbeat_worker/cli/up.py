"""`fleetbeat up`: everything that Fleetbeat needs, on one machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import click

from fleetbeat_shared.click_types import WholeNumber
from fleetbeat_shared.settings import DEFAULT_REDIS_PORT, Settings
from fleetbeat_worker.broker.embedded_valkey import DataDirectory, EmbeddedValkey, end_predecessor
from fleetbeat_worker.cli.options import asked_to_stop, example, pool_options
from fleetbeat_worker.cli.worker import POLL_SECONDS, check_notify_urls, open_exporter, prepare_database
from fleetbeat_worker.telemetry.log import set_up
from fleetbeat_worker.workers.autoscale import Bounds
from fleetbeat_worker.workers.pool import Pool


@click.command(
    epilog=example(
        "fleetbeat up", "fleetbeat up -n 2 --data-dir /srv/fleetbeat --port 7000", "fleetbeat up --autoscale 1:4"
    )
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="FLEETBEAT_DATA_DIR",
    show_envvar=True,
    help="The directory for all data.",
)
@click.option(
    "--port",
    type=WholeNumber(1, 65535),
    default=DEFAULT_REDIS_PORT,
    show_default=True,
    help="The port that agents connect to.",
)
@pool_options
def up(*, data_dir: Path | None, port: int, workers: int, bounds: Bounds) -> None:
    """Start Valkey, SQLite, workers and the dispatcher, until Ctrl-C.

    Queued messages survive a restart, also after a crash. While it runs, `fleetbeat workers scale` changes the number
    of workers.
    """
    settings = Settings.from_environment(os.environ)
    if data_dir is not None:
        settings = settings.model_copy(update={"data_dir": data_dir})
    set_up(settings.log_level)
    stop_asked = asked_to_stop()
    directory = DataDirectory(settings.data_path)
    with directory.lock(port) as predecessors_port:
        server = EmbeddedValkey(directory.path / "valkey", port)
        end_predecessor(predecessors_port, directory.path / "valkey")
        settings = settings.model_copy(update={"redis_url": server.url})
        _run(settings, server, Pool(settings, workers, bounds, open_exporter(settings)), stop_asked)


def _run(settings: Settings, server: EmbeddedValkey, pool: Pool, stop_asked: Callable[[], bool]) -> None:
    check_notify_urls(settings)
    settings.export(os.environ)  # for the jobs, which read their settings where they run
    server.start()
    try:
        prepare_database(settings, stop_asked)
        pool.start()
        try:
            click.echo(_greeting(settings))
            while not stop_asked():
                pool.supervise(POLL_SECONDS)
                server.start_again_if_ended()
        finally:
            pool.stop()
    finally:
        server.stop()
    click.echo("Fleetbeat has stopped; queued messages are kept.")


def _greeting(settings: Settings) -> str:
    lines = ["Fleetbeat is running. Agents on this machine connect to:", "", f"    {settings.redis_url}", ""]
    default = Settings()
    variables = {
        "FLEETBEAT_REDIS_URL": settings.redis_url if settings.redis_url != default.redis_url else None,
        "FLEETBEAT_DATA_DIR": str(settings.data_path) if settings.data_path != default.data_path else None,
    }
    exports = [f"    export {name}={shlex.quote(value)}" for name, value in variables.items() if value is not None]
    if exports:
        lines += ["That is not the default. In other terminals, first run", "", *exports, ""]
    return "\n".join([*lines, "Show the fleet:  fleetbeat dashboard", "Stop:            Ctrl-C"])

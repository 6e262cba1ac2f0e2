"""What the commands' exit statuses mean."""

from __future__ import annotations

from fleetbeat_shared.errors import DatabaseUnavailable, FleetbeatError, RedisUnavailable, SettingsError

DONE = 0  # done; for `check`: all is well
REFUSED = 1  # refused or failed; for `check`: some agent is degraded
USAGE = 2  # wrong usage, or a setting that can't be used
BEHIND = 3  # `check` only: the pipeline is behind or away, so that nothing is known
TRY_AGAIN = 75  # Redis or the database can't be used now; trying again later may help


def exit_code(error: FleetbeatError) -> int:
    """Return the exit status of a command that failed with an error."""
    if isinstance(error, SettingsError):
        return USAGE
    if isinstance(error, RedisUnavailable | DatabaseUnavailable):
        return TRY_AGAIN
    return REFUSED

"""Exit statuses of the commands."""

from __future__ import annotations

from fleetbeat_shared.errors import DatabaseUnavailable, FleetbeatError, RedisUnavailable, SettingsError

DONE = 0  # done; for `check`: no agent is degraded
REFUSED = 1  # refused or failed; for `check`: an agent is degraded
USAGE = 2  # wrong usage, or an invalid setting
BEHIND = 3  # `check` only: the pipeline is behind or unavailable, so that the agents' states are unknown
TRY_AGAIN = 75  # Redis or the database is unavailable; trying again later may help


def exit_code(error: FleetbeatError) -> int:
    """Choose the exit status of a command that failed with an error."""
    if isinstance(error, SettingsError):
        return USAGE
    if isinstance(error, RedisUnavailable | DatabaseUnavailable):
        return TRY_AGAIN
    return REFUSED

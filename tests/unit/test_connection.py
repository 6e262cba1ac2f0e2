from __future__ import annotations

import pytest

from fleetbeat_shared.connection import connect, place, redis_errors
from fleetbeat_shared.errors import RedisUnavailable, SettingsError


@pytest.mark.parametrize(
    "url",
    [
        "http://:canary@queue/0",
        "queue:6379",
        "redis://:canary@queue/0?ssl_ca_cert=/ca.pem",
        "redis://:canary@queue/0?ssl_ca_certs=/ca.pem",
        "rediss://:canary@queue/0?ssl_ca_cert=/ca.pem",
        "rediss://:canary@queue/0?ssl_cert_reqs=perhaps",
        "redis://:canary@queue/0?db=first",
    ],
)
def test_a_url_that_cant_be_used_is_told_at_once(url: str) -> None:
    """A wrong scheme or option is a sentence when the client is made, without the password; never a later TypeError."""
    with pytest.raises(SettingsError, match="FLEETBEAT_REDIS_URL") as found:
        connect(url, timeout_seconds=1)
    assert "canary" not in str(found.value)


def test_a_urls_certificates_reach_the_connection() -> None:
    """A CA and a client's certificate stand in the URL, as redis-py calls them; nothing connects yet."""
    url = "rediss://queue:6380/2?ssl_ca_certs=/ca.pem&ssl_certfile=/agent.pem&ssl_keyfile=/agent.key"
    given = connect(url, timeout_seconds=1, name="torv").connection_pool.connection_kwargs
    found = {name: given[name] for name in ("host", "port", "db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")}
    assert list(found.values()) == ["queue", 6380, 2, "/ca.pem", "/agent.pem", "/agent.key"]
    assert (given["socket_timeout"], given["client_name"]) == (1, "torv")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://agent:canary@queue:6379/0", "redis://queue:6379/0"),
        ("rediss://agent:canary@queue/0?ssl_ca_certs=/ca.pem&ssl_password=canary", "rediss://queue/0"),
        ("redis://:canary@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("unix://:canary@/run/valkey.sock", "/run/valkey.sock"),
        ("redis://:can/ary@queue:6379/0", "queue:6379/0"),
    ],
)
def test_a_place_holds_no_secret(url: str, told: str) -> None:
    """What errors and logs show of a URL has its host and database, and neither user, password nor options."""
    assert place(url) == told


def test_a_missing_socket_is_told_as_such() -> None:
    """An error of Redis's becomes a sentence with the place, the reason and what to do."""
    url = "unix://:canary@/does/not/exist.sock"
    client = connect(url, timeout_seconds=1)
    with pytest.raises(RedisUnavailable, match="that the URL names can't be opened") as found, redis_errors(url):
        client.ping()
    assert "canary" not in str(found.value)

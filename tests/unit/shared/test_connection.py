from __future__ import annotations

from typing import Any

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
        "redis+sentinel://:canary@one:26379,two:26379",
        "redis+sentinel://:canary@one:26379,two:26379/fleet/first",
        "redis+sentinel://:canary@one:port/fleet",
        "redis+sentinel://:canary@one,,two/fleet",
        "redis+sentinel://:canary@one/fleet?sentinel_passwort=canary2",
        "redis+sentinel://:canary@one/fleet?ssl_ca_certs=/ca.pem",
    ],
)
def test_an_unusable_url_is_refused_at_once(url: str) -> None:
    """A wrong scheme or option is an error when the client is made, without the password; never a later TypeError."""
    with pytest.raises(SettingsError, match="FLEETBEAT_REDIS_URL") as found:
        connect(url, timeout_seconds=1)
    assert "canary" not in str(found.value)


def test_a_urls_certificates_reach_the_connection() -> None:
    """A CA and a client's certificate are options of the URL, as redis-py names them; nothing connects yet."""
    url = "rediss://queue:6380/2?ssl_ca_certs=/ca.pem&ssl_certfile=/agent.pem&ssl_keyfile=/agent.key"
    given = connect(url, timeout_seconds=1, name="torv").connection_pool.connection_kwargs
    found = {name: given[name] for name in ("host", "port", "db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")}
    assert list(found.values()) == ["queue", 6380, 2, "/ca.pem", "/agent.pem", "/agent.key"]
    assert (given["socket_timeout"], given["client_name"]) == (1, "torv")


def test_a_url_of_sentinels_is_parsed() -> None:
    """Hosts with and without port, the database, the servers' password and the Sentinels' own are all applied."""
    url = "redis+sentinel://agent:p%40ss@one:26380,[::1],two/fleet/3?sentinel_password=theirs"
    pool: Any = connect(url, timeout_seconds=1, name="torv").connection_pool
    given = pool.connection_kwargs
    assert pool.service_name == "fleet"
    assert (given["username"], given["password"], given["db"], given["client_name"]) == ("agent", "p@ss", 3, "torv")
    sentinels = [client.connection_pool.connection_kwargs for client in pool.sentinel_manager.sentinels]
    assert [(each["host"], each["port"]) for each in sentinels] == [("one", 26380), ("::1", 26379), ("two", 26379)]
    assert {(each["password"], each["socket_timeout"]) for each in sentinels} == {("theirs", 1)}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://agent:canary@queue:6379/0", "redis://queue:6379/0"),
        ("rediss://agent:canary@queue/0?ssl_ca_certs=/ca.pem&ssl_password=canary", "rediss://queue/0"),
        ("redis://:canary@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("unix://:canary@/run/valkey.sock", "/run/valkey.sock"),
        (
            "redis+sentinel://:canary@one:26379,two/fleet/1?sentinel_password=canary",
            "redis+sentinel://one:26379,two/fleet/1",
        ),
        ("redis+sentinel://:can/ary@one:26379,two/fleet", "one:26379,two/fleet"),
        ("redis+sentinel://:can@ary@[::1]:26379,two/fleet", "redis+sentinel://[::1]:26379,two/fleet"),
        ("redis://:can/ary@queue:6379/0", "queue:6379/0"),
    ],
)
def test_a_shown_url_holds_no_secret(url: str, expected: str) -> None:
    """A URL in errors and logs has its host and database, and neither user, password nor options."""
    assert place(url) == expected


def test_a_missing_socket_is_reported() -> None:
    """Redis's error becomes a sentence with the address, the reason and what to do."""
    url = "unix://:canary@/does/not/exist.sock"
    client = connect(url, timeout_seconds=1)
    with pytest.raises(RedisUnavailable, match="named in the URL can't be opened") as found, redis_errors(url):
        client.ping()
    assert "canary" not in str(found.value)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from command_line import answer, run
from ops_fixtures import put_rejected
from sqlalchemy import Engine


def test_rejected_bytes_are_escaped(engine: Engine) -> None:
    """Bytes that would act on a terminal are escaped; the JSON has the exact ones."""
    raw = b"\x1b[31mred\x9b\xff\n\xe2\x80\xae"
    number = put_rejected(engine, "1-1", raw, detail="no JSON\x1b[0m")
    put_rejected(engine, "1-2", b"{}", "unknown_session")
    output = run("rejected", "show", str(number)).output
    assert r"\x1b[31mred\x9b\xff\n\u202e" in output.replace("\\u009b", "\\x9b")
    assert "\x1b" not in output
    shown = answer("rejected", "show", str(number))
    assert shown["raw_base64"] == "G1szMW1yZWSb/wrigK4="
    listed = answer("rejected", "list")
    assert listed["counts"] == {"not_json": 1, "unknown_session": 1}
    assert [row["size"] for row in listed["rejected"]] == [len(raw), 2]
    assert [row["reason"] for row in answer("rejected", "list", "--reason", "unknown_session")["rejected"]] == [
        "unknown_session"
    ]
    assert run("rejected", "show", "99").exit_code == 1
    none = run("rejected", "list", "--reason", "poison").output
    assert none == "None of the rejected messages matches. There are 2 messages: 1 not_json, 1 unknown_session.\n"


def test_requeue_reports_each_outcome(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requeue takes ids or filters, reports each outcome, and exits with 1 if any stays rejected."""
    first, second = put_rejected(engine, "1-1", b"x"), put_rejected(engine, "1-2", b"{}", "unknown_session")
    monkeypatch.setattr(
        "fleetbeat_worker.ingest.requeue.apply_again",
        lambda _settings, _engine, _client, ids: ((i, "stored" if i == second else "not_json") for i in ids),
    )
    assert answer("rejected", "requeue", "--all", "--reason", "unknown_session") == {
        "results": [{"id": second, "outcome": "stored"}]
    }
    result = run("rejected", "requeue", "--all")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"{first}: not_json",
        f"{second}: stored",
        "1 message stored, 1 still rejected.",
    ]
    missing = run("rejected", "requeue", str(second), "77")
    assert missing.exit_code == 1
    assert "There is no rejected message 77; nothing was done." in missing.stderr
    for args in ([], ["1", "--all"], ["1", "--reason", "not_json"]):
        assert run("rejected", "requeue", *args).exit_code == 2


def test_interrupted_requeue_reports_what_is_left(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C the outcomes so far are reported, and how many were not tried."""
    numbers = [put_rejected(engine, f"1-{number}", b"x") for number in range(1, 4)]

    def apply(*_: Any) -> Iterator[tuple[int, str]]:
        yield numbers[0], "stored"
        raise KeyboardInterrupt

    monkeypatch.setattr("fleetbeat_worker.ingest.requeue.apply_again", apply)
    result = run("rejected", "requeue", "--all")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [f"{numbers[0]}: stored", "1 message stored, 0 still rejected, 2 not tried."]

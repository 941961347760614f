"""Logs: one JSON object a line, bound to whose action it is, with no secret in it."""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from tenantry.broker.secrets import SecretValue
from tenantry.core.ids import AgentId, PrincipalId, RunId, TenantId, WorkspaceId
from tenantry.core.run import RunClaims
from tenantry.telemetry.logs import TEXT_CHARACTERS_MAX, bound_to, configure_logs, get_logger

CLAIMS = RunClaims(
    TenantId("acme"),
    WorkspaceId("emea"),
    AgentId("triage"),
    RunId("wr_1"),
    1,
    PrincipalId("prn_1"),
    dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
)
KEY = "tnk_hunter2"
JWT = "eyJhbGciOiJFZERTQSJ9.eyJodW50ZXIyIjoxfQ.aHVudGVyMg"


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    configure_logs("info", "test", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:], root.level = before, level


def test_a_line_is_json_and_says_whose_it_is(lines: Callable[[], list[dict[str, Any]]]) -> None:
    with bound_to(CLAIMS, action_id="act_1"):
        get_logger("gate").info("performed", took_ms=3)
    get_logger("gate").info("idle")
    inside, outside = lines()
    assert inside["tenant_id"] == "acme"
    assert inside["run_id"] == "wr_1"
    assert inside["action_id"] == "act_1"
    assert inside["process"] == "test"
    assert inside["event"] == "performed"
    assert "tenant_id" not in outside


def test_below_the_level_nothing_is_written(lines: Callable[[], list[dict[str, Any]]]) -> None:
    get_logger("gate").debug("detail")
    logging.getLogger("library").info("chatter")
    assert lines() == []


def test_libraries_speak_the_same_way(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logging.getLogger("library").warning("careful: %s", KEY)
    (line,) = lines()
    assert line["part"] == "library"
    assert "hunter2" not in json.dumps(line)


@pytest.mark.invariant(8)
@pytest.mark.parametrize(
    "fields",
    [
        {"authorization": f"Bearer {KEY}"},
        {"headers": {"Authorization": "Basic aHVudGVyMg==", "x-api-key": "hunter2"}},
        {"value": SecretValue("hunter2")},
        {"deep": [{"inner": {"password": "hunter2"}}]},
        {"run_token": JWT},
        {"text": f"the key {KEY} and the token ({JWT}) failed"},
        {"body": b"hunter2"},
        {"database_url": "postgresql://u:hunter2@h/db"},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": "hunter2"}}}}}}}},
    ],
)
def test_no_secret_is_written(fields: dict[str, object], lines: Callable[[], list[dict[str, Any]]]) -> None:
    get_logger("gate").info("sent", **fields)
    assert "hunter2" not in json.dumps(lines())
    assert "aHVudGVyMg" not in json.dumps(lines())


@pytest.mark.invariant(8)
def test_no_secret_is_written_with_an_exception(lines: Callable[[], list[dict[str, Any]]]) -> None:
    secret = SecretValue("hunter" + "2")
    try:
        raise RuntimeError(f"cannot send {KEY} {secret} to postgresql://u:{secret.reveal()}@h/db")
    except RuntimeError:
        get_logger("gate").exception("failed")
    (line,) = lines()
    assert "RuntimeError" in line["exception"]
    assert "hunter2" not in json.dumps(line)


def test_counts_of_tokens_are_no_secrets(lines: Callable[[], list[dict[str, Any]]]) -> None:
    get_logger("gate").info("used", model_tokens=12, secret_name="zendesk")
    (line,) = lines()
    assert line["model_tokens"] == 12
    assert line["secret_name"] == "zendesk"


def test_hostile_text_cannot_break_a_line(lines: Callable[[], list[dict[str, Any]]]) -> None:
    get_logger("gate").info("x", text="a\nb\x00\udcff\x1b[2J", long="y" * 100_000, odd=object())
    (line,) = lines()
    assert len(line["long"]) <= TEXT_CHARACTERS_MAX + 3
    assert "\n" in line["text"]

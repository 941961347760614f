"""What a program is given: its run's doors, and nothing that opens another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenantry.cli.run_exec import door_environment
from tenantry_client import Doors, OpenedRun

RUN = OpenedRun(
    "wr_1",
    "token",
    "2026-01-01T00:00:00Z",
    Doors("http://127.0.0.1:8700/v1", "http://127.0.0.1:8700/api/v1/actions", "http://127.0.0.1:8700/finish"),
)


def test_the_doors_are_set_and_other_doors_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENANTRY_API_KEY", "tnk_hunter2")
    monkeypatch.setenv("TENANTRY_DATABASE_URL", "postgresql://hunter2@h/d")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://elsewhere.example")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "hunter2")
    monkeypatch.setenv("NO_PROXY", "internal.example")
    monkeypatch.setenv("UNRELATED", "stays")
    given = door_environment(RUN, Path("/out"))
    assert "hunter2" not in str(given)
    assert given["OPENAI_BASE_URL"] == "http://127.0.0.1:8700/v1"
    assert given["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8700"
    assert given["TENANTRY_MCP_URL"] == "http://127.0.0.1:8700/mcp"
    assert given["OPENAI_API_KEY"] == given["ANTHROPIC_API_KEY"] == given["TENANTRY_RUN_TOKEN"] == "token"
    assert given["TENANTRY_RUN_ID"] == "wr_1"
    assert given["TENANTRY_OUT"] == "/out"
    assert given["NO_PROXY"] == "internal.example,127.0.0.1"
    assert given["no_proxy"].endswith("127.0.0.1")
    assert given["UNRELATED"] == "stays"

"""The example agents as programs: what they ask for, what they print, and how they end."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.examples.servers import EXAMPLES, Server, run_agent

AGENTS = sorted(path.name for path in (EXAMPLES / "agents").glob("*.py"))


class Door(BaseHTTPRequestHandler):
    """The answers of a platform's doors that forbid the web, allow tickets, and budget three model calls."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked: list[Any] = self.server.asked  # type: ignore[attr-defined]
        asked.append((self.path, self.headers["authorization"], given))
        if self.path == "/v1/chat/completions":
            self._complete(given, len(asked))
        elif given["requested_action"] == "web.fetch":
            problem = {"title": "Denied", "status": 403, "detail": "no web", "policies": ["borealis/no-web"]}
            self._answer(403, {**problem, "verdict": "denied"}, "denied")
        else:
            self._answer(200, {"verdict": "allowed", "action_id": "act_1", "output": {"ok": True}}, "allowed")

    def _complete(self, given: dict[str, Any], count: int) -> None:
        if count > 3:
            error = {
                "message": "the budget is spent",
                "type": "x",
                "code": None,
                "verdict": "budget_exceeded",
            }
            self._answer(429, {"error": error}, "budget_exceeded")
        elif given.get("stream"):
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
            choice = {"index": 0, "delta": {"content": "A refund is due."}, "finish_reason": "stop"}
            event = json.dumps({**chunk, "choices": [choice]})
            self._send(200, f"data: {event}\n\ndata: [DONE]\n\n".encode(), "text/event-stream", "allowed")
        else:
            message = {"role": "assistant", "content": "no"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            head = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
            self._answer(200, {**head, "choices": [choice]}, "allowed")

    def _answer(self, status: int, body: dict[str, Any], verdict: str) -> None:
        self._send(status, json.dumps(body).encode(), "application/json", verdict)

    def _send(self, status: int, body: bytes, kind: str, verdict: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("tenantry-verdict", verdict)
        self.send_header("x-should-retry", "false")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def door() -> Iterator[tuple[dict[str, str], list[Any]]]:
    """A door's environment for an agent, and the list of what was asked there."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield environment(f"http://127.0.0.1:{server.server_port}/v1"), server.asked  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()


def environment(base_url: str) -> dict[str, str]:
    return {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "run-token", "TENANTRY_RUN_TOKEN": "run-token"}


def result(stdout: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return value


@pytest.mark.parametrize("name", AGENTS)
def test_agents_know_nothing_of_tenantry(name: str) -> None:
    tree = ast.parse((EXAMPLES / "agents" / name).read_text())
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {module for module in imported if module.startswith("tenantry")}


@pytest.mark.parametrize(
    "task", [None, {}, {"ticket": {"id": "zd_99102", "subject": "Twice", "text": "Help"}}]
)
def test_triage_is_refused_the_web_and_updates_the_ticket(task: object) -> None:
    with door() as (env, asked):
        status, stdout = run_agent("support_triage.py", task, env)
    assert status == 0
    assert "denied by borealis/no-web" in stdout
    assert result(stdout)["fetch"]["policies"] == ["borealis/no-web"]
    assert result(stdout)["update"]["verdict"] == "allowed"
    assert [(path, given.get("requested_action")) for path, _, given in asked] == [
        ("/v1/chat/completions", None),
        ("/api/v1/actions", "web.fetch"),
        ("/api/v1/actions", "ticket.update"),
    ]
    assert {authorization for _, authorization, _ in asked} == {"Bearer run-token"}
    update = asked[2][2]
    assert update["target"] == {"system": "zendesk", "record_id": "zd_99102"}
    assert update["input"] == {"status": "pending", "comment": "Summary: A refund is due."}


def test_the_runaway_stops_at_its_budget_and_not_before() -> None:
    with door() as (env, asked):
        status, stdout = run_agent("runaway.py", None, env)
    assert status == 0
    assert (result(stdout)["calls"], result(stdout)["stopped_by"]) == (3, "budget_exceeded")
    assert len(asked) == 4


def test_the_runaway_tells_another_refusal_from_its_budget(run_server: Callable[..., Server]) -> None:
    model = run_server("model_server.py")
    model.rules({"behaviour": {"tokens": 1}, "times": 5}, {"behaviour": {"fail": 402}})
    status, stdout = run_agent("runaway.py", {"max_tokens": 4}, environment(model.url))
    assert (status, result(stdout)["calls"], result(stdout)["stopped_by"]) == (1, 5, "status 402")


def test_steady_measures_real_calls(run_server: Callable[..., Server]) -> None:
    model = run_server("model_server.py")
    status, stdout = run_agent("steady.py", {"calls": 10}, environment(model.url))
    figures = result(stdout)
    assert (status, figures["calls"], figures["failed"]) == (0, 10, 0)
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    assert model.books()["totals"]["requests"] == 10
    model.rules({"behaviour": {"fail": 400}, "times": 1})
    status, stdout = run_agent("steady.py", {"calls": 2}, environment(model.url))
    assert (status, result(stdout)["failed"]) == (1, 1)

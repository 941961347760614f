"""The actions door and the runs doors over a gate that says what it is told to."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from tests.support.fake_gate import ADMIN_KEY, NARROW_KEY, OPERATOR_KEY, TIMINGS, Performer, settled
from tests.support.gateway import LiveGateway, RawAnswer

from tenantry.core.action import Action, Outcome, OutcomeStatus, Risk
from tenantry.core.ids import PolicyId
from tenantry.core.quota import Meter, MeterName, Usage
from tenantry.core.run import RunState
from tenantry.core.verdict import Allowed, Denied, Queued, Throttled, Verdict
from tenantry.gate.context import ActionResult, OpenedRun, RunContext
from tenantry.gate.ports import Emit

ACTIONS = "/api/v1/actions"
RUNS = "/api/v1/runs"
UPDATE: dict[str, Any] = {
    "requested_action": "ticket.update",
    "target": {"system": "zendesk", "record_id": "zd_99102"},
    "input": {"b": 1, "a": "ä"},
}


def returning(outcome: Outcome, *, recorded: bool = False) -> Performer:
    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context, emit
        if recorded:
            verdict = Allowed(action.action_id, position=None, recorded=outcome)
            return ActionResult(verdict, outcome, action.action_id, TIMINGS)
        return settled(action, outcome)

    return perform


def refusing(verdict: Verdict) -> Performer:
    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context, emit
        return ActionResult(verdict, None, action.action_id, TIMINGS)

    return perform


async def act(
    gateway: LiveGateway, changes: dict[str, Any], headers: dict[str, str] | None = None
) -> RawAnswer:
    return await gateway.request("POST", ACTIONS, msgspec.json.encode({**UPDATE, **changes}), headers)


async def test_an_allowed_action(gateway: LiveGateway) -> None:
    output = b'{"body":{"id":1},"status":200}'
    gateway.gate.perform = returning(Outcome(OutcomeStatus.OK, output, Usage(), http_status=200))
    answer = await act(gateway, {}, {"Idempotency-Key": "k"})
    assert answer.status == 200
    assert answer.headers["tenantry-verdict"] == "allowed"
    assert "upstream;dur=3.000" in answer.headers["server-timing"]
    [action] = gateway.gate.actions
    assert answer.json() == {
        "verdict": "allowed",
        "action_id": action.action_id,
        "outcome": "ok",
        "status": 200,
        "detail": None,
        "recorded": False,
        "output": {"body": {"id": 1}, "status": 200},
    }
    assert action.input == '{"a":"ä","b":1}'.encode()
    assert (action.risk, action.kind, action.destination) == (Risk.WRITE, "tool", "tickets.example.com")
    assert (action.idempotency_key, action.estimate.tool_calls) == ("k", 1)
    assert action.estimate.journal_bytes >= len(action.input) + 256 * 1024
    assert action.timeout_ms == 30_000


@pytest.mark.parametrize("status", [OutcomeStatus.FAILED, OutcomeStatus.VOID])
async def test_what_the_upstream_made_of_it_is_told_beside_the_verdict(
    gateway: LiveGateway, status: OutcomeStatus
) -> None:
    gateway.gate.perform = returning(Outcome(status, None, Usage(), http_status=404, detail="why"))
    answer = await act(gateway, {})
    members = answer.json()
    assert answer.status == 200
    assert (members["verdict"], members["outcome"], members["status"]) == ("allowed", status.value, 404)
    assert (members["output"], members["detail"]) == (None, "why")


@pytest.mark.parametrize("status", [OutcomeStatus.UNKNOWN, OutcomeStatus.CUT])
async def test_an_unknown_outcome(gateway: LiveGateway, status: OutcomeStatus) -> None:
    gateway.gate.perform = returning(Outcome(status, None, Usage()))
    answer = await act(gateway, {})
    assert (answer.status, answer.json()["verdict"]) == (502, "unknown_outcome")
    assert answer.headers["x-should-retry"] == "false"


async def test_recorded_and_text_outputs(gateway: LiveGateway) -> None:
    outcome = Outcome(OutcomeStatus.OK, b"caf\xe9 {", Usage(), content_type="text/plain")
    gateway.gate.perform = returning(outcome, recorded=True)
    members = (await act(gateway, {})).json()
    assert (members["recorded"], members["output"]) == (True, "caf\N{REPLACEMENT CHARACTER} {")


async def test_refusals(gateway: LiveGateway) -> None:
    gateway.gate.perform = refusing(Denied((PolicyId("tenant/no_web@4"),)))
    answer = await act(gateway, {})
    assert (answer.status, answer.headers["content-type"]) == (403, "application/problem+json")
    assert answer.json()["policies"] == ["tenant/no_web@4"]
    gateway.gate.perform = refusing(Queued(3))
    assert (await act(gateway, {})).status == 202
    gateway.gate.perform = refusing(Throttled(Meter("agent", "helper", MeterName.REQUESTS), 2_001))
    assert (await act(gateway, {})).headers["retry-after"] == "3"


async def test_a_fetch_names_its_destination(gateway: LiveGateway) -> None:
    fetch = {"requested_action": "web.fetch", "target": {"system": "web", "record_id": "p"}}
    gateway.gate.perform = returning(Outcome(OutcomeStatus.OK, b"{}", Usage()))
    assert (await act(gateway, {**fetch, "input": {"url": "https://Example.COM/a?b"}})).status == 200
    assert gateway.gate.actions[0].destination == "example.com"
    for url in (None, 7, "", "file:///etc/passwd", "http://a b/", "http://user@host/", "x" * 9_000):
        answer = await act(gateway, {**fetch, "input": {"url": url}})
        assert (answer.status, answer.json()["path"]) == (422, "$.input.url")
    assert len(gateway.gate.actions) == 1


@pytest.mark.parametrize(
    ("changes", "status", "path"),
    [
        ({"requested_action": "ticket.delete"}, 422, "$.requested_action"),
        ({"requested_action": ""}, 400, "$.requested_action"),
        ({"requested_action": "x" * 129}, 400, "$.requested_action"),
        ({"requested_action": None}, 400, "$.requested_action"),
        ({"target": {"system": "web", "record_id": "1"}}, 422, "$.target.system"),
        ({"target": {"system": "zendesk"}}, 400, "$.target.record_id"),
        ({"target": {"system": "zendesk", "record_id": "x" * 2049}}, 400, "$.target.record_id"),
        ({"target": {"system": "zendesk", "record_id": "a\x00"}}, 400, "$.target.record_id"),
        (
            {"target": {"system": "zendesk", "record_id": "1", "tenant_id": "other"}},
            400,
            "$.target.tenant_id",
        ),
        ({"tenant_id": "other"}, 400, "$.tenant_id"),
        ({"input": []}, 400, "$.input"),
        ({"input": None}, 400, "$.input"),
        ({"input": {"a": [0, 2**63]}}, 400, "$.input.a[1]"),
        ({"input": {"a b": -(2**63) - 1}}, 400, '$.input["a b"]'),
        ({"input": {"a": [0] * 60_000}}, 400, "$.input"),
        ({"timeout_ms": 0}, 400, "$.timeout_ms"),
        (
            {
                "requested_action": "ticket.search",
                "target": {"system": "zendesk", "record_id": ""},
                "input": {},
            },
            422,
            "$.input",
        ),
        (
            {
                "requested_action": "ticket.search",
                "target": {"system": "zendesk", "record_id": ""},
                "input": {"q": "x", "tags": ["a", 1]},
            },
            422,
            "$.input.tags[1]",
        ),
    ],
)
async def test_bad_input_names_its_place(
    gateway: LiveGateway, changes: dict[str, Any], status: int, path: str
) -> None:
    answer = await gateway.request("POST", ACTIONS, json.dumps({**UPDATE, **changes}).encode())
    assert (answer.status, answer.json().get("path")) == (status, path)
    assert gateway.gate.actions == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b'"\\ud800"', "$.input.a"),
        (b"1e400", "$.input"),
        (b"9" * 5_000, "$.input"),
        (b"[" * 70 + b"]" * 70, "$.input"),
        (b"[" * 200_000, "$"),
        (b"Infinity", "$"),
    ],
)
async def test_json_that_chokes_others_is_refused(gateway: LiveGateway, text: bytes, path: str) -> None:
    place = b'{"requested_action":"ticket.update","target":{"system":"zendesk","record_id":"1"},"input":{"a":'
    answer = await gateway.request("POST", ACTIONS, place + text + b"}}")
    assert (answer.status, answer.json()["path"]) == (400, path)


async def test_doubled_keys_are_passed_on_once(gateway: LiveGateway) -> None:
    gateway.gate.perform = returning(Outcome(OutcomeStatus.OK, b"{}", Usage()))
    body = (
        b'{"requested_action":"ticket.delete","requested_action":"ticket.search",'
        b'"target":{"system":"zendesk","record_id":"1"},"input":{"q":7,"q":"x"}}'
    )
    assert (await gateway.request("POST", ACTIONS, body)).status == 200
    assert gateway.gate.actions[0].input == b'{"q":"x"}'


async def test_one_key_means_one_action_on_one_target(gateway: LiveGateway) -> None:
    gateway.gate.perform = returning(Outcome(OutcomeStatus.OK, b"{}", Usage()))
    for changes in ({}, {"input": {"a": "ä", "b": 1}}, {"target": {"system": "zendesk", "record_id": "2"}}):
        assert (await act(gateway, changes)).status == 200
    digests = [action.input_sha256 for action in gateway.gate.actions]
    assert digests[0] == digests[1] != digests[2]


async def open_run(gateway: LiveGateway, value: object, key: str | None = ADMIN_KEY) -> RawAnswer:
    return await gateway.request("POST", RUNS, json.dumps(value).encode(), token=key)


async def test_an_external_run(gateway: LiveGateway) -> None:
    answer = await open_run(gateway, {"agent_id": "helper", "external": True, "input": {"b": 1, "a": 2}})
    assert answer.status == 201
    members = answer.json()
    assert (members["verdict"], members["run_id"], members["token"]) == ("allowed", "run_1", "run_acme_1")
    doors = members["doors"]
    assert isinstance(doors, dict)
    assert doors["openai_base_url"] == f"{gateway.url}/v1"
    [request] = gateway.gate.opened
    assert (request.tenant_id, request.mode, request.input) == ("acme", "external", b'{"a":2,"b":1}')
    assert request.deadline_ms == 3_600_000


async def test_an_operator_names_the_tenant(gateway: LiveGateway) -> None:
    value = {"agent_id": "helper", "attached": True}
    answer = await open_run(gateway, value, OPERATOR_KEY)
    assert (answer.status, answer.json()["path"]) == (400, "$.tenant_id")
    assert (await open_run(gateway, {**value, "tenant_id": "other"}, OPERATOR_KEY)).status == 201
    assert gateway.gate.opened[0].tenant_id == "other"


async def test_a_foreign_tenant_or_workspace_is_not_found(gateway: LiveGateway) -> None:
    value = {"agent_id": "helper", "external": True}
    answers = [
        await open_run(gateway, {**value, "tenant_id": "other"}),
        await open_run(gateway, {**value, "tenant_id": "nobody"}),
        await open_run(gateway, {**value, "workspace_id": "sales"}, NARROW_KEY),
    ]
    assert {(answer.status, answer.body) for answer in answers} == {(404, answers[0].body)}
    assert (await open_run(gateway, value, NARROW_KEY)).status == 201
    assert [request.workspace_id for request in gateway.gate.opened] == ["main"]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"external": False}, "$.external"),
        ({"attached": True}, "$.external"),
        ({"agent_id": "A B"}, "$.agent_id"),
        ({"agent_id": "../x"}, "$.agent_id"),
        ({"tenant_id": "Acme'; --"}, "$.tenant_id"),
        ({"deadline_ms": 86_400_001}, "$.deadline_ms"),
        ({"deadline_ms": 0}, "$.deadline_ms"),
        ({"input": {"a": 2**64}}, "$.input.a"),
        ({"input": "\ud800"}, "$.input"),
        ({"command": "sh"}, "$.command"),
    ],
)
async def test_bad_runs_name_their_place(gateway: LiveGateway, changes: dict[str, Any], path: str) -> None:
    answer = await open_run(gateway, {"agent_id": "helper", "external": True, **changes})
    assert (answer.status, answer.json()["path"]) == (400, path)
    assert gateway.gate.opened == []


async def test_a_run_that_is_refused(gateway: LiveGateway) -> None:
    action_id = gateway.gate.new_action_id()
    verdict = Throttled(Meter("tenant", "acme", MeterName.CONCURRENT_RUNS), 100)
    gateway.gate.open_result = OpenedRun(ActionResult(verdict, None, action_id, TIMINGS), None, None, None)
    answer = await open_run(gateway, {"agent_id": "helper", "external": True})
    assert (answer.status, answer.headers["tenantry-verdict"]) == (429, "throttled")


async def test_a_run_token_opens_no_run(gateway: LiveGateway) -> None:
    assert (await open_run(gateway, {"agent_id": "helper", "external": True}, "run_acme_1")).status == 401


async def test_finishing_a_run(gateway: LiveGateway) -> None:
    path = f"{RUNS}/run_1/finish"
    done = b'{"state":"succeeded","result":{"b":1,"a":"x"}}'
    assert (await gateway.request("POST", path, done)).json() == {"run_id": "run_1", "state": "succeeded"}
    assert (await gateway.request("POST", path, b'{"state":"failed"}', token=ADMIN_KEY)).status == 200
    named = b'{"state":"cancelled","tenant_id":"other"}'
    assert (await gateway.request("POST", path, named, token=OPERATOR_KEY)).status == 200
    assert gateway.gate.closed == [
        ("scope of acme", "run_1", RunState.SUCCEEDED, b'{"a":"x","b":1}'),
        ("scope of acme", "run_1", RunState.FAILED, None),
        ("scope of other", "run_1", RunState.CANCELLED, None),
    ]
    assert (await gateway.request("POST", path, b'{"state":"running"}')).json()["path"] == "$.state"
    assert (await gateway.request("POST", path, named)).status == 404
    assert (await gateway.request("POST", path, done, token=NARROW_KEY)).status == 403
    assert (await gateway.request("POST", path, b'{"state":"failed"}', token=OPERATOR_KEY)).status == 400

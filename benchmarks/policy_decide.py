"""`policy.decide`: a decision of ours beside one bare Cedar evaluation over the same 100 policies.

Both have their policies and entities parsed once, and are asked in turn, so that whatever else the machine
does falls on both. Ours adds layers, obligations, ids, the checks of the request and its canonical form, and
has its cache of answers switched off; `policy.decide_cached` is the same with the cache on, for information.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable

import cedarpy

from benchmarks.figure import Figure, median_of, repeat
from tenantry.core.ids import ActionName, AgentId, PrincipalId, RunId, TenantId, WorkspaceId
from tenantry.policy.engine import PolicyEngine
from tenantry.policy.request import PolicyRequest
from tenantry.policy.schema import DeclaredAction, guardrail_text, profile_text

POLICIES = 100
ASKED_MIN = 400
GOAL = "<= 1.5"

ACTIONS = {
    "ticket.read": DeclaredAction(kind="tool", risk="read"),
    "ticket.update": DeclaredAction(kind="tool", risk="write"),
    "web.fetch": DeclaredAction(kind="tool", risk="read", web=True),
}


def measure(repetitions: int, seconds: float) -> list[Figure]:
    """Medians over the repetitions of each one's p50, in microseconds.

    Each repetition asks 400 requests in turn until `seconds` are over, once at least.
    """
    layers = _layers()
    requests = [_request(number) for number in range(ASKED_MIN)]
    ours = PolicyEngine(layers, 1, ACTIONS, cached_rulings=0)
    cached = PolicyEngine(layers, 1, ACTIONS)
    bare = _bare(layers)
    for request in requests[:50]:
        assert bare(request) == (ours.decide(request).effect == "allow")
    rounds = [_round(requests, bare, ours, cached, seconds) for _ in repeat(repetitions)]
    base = statistics.median(times[0] for times in rounds)
    return [
        Figure(
            name=name,
            value=median_of(times[place] for times in rounds),
            unit="us",
            against=f"one bare is_authorized over the same {POLICIES} policies, p50: {base:.2f} us",
            ratio=median_of(times[place] / times[0] for times in rounds),
            goal=goal,
        )
        for place, name, goal in ((1, "policy.decide", GOAL), (2, "policy.decide_cached", None))
    ]


def _round(
    requests: list[PolicyRequest],
    bare: Callable[[PolicyRequest], bool],
    ours: PolicyEngine,
    cached: PolicyEngine,
    seconds: float,
) -> tuple[float, float, float]:
    """One repetition: the p50 of bare, ours and cached."""
    times: tuple[list[int], list[int], list[int]] = ([], [], [])
    over_at = time.perf_counter() + seconds
    for place, request in enumerate(itertools.cycle(requests)):
        if place >= ASKED_MIN and time.perf_counter() >= over_at:
            break
        marks = [time.perf_counter_ns()]
        bare(request)
        marks.append(time.perf_counter_ns())
        ours.decide(request)
        marks.append(time.perf_counter_ns())
        cached.decide(request)
        marks.append(time.perf_counter_ns())
        for taken, start, end in zip(times, marks, marks[1:], strict=False):
            taken.append(end - start)
    first, second, third = (statistics.median(taken) / 1_000 for taken in times)
    return first, second, third


def _layers() -> dict[str, str]:
    """100 policies that all hold for one request, the way a tenant has them: most name one system or host."""
    guardrails, profile = guardrail_text(), profile_text("regulated_support")
    left = POLICIES - guardrails.count("@id") - profile.count("@id") - 2
    rules = ['@id("open") permit (principal, action, resource);']
    for number in range(left):
        match number % 3:
            case 0:
                head = 'forbid (principal, action in Action::"risk/write", resource == System::"system_{n}")'
                rule = head + ' when {{ context.labels.contains("untrusted") }};'
            case 1:
                rule = (
                    'forbid (principal, action in Action::"reach/web", resource)'
                    ' when {{ context has destination && context.destination like "*.blocked{n}.example" }};'
                )
            case _:
                rule = (
                    "permit (principal, action, resource)"
                    ' when {{ principal.agent_class == "class_{n}" && context.risk == "read" }};'
                )
        rules.append(f'@id("rule_{number}") ' + rule.format(n=number))
    workspace = '@id("no_closing") forbid (principal, action, resource == System::"closed");'
    layers = {"guardrail": guardrails, "tenant": "\n".join(rules)}
    return layers | {"workspace/ops": workspace, "profile/regulated_support": profile}


def _bare(layers: dict[str, str]) -> Callable[[PolicyRequest], bool]:
    """Cedar alone, with the same policies and entities parsed once."""
    policies = cedarpy.PolicySet.from_str("\n".join(layers.values()))
    assert len(policies) == POLICIES
    workspace = {"type": "Workspace", "id": "ops"}
    attributes = {
        "agent_class": "support",
        "workspace": "ops",
        "profile": "regulated_support",
        "trust_zone": "standard",
        "external_account_id": "acc_7",
    }
    entities: list[dict[str, object]] = [
        {"uid": {"type": "Agent", "id": "triage"}, "attrs": attributes, "parents": [workspace]},
        {"uid": workspace, "attrs": {}, "parents": [{"type": "Tenant", "id": "borealis"}]},
    ]
    for name, action in ACTIONS.items():
        groups = [{"type": "Action", "id": group} for group in action.groups()]
        entities.append({"uid": {"type": "Action", "id": name}, "attrs": {}, "parents": groups})
    parsed = cedarpy.Entities.from_json_str(json.dumps(entities))

    def ask(request: PolicyRequest) -> bool:
        context: dict[str, object] = {
            "kind": request.kind,
            "risk": request.risk,
            "record_id": request.target_record_id,
            "principal_id": request.principal_id,
            "labels": request.labels,
        }
        if request.destination is not None:
            context["destination"] = request.destination
        asked = {
            "principal": {"type": "Agent", "id": request.agent_id},
            "action": {"type": "Action", "id": request.action},
            "resource": {"type": "System", "id": request.target_system},
            "context": context,
        }
        return cedarpy.is_authorized(asked, policies, parsed).allowed

    return ask


def _request(number: int) -> PolicyRequest:
    name = sorted(ACTIONS)[number % len(ACTIONS)]
    return PolicyRequest(
        tenant_id=TenantId("borealis"),
        workspace_id=WorkspaceId("ops"),
        agent_id=AgentId("triage"),
        agent_class="support",
        policy_profile="regulated_support",
        principal_id=PrincipalId("prn_1"),
        run_id=RunId(f"run_{number}"),
        trust_zone="standard",
        external_account_id="acc_7",
        action=ActionName(name),
        kind=ACTIONS[name].kind,
        risk=ACTIONS[name].risk,
        target_system="zendesk",
        target_record_id=f"zd_{number}",
        destination="docs.example.com" if ACTIONS[name].web else None,
        labels=("untrusted",) if number % 2 else (),
    )

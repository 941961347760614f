"""A small tenant to decide for: its actions, its layers, and requests of its agent."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tenantry.core.ids import ActionName, AgentId, PrincipalId, RunId, TenantId, WorkspaceId
from tenantry.policy.engine import PolicyEngine
from tenantry.policy.request import PolicyRequest
from tenantry.policy.schema import DeclaredAction

ACTIONS = {
    "ticket.read": DeclaredAction(kind="tool", risk="read"),
    "ticket.draft": DeclaredAction(kind="tool", risk="draft"),
    "ticket.update": DeclaredAction(kind="tool", risk="write"),
    "account.close": DeclaredAction(kind="tool", risk="high_risk"),
    "web.fetch": DeclaredAction(kind="tool", risk="read", web=True),
}
OPEN = '@id("open") permit (principal, action, resource);'


def engine(version: int = 3, *, cached_rulings: int = 64, **layers: str) -> PolicyEngine:
    """An engine; keyword ``workspace__ops`` stands for the layer ``workspace/ops``."""
    texts = {name.replace("__", "/"): text for name, text in layers.items()}
    return PolicyEngine(texts, version, ACTIONS, cached_rulings=cached_rulings)


def request(action: str = "ticket.update", **changes: object) -> PolicyRequest:
    declared = ACTIONS.get(action)
    base = PolicyRequest(
        tenant_id=TenantId("borealis"),
        workspace_id=WorkspaceId("ops"),
        agent_id=AgentId("triage"),
        agent_class="support",
        policy_profile="careful",
        principal_id=PrincipalId("prn_1"),
        run_id=RunId("run_1"),
        trust_zone="standard",
        external_account_id="acc_7",
        action=ActionName(action),
        kind=declared.kind if declared else "tool",
        risk=declared.risk if declared else "read",
        target_system="zendesk",
        target_record_id="zd_99102",
    )
    return msgspec.structs.replace(base, **changes)


def altered(changes: Mapping[str, object]) -> PolicyRequest:
    """A request with any field changed, the action's name too."""
    return msgspec.structs.replace(request(), **changes)


def model_call(**changes: object) -> PolicyRequest:
    return request("model.call", **{"kind": "model", "risk": "read", "model": "gpt-small", **changes})

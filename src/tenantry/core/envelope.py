"""The execution envelope: whose action this is, carried through every hop (DESIGN §4)."""

from __future__ import annotations

import datetime as dt

import msgspec

from tenantry.core.action import Target
from tenantry.core.ids import ActionName, AgentId, PrincipalId, RunId, TenantId, WorkspaceId


class Envelope(msgspec.Struct, frozen=True):
    """Made by the gateway for each action, never by the caller; immutable; its canonical bytes are journaled."""

    txn_id: str
    tenant_id: TenantId
    workspace_id: WorkspaceId
    principal_id: PrincipalId
    agent_id: AgentId
    agent_class: str
    workflow_run_id: RunId
    policy_profile: str
    quota_class: str
    trust_zone: str
    requested_action: ActionName
    target: Target
    attempt: int
    deadline_at: dt.datetime
    delegation: tuple[AgentId, ...] = ()
    scope: frozenset[ActionName] = frozenset()


_ENCODER = msgspec.json.Encoder(order="deterministic")


def canonical_bytes(envelope: Envelope) -> bytes:
    """UTF-8 JSON with sorted keys; equal envelopes give equal bytes."""
    return _ENCODER.encode(envelope)

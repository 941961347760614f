"""What is known of a request before it is decided on: whose run it is, under which facts, how long each part took."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Literal

import msgspec

from tenantry.core.envelope import Envelope

if TYPE_CHECKING:
    from tenantry.core.action import Action, Outcome
    from tenantry.core.ids import ActionId, AgentId, PrincipalId, RunId, TenantId, WorkspaceId
    from tenantry.core.run import RunClaims
    from tenantry.core.verdict import Verdict
    from tenantry.gate.views import TenantView
    from tenantry.registry.facts import TenantFacts
    from tenantry.registry.specs import AgentSpec, WorkspaceSpec
    from tenantry.storage.scope import TenantScope


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """Who acts: the four levels' ids, and what the registry says of agent and workspace.

    ``run_scope`` is None while the run itself is being opened: it has no scope row yet.
    """

    tenant_id: TenantId
    workspace_id: WorkspaceId
    workspace: WorkspaceSpec
    agent_id: AgentId
    agent: AgentSpec
    run_id: RunId
    run_scope: RunId | None
    attempt: int
    principal_id: PrincipalId
    deadline_at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class RunContext:
    """A run's identity, proven. ``view`` holds the facts and policies that this request is decided on."""

    scope: TenantScope
    claims: RunClaims
    subject: Subject
    view: TenantView

    @property
    def facts(self) -> TenantFacts:
        """The tenant's configuration under the view's versions."""
        return self.view.facts


class Timings(msgspec.Struct):
    """Milliseconds of each part of one action."""

    queue: float = 0.0
    policy: float = 0.0
    gate: float = 0.0
    approval: float = 0.0
    upstream: float = 0.0


class ActionResult(msgspec.Struct, frozen=True):
    """What came of an action: the gate's verdict, and the outcome where it was performed or recorded."""

    verdict: Verdict
    outcome: Outcome | None
    action_id: ActionId
    timings: Timings


class OpenRun(msgspec.Struct, frozen=True):
    """A run to open. ``input`` is canonical JSON, the run's trusted text; ``deadline_ms`` at most 24 h."""

    tenant_id: TenantId
    agent_id: AgentId
    workspace_id: WorkspaceId | None
    mode: Literal["attached", "external"]
    input: bytes
    deadline_ms: int
    idempotency_key: str | None = None


class OpenedRun(msgspec.Struct, frozen=True):
    """``run_id``, ``token`` and ``claims`` are None where the verdict is not `Allowed`."""

    result: ActionResult
    run_id: RunId | None
    token: str | None
    claims: RunClaims | None


def make_envelope(subject: Subject, view: TenantView, action: Action) -> Envelope:
    """The envelope of one action; every field comes from proof or registry, none from the caller."""
    return Envelope(
        txn_id=action.action_id,
        tenant_id=subject.tenant_id,
        workspace_id=subject.workspace_id,
        principal_id=subject.principal_id,
        agent_id=subject.agent_id,
        agent_class=subject.agent.agent_class,
        workflow_run_id=subject.run_id,
        policy_profile=subject.agent.policy_profile,
        quota_class=view.facts.quota_class_name,
        trust_zone=subject.workspace.trust_zone,
        requested_action=action.name,
        target=action.target,
        attempt=subject.attempt,
        deadline_at=subject.deadline_at,
    )

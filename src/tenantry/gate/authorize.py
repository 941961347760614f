"""Step 2, authorize: policy, pure and in process. No I/O, and every failure is a deny."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenantry.policy.request import PolicyRequest

if TYPE_CHECKING:
    from tenantry.core.action import Action
    from tenantry.core.decision import Decision
    from tenantry.core.labels import Labels
    from tenantry.gate.context import Subject
    from tenantry.gate.views import TenantView


def authorize(view: TenantView, subject: Subject, action: Action, labels: Labels) -> Decision:
    """What the tenant's policies say of one action of a run that has `labels`."""
    return view.engine.decide(
        PolicyRequest(
            tenant_id=subject.tenant_id,
            workspace_id=subject.workspace_id,
            agent_id=subject.agent_id,
            agent_class=subject.agent.agent_class,
            policy_profile=subject.agent.policy_profile,
            principal_id=subject.principal_id,
            run_id=subject.run_id,
            trust_zone=subject.workspace.trust_zone,
            external_account_id=subject.workspace.external_account_id,
            action=action.name,
            kind=action.kind,
            risk=action.risk.word,
            target_system=action.target.system,
            target_record_id=action.target.record_id,
            destination=action.destination,
            model=action.model,
            labels=tuple(sorted(labels | action.labels)),
        )
    )

"""Step 2, authorize: policy, pure and in process. No I/O, and every failure is a deny."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tenantry.core.ids import PolicyId
from tenantry.policy.request import PolicyRequest

if TYPE_CHECKING:
    from tenantry.core.action import Action
    from tenantry.core.decision import Decision
    from tenantry.core.labels import Labels
    from tenantry.gate.context import Subject
    from tenantry.gate.views import TenantView
    from tenantry.registry.facts import TenantFacts

UNPRICED_MODEL: Final = PolicyId("platform/unpriced_model")


def authorize(view: TenantView, subject: Subject, action: Action, labels: Labels) -> Decision:
    """What the tenant's policies say of one action of a run that has `labels`.

    A model with no known price is not free: it is denied, whatever policy says, unless the tenant allows it.
    """
    decision = view.engine.decide(
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
    if decision.effect == "allow" and _is_unpriced(view.facts, action):
        return msgspec.structs.replace(decision, effect="deny", reason=(UNPRICED_MODEL,))
    return decision


def _is_unpriced(facts: TenantFacts, action: Action) -> bool:
    model = facts.models.get(action.model) if action.model is not None else None
    return model is not None and not model.is_priced and not facts.allow_unpriced

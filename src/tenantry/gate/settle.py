"""Step 6, settle: one round trip; what was used replaces what was reserved, and the outcome is journaled."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from tenantry.core.action import OutcomeStatus
from tenantry.gate.calls import SettleItem
from tenantry.journal.entries import SALT_BYTES, JournalOutput

if TYPE_CHECKING:
    from tenantry.core.action import Action, Outcome
    from tenantry.core.clock import Clock
    from tenantry.gate.calls import BeginItem
    from tenantry.storage.scope import TenantScope

OMITTED: Final = "the output was larger than the journal bytes reserved for it and is not kept"


def make_settlement(
    scope: TenantScope,
    begun: BeginItem,
    outcome: Outcome,
    clock: Clock,
    *,
    action: Action,
    run_state: str | None = None,
) -> SettleItem:
    """The settlement of a begun action. An output beyond the bytes reserved for it is left out, and said so."""
    room = begun.journal_bytes - len(begun.content)
    stored = _sealed(scope, begun, outcome, outcome.output, outcome.detail, clock)
    if len(stored) > room:
        stored = _sealed(scope, begun, outcome, None, OMITTED, clock)
    void = outcome.status is OutcomeStatus.VOID
    tokens = 0 if void else outcome.usage.model_tokens
    microusd = 0 if void else outcome.usage.cost_microusd
    return SettleItem(
        tenant_id=begun.tenant_id,
        action_id=begun.action_id,
        workspace=begun.workspace,
        agent=begun.agent,
        scope_run=begun.scope_run,
        status=outcome.status.value,
        tokens=tokens,
        microusd=microusd,
        journal_bytes=len(begun.content) + len(stored),
        labels=",".join(sorted(outcome.labels)),
        output=stored,
        output_sha256=hashlib.sha256(stored).digest(),
        overran=tokens > action.estimate.model_tokens or microusd > action.estimate.cost_microusd,
        run_state=run_state,
    )


def _sealed(
    scope: TenantScope,
    begun: BeginItem,
    outcome: Outcome,
    output: bytes | None,
    detail: str | None,
    clock: Clock,
) -> bytes:
    return JournalOutput(
        status=outcome.status,
        content_type=outcome.content_type,
        http_status=outcome.http_status,
        detail=detail,
        labels=tuple(sorted(outcome.labels)),
        output=output,
    ).encode(scope, begun.action_id, salt=clock.random_bytes(SALT_BYTES))

"""The batch function's arguments and answers: items in, results out.

The field order of the two items is that of `tenantry.begin_item_v1` and `tenantry.settle_item_v1` (migration 0003).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenantry.core.ids import TenantId
    from tenantry.storage.connect import Row

BeginCode = Literal[
    "allowed",
    "denied",
    "suspended",
    "throttled",
    "budget_exceeded",
    "approval_required",
    "recorded",
    "open",
    "key_reuse",
    "stale_policy",
    "stale_labels",
    "lease_lost",
    "unknown_scope",
    "skipped",
]
SettleCode = Literal["settled", "already", "unknown", "skipped"]
SettleStatus = Literal["ok", "failed", "cut", "unknown", "void"]


class BeginItem(msgspec.Struct, frozen=True):
    """One action's intent. ``scope_run`` is None while a run is being opened (its scope does not exist yet).

    ``reason`` is a JSON array, ``approvers`` and ``labels`` are comma-separated and sorted, amounts are upper bounds,
    ``content`` is salt (16 bytes) + sealed content.
    """

    tenant_id: TenantId
    action_id: str
    key: str | None
    workspace: str
    agent: str
    run: str
    scope_run: str | None
    principal: str
    kind: str
    name: str
    risk: int
    system: str
    input_sha256: bytes
    policy_version: int
    fleet_version: int
    attempt: int
    allow: bool
    reason: str
    approvers: str
    approval_digest: bytes
    labels: str
    labels_epoch: int
    concurrent_runs: int
    model_inflight: int
    model_tokens: int
    cost_microusd: int
    tool_calls: int
    high_risk: int
    journal_bytes: int
    timeout_ms: int
    content: bytes
    content_sha256: bytes
    run_spec: str | None = None


class SettleItem(msgspec.Struct, frozen=True):
    """What an action used and how it ended; the reservation is read from the journal, never from here."""

    tenant_id: TenantId
    action_id: str
    workspace: str
    agent: str
    scope_run: str | None
    status: SettleStatus
    tokens: int
    microusd: int
    journal_bytes: int
    labels: str
    output: bytes
    output_sha256: bytes
    overran: bool = False
    run_state: str | None = None


class BeginResult(msgspec.Struct, frozen=True):
    """``detail`` explains a refusal; ``output`` is a recorded outcome, sealed."""

    code: BeginCode
    position: int | None
    detail: Mapping[str, Any] | None
    prior_action_id: str | None
    output: bytes | None


class SettleResult(msgspec.Struct, frozen=True):
    """``already`` says that somebody else, usually the reaper, ended the action first."""

    code: SettleCode
    position: int | None


def encode(
    instance_id: str, settles: Sequence[SettleItem], begins: Sequence[BeginItem], *, skip_locked: bool
) -> tuple[str, bool, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The positional arguments of `tenantry.batch_v1`: each item's fields in the order of its composite type."""
    astuple = msgspec.structs.astuple
    return (instance_id, skip_locked, [astuple(item) for item in settles], [astuple(item) for item in begins])


def decode(
    rows: Iterable[Row], settles: int, begins: int
) -> tuple[list[SettleResult | None], list[BeginResult | None]]:
    """Results by item, in the order of the arguments; None where the function answered no row (a fault)."""
    settled: list[SettleResult | None] = [None] * settles
    begun: list[BeginResult | None] = [None] * begins
    for row in rows:
        part, place, code, position, detail = (
            row["part"],
            row["ord"],
            row["code"],
            row["log_position"],
            row["detail"],
        )
        if part == "settle":
            settled[place - 1] = SettleResult(code, position)
        else:
            parsed = msgspec.json.decode(detail) if detail is not None else None
            begun[place - 1] = BeginResult(code, position, parsed, row["prior_action_id"], row["output"])
    return settled, begun

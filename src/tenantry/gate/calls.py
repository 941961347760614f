"""The batch function's arguments and answers: items in, one array a column, results out.

The column order here is the parameter order of `tenantry.batch_v1` (batch.sql).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenantry.core.ids import TenantId

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


_SETTLE_COLUMNS: Final = (
    "action_id",
    "status",
    "tokens",
    "microusd",
    "journal_bytes",
    "labels",
    "output",
    "output_sha256",
    "run_state",
)
_BEGIN_COLUMNS: Final = (
    "action_id",
    "key",
    "workspace",
    "agent",
    "run",
    "principal",
    "kind",
    "name",
    "risk",
    "system",
    "input_sha256",
    "policy_version",
    "fleet_version",
    "attempt",
    "allow",
    "reason",
    "approvers",
    "approval_digest",
    "labels",
    "labels_epoch",
    "concurrent_runs",
    "model_inflight",
    "model_tokens",
    "cost_microusd",
    "tool_calls",
    "high_risk",
    "journal_bytes",
    "timeout_ms",
    "content",
    "content_sha256",
    "run_spec",
)
_settle_row: Final = attrgetter(*_SETTLE_COLUMNS)
_begin_row: Final = attrgetter(*_BEGIN_COLUMNS)


class _Scopes:
    """The distinct scopes of a batch, numbered from 1 in the order in which they were met; 0 is 'none'."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, int, str], int] = {}

    def place(self, tenant_id: str, level: int, subject: str | None) -> int:
        if subject is None:
            return 0
        return self._places.setdefault((tenant_id, level, subject), len(self._places) + 1)

    def columns(self) -> tuple[list[str], list[int], list[str]]:
        keys = list(self._places)
        return [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys]


def _places(items: Iterable[BeginItem | SettleItem], scopes: _Scopes) -> list[list[Any]]:
    """tenant_id and the four scope numbers, a column each."""
    columns: list[list[Any]] = [[], [], [], [], []]
    tenants, level_0, level_1, level_2, level_3 = columns
    for item in items:
        tenant_id = item.tenant_id
        tenants.append(tenant_id)
        level_0.append(scopes.place(tenant_id, 0, tenant_id))
        level_1.append(scopes.place(tenant_id, 1, item.workspace))
        level_2.append(scopes.place(tenant_id, 2, item.agent))
        level_3.append(scopes.place(tenant_id, 3, item.scope_run))
    return columns


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def encode(
    instance_id: str, settles: Sequence[SettleItem], begins: Sequence[BeginItem], *, skip_locked: bool
) -> list[Any]:
    """The positional arguments of `tenantry.batch_v1`."""
    scopes = _Scopes()
    settle_places = _places(settles, scopes)
    begin_places = _places(begins, scopes)
    tenants, levels, subjects = scopes.columns()
    return [
        instance_id,
        skip_locked,
        list(dict.fromkeys(tenants)),
        tenants,
        levels,
        subjects,
        *settle_places,
        *_columns([_settle_row(item) for item in settles], len(_SETTLE_COLUMNS)),
        *begin_places,
        *_columns([_begin_row(item) for item in begins], len(_BEGIN_COLUMNS)),
    ]


def decode(
    rows: Iterable[Mapping[str, Any]], settles: int, begins: int
) -> tuple[list[SettleResult | None], list[BeginResult | None]]:
    """Results by item, in the order of the arguments; None where the function answered no row (a fault)."""
    settled: list[SettleResult | None] = [None] * settles
    begun: list[BeginResult | None] = [None] * begins
    for row in rows:
        part, place, code, position, detail, prior, output = row.values()
        if part == "settle":
            settled[place - 1] = SettleResult(code, position)
        else:
            parsed = msgspec.json.decode(detail) if detail is not None else None
            begun[place - 1] = BeginResult(code, position, parsed, prior, output)
    return settled, begun

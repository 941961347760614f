"""The policy request: all that policy may know of one action, as a value."""

from __future__ import annotations

import json
from typing import Final

import msgspec

from tenantry.core.ids import ActionName, AgentId, PrincipalId, RunId, TenantId, WorkspaceId

RECORD_CHARS_MAX: Final = 2_048
FIELD_CHARS_MAX: Final = 255
LABELS_MAX: Final = 64

_ENCODER: Final = msgspec.json.Encoder(order="sorted")


class PolicyRequest(msgspec.Struct, frozen=True):
    """One action to decide on.

    ``risk`` is a word; ``destination`` a host, where it is known before the call; ``model`` stands in model
    calls. ``run_id`` is kept with the decision; no policy sees it.
    """

    tenant_id: TenantId
    workspace_id: WorkspaceId
    agent_id: AgentId
    agent_class: str
    policy_profile: str
    principal_id: PrincipalId
    run_id: RunId
    trust_zone: str
    external_account_id: str
    action: ActionName
    kind: str
    risk: str
    target_system: str
    target_record_id: str
    destination: str | None = None
    model: str | None = None
    labels: tuple[str, ...] = ()


def canonical_bytes(request: PolicyRequest) -> bytes:
    """UTF-8 JSON with sorted keys and sorted labels, each once; equal requests give equal bytes.

    A request that is no Unicode text (a lone surrogate) is written with escapes, for the record: it is
    denied.
    """
    labels = request.labels
    if len(labels) > 1:
        request = msgspec.structs.replace(request, labels=tuple(sorted(set(labels))))
    try:
        return _ENCODER.encode(request)
    except UnicodeEncodeError:
        return json.dumps(msgspec.structs.asdict(request), sort_keys=True, separators=(",", ":")).encode()


def find_flaw(request: PolicyRequest) -> str | None:
    """Why a request cannot be decided on: ``unreadable`` or ``too_large``; None when it can."""
    if len(request.labels) > LABELS_MAX or len(request.target_record_id) > RECORD_CHARS_MAX:
        return "too_large"
    fields = (
        request.tenant_id,
        request.workspace_id,
        request.agent_id,
        request.agent_class,
        request.policy_profile,
        request.principal_id,
        request.run_id,
        request.trust_zone,
        request.external_account_id,
        request.action,
        request.kind,
        request.risk,
        request.target_system,
        request.destination or "",
        request.model or "",
        *request.labels,
    )
    if max(map(len, fields)) > FIELD_CHARS_MAX:
        return "too_large"
    joined = "".join(fields) + request.target_record_id
    if "\0" in joined:
        return "unreadable"
    try:
        joined.encode()
    except UnicodeEncodeError:
        return "unreadable"
    return None

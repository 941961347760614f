"""Runs: what is known of one while it lives, and the fence of its lease."""

from __future__ import annotations

import datetime as dt
import enum

import msgspec

from tenantry.core.ids import AgentId, PrincipalId, RunId, TenantId, WorkspaceId


class RunState(enum.StrEnum):
    """``running`` holds a live lease; the others are final."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class RunClaims(msgspec.Struct, frozen=True):
    """What a verified run token says. It carries no rights: `begin` must find the attempt's lease live."""

    tenant_id: TenantId
    workspace_id: WorkspaceId
    agent_id: AgentId
    run_id: RunId
    attempt: int
    principal_id: PrincipalId
    expires_at: dt.datetime


class Fence(msgspec.Struct, frozen=True):
    """The lease's token; a stale one changes nothing."""

    run_id: RunId
    attempt: int
    token: int

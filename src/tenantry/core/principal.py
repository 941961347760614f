"""Principals: people and services, their roles and rights."""

from __future__ import annotations

import enum

import msgspec

from tenantry.core.ids import KeyId, PrincipalId, TenantId, WorkspaceId


class Role(enum.StrEnum):
    """Roles of API keys. `OPERATOR` belongs to the platform; all others to one tenant."""

    OPERATOR = "operator"
    TENANT_ADMIN = "tenant_admin"
    APPROVER = "approver"
    DEVELOPER = "developer"
    VIEWER = "viewer"


class Right(enum.StrEnum):
    """What a role may do; a role that is missing, empty or unknown has none."""

    FLEET_APPLY = "fleet.apply"
    TENANT_READ = "tenant.read"
    TENANT_SWITCH = "tenant.switch"
    TENANT_MODE = "tenant.mode"
    POLICY_READ = "policy.read"
    POLICY_WRITE = "policy.write"
    GUARDRAIL_WRITE = "guardrail.write"
    KEY_WRITE = "key.write"
    KEY_READ = "key.read"
    SECRET_WRITE = "secret.write"
    SECRET_READ = "secret.read"
    RUN_START = "run.start"
    RUN_READ = "run.read"
    QUOTA_READ = "quota.read"
    JOURNAL_READ = "journal.read"
    APPROVAL_ANSWER = "approval.answer"


class Principal(msgspec.Struct, frozen=True):
    """Who asks, as proven by a key. ``tenant_id`` is None only for operators; ``workspace_id`` narrows."""

    principal_id: PrincipalId
    key_id: KeyId
    role: Role
    tenant_id: TenantId | None
    workspace_id: WorkspaceId | None

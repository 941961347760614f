"""API keys, as people make and revoke them; each write journaled with its effect."""

from __future__ import annotations

import datetime as dt

import msgspec

from tenantry.core.ids import KeyId, PrincipalId, TenantId, WorkspaceId
from tenantry.core.principal import Principal, Right, Role
from tenantry.identity.keys import ApiKeyRow, ApiKeys
from tenantry.identity.rights import narrow, require
from tenantry.journal.admin import AdminJournal
from tenantry.storage.scope import Scopes


class CreatedKey(msgspec.Struct, frozen=True):
    """A new key; ``token`` is shown this once and is nowhere else."""

    key_id: KeyId
    principal_id: PrincipalId
    role: str
    workspace_id: WorkspaceId | None
    token: str


class Keys:
    """Use cases of a tenant's API keys."""

    def __init__(self, scopes: Scopes, keys: ApiKeys, journal: AdminJournal) -> None:
        self._scopes = scopes
        self._keys = keys
        self._journal = journal

    async def create(
        self,
        principal: Principal,
        tenant_id: TenantId,
        *,
        role: Role,
        workspace_id: WorkspaceId | None = None,
        expires_at: dt.datetime | None = None,
    ) -> CreatedKey:
        """A new key. A key that is narrowed makes keys of its own workspace only. Errors: as `ApiKeys`."""
        require(principal, Right.KEY_WRITE, tenant_id, workspace_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            made, token = await self._keys.create(
                scope, role=role, workspace_id=workspace_id, expires_at=expires_at
            )
            await self._journal.write(
                scope,
                name="key.create",
                target=f"key/{made.key_id}",
                detail={"role": role.value, "workspace_id": workspace_id, "principal_id": made.principal_id},
            )
        return CreatedKey(made.key_id, made.principal_id, made.role.value, made.workspace_id, token)

    async def revoke(self, principal: Principal, tenant_id: TenantId, key_id: str) -> None:
        """Revoke a key; no process takes it five seconds later. Errors: `NotFoundError`."""
        workspace_id = principal.workspace_id
        require(principal, Right.KEY_WRITE, tenant_id, workspace_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            await self._keys.revoke(scope, key_id, workspace_id=workspace_id)
            await self._journal.write(scope, name="key.revoke", target=f"key/{key_id}")

    async def list_keys(
        self, principal: Principal, tenant_id: TenantId, *, after: str = "", limit: int = 100
    ) -> list[ApiKeyRow]:
        """A page of keys, never their secret part."""
        workspace_id = narrow(principal, None)
        require(principal, Right.KEY_READ, tenant_id, workspace_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            return await self._keys.list_keys(scope, workspace_id=workspace_id, after=after, limit=limit)

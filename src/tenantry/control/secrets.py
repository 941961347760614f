"""A tenant's secrets, as people put, rotate and revoke them. Every use case is journaled, reading names too."""

from __future__ import annotations

from typing import Literal

import msgspec

from tenantry.broker.secrets import SecretValue, SecretVersion
from tenantry.broker.store import (
    SecretDeclaration,
    list_secrets,
    put_secret,
    revoke_secret,
    rotate_secret,
)
from tenantry.core.ids import TenantId, WorkspaceId
from tenantry.core.principal import Principal, Right
from tenantry.identity.rights import narrow, require
from tenantry.journal.admin import AdminJournal
from tenantry.storage.scope import Scopes


class SecretOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person puts. `value` is in the clear here and nowhere after."""

    system: str
    agent_classes: tuple[str, ...]
    value: str
    capability: Literal["read", "mutate"] = "read"

    def __repr__(self) -> str:
        return f"SecretOrder({self.system!r}, hidden)"


class PutSecret(msgspec.Struct, frozen=True):
    """The version that stands now; ``changed``: it is a new one."""

    version: int
    changed: bool


class Secrets:
    """Use cases of a tenant's secrets. Gateways take up a change within a second."""

    def __init__(self, scopes: Scopes, journal: AdminJournal) -> None:
        self._scopes = scopes
        self._journal = journal

    async def put(
        self,
        principal: Principal,
        tenant_id: TenantId,
        workspace_id: WorkspaceId,
        name: str,
        order: SecretOrder,
    ) -> PutSecret:
        """Make it what is given. Errors: `InvalidInputError` that names the field."""
        declaration = SecretDeclaration(
            workspace_id, name, order.system, order.agent_classes, order.capability
        )
        require(principal, Right.SECRET_WRITE, tenant_id, declaration.workspace_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            version, changed = await put_secret(scope, declaration, SecretValue(order.value))
            await self._journal.write(
                scope,
                name="secret.put",
                target=_target(declaration.workspace_id, declaration.name),
                detail={
                    "version": version,
                    "changed": changed,
                    "system": declaration.system,
                    "agent_classes": declaration.agent_classes,
                    "capability": declaration.capability,
                },
            )
        return PutSecret(version, changed)

    async def rotate(
        self,
        principal: Principal,
        tenant_id: TenantId,
        workspace_id: WorkspaceId,
        name: str,
        value: str,
        *,
        overlap: bool,
    ) -> PutSecret:
        """A new value for the same use. Errors: `NotFoundError`."""
        require(principal, Right.SECRET_WRITE, tenant_id, workspace_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            version = await rotate_secret(scope, workspace_id, name, SecretValue(value), overlap=overlap)
            await self._journal.write(
                scope,
                name="secret.rotate",
                target=_target(workspace_id, name),
                detail={"version": version, "overlap": overlap},
            )
        return PutSecret(version, changed=True)

    async def revoke(
        self,
        principal: Principal,
        tenant_id: TenantId,
        workspace_id: WorkspaceId,
        name: str,
        version: int | None = None,
    ) -> int:
        """Revoke one version or all; how many were in force. Errors: `NotFoundError`."""
        require(principal, Right.SECRET_WRITE, tenant_id, workspace_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            revoked = await revoke_secret(scope, workspace_id, name, version)
            await self._journal.write(
                scope,
                name="secret.revoke",
                target=_target(workspace_id, name),
                detail={"version": version, "revoked": revoked},
            )
        return revoked

    async def list_secrets(
        self,
        principal: Principal,
        tenant_id: TenantId,
        workspace_id: WorkspaceId | None = None,
        *,
        after: tuple[str, str, int] = ("", "", 0),
        limit: int = 100,
    ) -> list[SecretVersion]:
        """A page of versions, never a value."""
        workspace_id = narrow(principal, workspace_id)
        require(principal, Right.SECRET_READ, tenant_id, workspace_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            found = await list_secrets(scope, workspace_id, after=after, limit=limit)
            await self._journal.write(
                scope, name="secret.list", target="secrets", detail={"workspace_id": workspace_id}
            )
        return found


def _target(workspace_id: str, name: str) -> str:
    return f"secret/{workspace_id}/{name}"

"""Tenants and what is registered in them, as people read them."""

from __future__ import annotations

import datetime as dt

import msgspec

from tenantry.control.fleet_state import read_tenant
from tenantry.control.scopes import find_tenant_scope
from tenantry.core.errors import NotFoundError
from tenantry.core.ids import TenantId
from tenantry.core.principal import Principal, Right
from tenantry.identity.rights import narrow, require, rights_of
from tenantry.registry.specs import TenantSpec
from tenantry.registry.store import TenantRow, find_tenant_row, list_tenants
from tenantry.storage.scope import Scopes
from tenantry.switches.history import StoppedScope, list_stopped


class TenantState(msgspec.Struct, frozen=True):
    """A tenant: what is declared, under which versions, and what of it is stopped. Aware UTC."""

    tenant_id: TenantId
    policy_version: int
    fleet_version: int
    killed: bool
    frozen: bool
    mode: str
    mode_expires_at: dt.datetime | None
    spec: TenantSpec
    stopped: list[StoppedScope]


class Whoami(msgspec.Struct, frozen=True):
    """Who a key proves."""

    principal_id: str
    key_id: str
    role: str
    tenant_id: str | None
    workspace_id: str | None
    rights: list[str]


class Tenants:
    """Use cases of reading tenants."""

    def __init__(self, scopes: Scopes) -> None:
        self._scopes = scopes

    def whoami(self, principal: Principal) -> Whoami:
        """The asker itself; no database."""
        return Whoami(
            principal.principal_id,
            principal.key_id,
            principal.role.value,
            principal.tenant_id,
            principal.workspace_id,
            sorted(right.value for right in rights_of(principal.role)),
        )

    async def list_tenants(
        self, principal: Principal, *, after: str = "", limit: int = 100
    ) -> list[TenantRow]:
        """All tenants by id for an operator; anybody else sees their own."""
        require(principal, Right.TENANT_READ)
        if principal.tenant_id is not None:
            async with await self._scopes.for_principal(principal) as scope:
                row = await find_tenant_row(scope)
            return [row] if row is not None and row.tenant_id > after else []
        async with self._scopes.platform(
            reason="list of tenants", operator=principal.principal_id
        ) as platform:
            return await list_tenants(platform, after=after, limit=limit)

    async def show(self, principal: Principal, tenant_id: TenantId) -> TenantState:
        """One tenant whole; a key that is narrowed sees its own workspace in it. Errors: `NotFoundError`."""
        require(principal, Right.TENANT_READ, tenant_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            spec = await read_tenant(scope)
            row = await find_tenant_scope(scope)
            stopped = await list_stopped(scope)
        if spec is None or row is None:
            raise NotFoundError("there is no such tenant")
        workspace_id = narrow(principal, None)
        if workspace_id is not None:
            spec = _narrowed(spec, workspace_id)
            stopped = [s for s in stopped if s.level == "tenant" or s.subject_id == workspace_id]
        return TenantState(
            tenant_id=scope.tenant_id,
            policy_version=row["policy_version"],
            fleet_version=row["fleet_version"],
            killed=row["killed"],
            frozen=row["frozen"],
            mode=row["mode"],
            mode_expires_at=row["mode_expires_at"],
            spec=spec,
            stopped=stopped,
        )


def _narrowed(spec: TenantSpec, workspace_id: str) -> TenantSpec:
    return msgspec.structs.replace(
        spec,
        workspaces={n: w for n, w in spec.workspaces.items() if n == workspace_id},
        agents={n: a for n, a in spec.agents.items() if a.workspace == workspace_id},
        secrets={n: s for n, s in spec.secrets.items() if s.workspace == workspace_id},
    )

"""Quotas, as people read and set them."""

from __future__ import annotations

import msgspec

from tenantry.control.fleet_state import read_tenant
from tenantry.control.scopes import check_limits, lock_tenant, put_scopes, statements
from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import TenantId, WorkspaceId
from tenantry.core.principal import Principal, Right
from tenantry.core.quota import Level, Limits
from tenantry.identity.rights import require
from tenantry.journal.admin import AdminJournal
from tenantry.quota.meters import ScopeMeters, read_meters
from tenantry.registry.specs import TenantSpec
from tenantry.registry.store import put_tenant, read_facts
from tenantry.storage.database import ControlConnection
from tenantry.storage.scope import Scopes

REASON_CHARACTERS_MAX = 1_000


class ClearedOverrun(msgspec.Struct, frozen=True):
    """How many scopes may call models again, and how many incidents were closed with it."""

    scopes: int
    incidents: int


class Quotas:
    """Use cases of quotas. `connection` is one of control's own."""

    def __init__(self, scopes: Scopes, connection: ControlConnection, journal: AdminJournal) -> None:
        self._scopes = scopes
        self._connection = connection
        self._journal = journal

    async def show(
        self,
        principal: Principal,
        tenant_id: TenantId,
        *,
        level: Level | None = None,
        subject_id: str | None = None,
    ) -> list[ScopeMeters]:
        """Meters of one scope, or of the tenant, its workspaces and agents. Errors: `NotFoundError`."""
        require(principal, Right.QUOTA_READ, tenant_id)
        if level not in {None, "tenant"} and (subject_id is None or not _is_plain(subject_id)):
            raise InvalidInputError("name whose meters", path="$.subject_id")
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            found = await read_meters(scope, level=level, subject_id=subject_id)
            if principal.workspace_id is not None:
                spec = await read_tenant(scope)
                runs = await scope.fetch_all(
                    statements()["list_workspace_runs"], scope.tenant_id, principal.workspace_id, subject_id
                )
                run_ids = frozenset(row["run_id"] for row in runs)
                found = [m for m in found if _is_in(m, spec, principal.workspace_id, run_ids)]
        if not found:
            raise NotFoundError("there is no such scope")
        return found

    async def set_limits(
        self,
        principal: Principal,
        tenant_id: TenantId,
        level: Level,
        subject_id: str,
        limits: Limits,
        *,
        reason: str,
    ) -> Limits:
        """Overrides of a tenant, workspace or agent, instead of those before; an operator's to give.

        The quota class's limits hold where nothing is overridden. Use and reservations stay. Errors:
        `InvalidInputError`, `NotFoundError`.
        """
        _check_reason(reason)
        require(principal, Right.FLEET_APPLY)
        check_limits(limits, path="$.limits")
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            await lock_tenant(scope)
            spec = await read_tenant(scope)
            if spec is None:
                raise NotFoundError("there is no such tenant")
            wanted = _overridden(spec, scope.tenant_id, level, subject_id, limits)
            facts = await read_facts(scope)
            await put_scopes(scope, wanted, facts.quota_class)
            await put_tenant(scope, wanted)
            await self._journal.write(
                scope,
                name="quota.set",
                target=f"{level}/{subject_id}",
                detail={"limits": msgspec.to_builtins(limits), "reason": reason},
            )
        return limits

    async def clear_overrun(
        self, principal: Principal, tenant_id: TenantId, *, reason: str
    ) -> ClearedOverrun:
        """Let model calls begin again after a provider billed beyond the bound; its incidents are closed.

        An operator's to do, who has looked at the bill.
        """
        _check_reason(reason)
        require(principal, Right.FLEET_APPLY)
        scope = await self._scopes.for_principal(principal, tenant_id)
        async with self._connection.transaction(scope) as transaction:
            cleared = await transaction.fetch_one(statements()["clear_overrun"], scope.tenant_id)
            assert cleared is not None, "it answers its counts"
            entry = self._journal.entry(
                scope,
                name="quota.clear_overrun",
                target=f"tenant/{scope.tenant_id}",
                detail={"scopes": cleared["scopes"], "incidents": cleared["incidents"], "reason": reason},
            )
            await transaction.fetch_one(
                statements()["write_admin"], scope.tenant_id, *msgspec.structs.astuple(entry)
            )
        return ClearedOverrun(cleared["scopes"], cleared["incidents"])


def _overridden(
    spec: TenantSpec, tenant_id: str, level: Level, subject_id: str, limits: Limits
) -> TenantSpec:
    replace = msgspec.structs.replace
    match level:
        case "tenant" if subject_id == tenant_id:
            return replace(spec, limits=limits)
        case "workspace" if subject_id in spec.workspaces:
            workspace = replace(spec.workspaces[subject_id], limits=limits)
            return replace(spec, workspaces={**spec.workspaces, subject_id: workspace})
        case "agent" if subject_id in spec.agents:
            agent = replace(spec.agents[subject_id], limits=limits)
            return replace(spec, agents={**spec.agents, subject_id: agent})
        case "run":
            raise InvalidInputError("a run's limits come from its quota class", path="$.level")
        case _:
            raise NotFoundError(f"there is no such {level}")


def _is_in(
    meters: ScopeMeters, spec: TenantSpec | None, workspace_id: WorkspaceId, run_ids: frozenset[str]
) -> bool:
    match meters.level:
        case "workspace":
            return meters.subject_id == workspace_id
        case "agent":
            agent = None if spec is None else spec.agents.get(meters.subject_id)
            return agent is not None and agent.workspace == workspace_id
        case "run":
            return meters.subject_id in run_ids
        case _:
            return False


def _is_plain(text: str) -> bool:
    return 0 < len(text) <= 200 and text.isascii() and text.isprintable()


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > REASON_CHARACTERS_MAX or not reason.isprintable():
        raise InvalidInputError("a reason is 1 to 1000 printable characters", path="$.reason")

"""Policy as code: what is in force, checked, activated, its history, and back to an earlier version."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping
from typing import Final

import msgspec

from tenantry.control.fleet_file import declared_actions
from tenantry.control.scopes import (
    find_tenant_scope,
    lock_tenant,
    raise_version,
    statements,
    tenant_layers,
)
from tenantry.core.errors import InvalidInputError, NotFoundError, StorageUnavailableError
from tenantry.core.ids import TenantId
from tenantry.core.principal import Principal, Right
from tenantry.identity.rights import require
from tenantry.journal.admin import AdminJournal
from tenantry.policy.layers import GUARDRAIL
from tenantry.policy.validate import PolicyInvalidError, Problem, check
from tenantry.registry.specs import PolicySpec, TenantSpec
from tenantry.registry.store import find_tenant, put_tenant, read_facts
from tenantry.storage.scope import Scopes, TenantScope

REASON_CHARACTERS_MAX: Final = 1_000
PAGE_MAX: Final = 500
ATTEMPTS: Final = 3
# None takes a layer away.
Layers = Mapping[str, str | None]


class PoliciesInForce(msgspec.Struct, frozen=True):
    """A tenant's layers and the version under which they hold; the guardrails are the platform's."""

    policy_version: int
    frozen: bool
    layers: dict[str, str]


class PolicyVersion(msgspec.Struct, frozen=True):
    """One version of a tenant's policies; ``layers`` None in a list. Aware UTC."""

    policy_version: int
    author: str
    reason: str
    activated_at: dt.datetime
    layers: dict[str, str] | None = None


class Policies:
    """Use cases of a tenant's policies."""

    def __init__(self, scopes: Scopes, journal: AdminJournal) -> None:
        self._scopes = scopes
        self._journal = journal

    async def show(self, principal: Principal, tenant_id: TenantId) -> PoliciesInForce:
        """What holds now."""
        require(principal, Right.POLICY_READ, tenant_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            facts = await read_facts(scope)
            row = await find_tenant_scope(scope)
        assert row is not None, "facts come from it"
        return PoliciesInForce(facts.policy_version, row["frozen"], facts.policies)

    async def check(self, principal: Principal, tenant_id: TenantId, layers: Layers) -> list[Problem]:
        """What would be wrong if `layers` were put over those in force. Errors: `InvalidInputError`."""
        require(principal, Right.POLICY_READ, tenant_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            spec, guardrails, _ = await self._read(scope)
        return await _problems(_replaced(spec, layers), guardrails)

    async def activate(
        self, principal: Principal, tenant_id: TenantId, layers: Layers, *, reason: str
    ) -> int:
        """Put `layers` over those in force; the new version. What was decided before begins no more.

        Errors: `PolicyInvalidError`, `InvalidInputError`, `PolicyFrozenError`; then nothing has changed.
        """
        _check_reason(reason)
        require(principal, Right.POLICY_WRITE, tenant_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            return await self._activate(scope, layers, reason=reason, name="policy.activate", detail={})

    async def rollback(
        self, principal: Principal, tenant_id: TenantId, policy_version: int, *, reason: str
    ) -> int:
        """Activate again what was in force under an earlier version; the new version.

        Errors: as `activate`, and `NotFoundError`.
        """
        _check_reason(reason)
        require(principal, Right.POLICY_WRITE, tenant_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            earlier = await _find_version(scope, policy_version)
            spec = await _known_tenant(scope)
            assert earlier.layers is not None, "one version is read with its layers"
            layers: dict[str, str | None] = dict.fromkeys(tenant_layers(spec))
            layers |= {
                layer: text
                for layer, text in earlier.layers.items()
                if not layer.startswith("workspace/") or layer.removeprefix("workspace/") in spec.workspaces
            }
            return await self._activate(
                scope, layers, reason=reason, name="policy.rollback", detail={"to": policy_version}
            )

    async def history(
        self, principal: Principal, tenant_id: TenantId, *, before: int | None = None, limit: int = 100
    ) -> list[PolicyVersion]:
        """A page of versions, newest first."""
        require(principal, Right.POLICY_READ, tenant_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            rows = await scope.fetch_all(
                statements()["list_policy_versions"],
                scope.tenant_id,
                before,
                max(1, min(limit, PAGE_MAX)),
            )
        return [
            PolicyVersion(row["policy_version"], row["author"], row["reason"], row["activated_at"])
            for row in rows
        ]

    async def show_version(
        self, principal: Principal, tenant_id: TenantId, policy_version: int
    ) -> PolicyVersion:
        """One version with its layers. Errors: `NotFoundError`."""
        require(principal, Right.POLICY_READ, tenant_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            return await _find_version(scope, policy_version)

    async def _read(self, scope: TenantScope) -> tuple[TenantSpec, str, int]:
        """The tenant, the guardrails, and the tenant's version, which a change meanwhile raises."""
        facts = await read_facts(scope)
        return await _known_tenant(scope), facts.policies.get(GUARDRAIL, ""), facts.policy_version

    async def _activate(
        self, scope: TenantScope, layers: Layers, *, reason: str, name: str, detail: Mapping[str, object]
    ) -> int:
        """Within the caller's transaction. Checked first, so that the tenant's row is held shortly."""
        for _ in range(ATTEMPTS):
            spec, guardrails, read_at = await self._read(scope)
            wanted = _replaced(spec, layers)
            problems = await _problems(wanted, guardrails)
            if problems:
                raise PolicyInvalidError(tuple(problems))
            if (await lock_tenant(scope))["policy_version"] == read_at:
                break
        else:
            raise StorageUnavailableError("others keep changing this tenant: nothing was activated")
        await put_tenant(scope, wanted)
        version = await raise_version(scope, tenant_layers(wanted), author=scope.actor, reason=reason)
        await self._journal.write(
            scope,
            name=name,
            target=f"tenant/{scope.tenant_id}",
            detail={"policy_version": version, "reason": reason, "layers": sorted(layers), **detail},
        )
        return version


def _replaced(spec: TenantSpec, layers: Layers) -> TenantSpec:
    """The tenant with some layers replaced. Raises `InvalidInputError` for one that it cannot have."""
    workspaces, profiles, tenant = dict(spec.workspaces), dict(spec.profiles), spec.policy
    for layer, text in layers.items():
        policy = None if text is None else PolicySpec(text=text)
        head, _, name = layer.partition("/")
        path = f"$.layers.{layer[:100]}"
        if layer == "tenant":
            tenant = policy
        elif head == "workspace" and name in workspaces:
            workspaces[name] = msgspec.structs.replace(workspaces[name], policy=policy)
        elif head == "profile" and policy is not None:
            profiles[name] = policy
        elif head == "profile":
            profiles.pop(name, None)
        else:
            raise InvalidInputError(
                "a tenant's layers are tenant, workspace/NAME of its own, and profile/NAME", path=path
            )
    for name, agent in spec.agents.items():
        if agent.policy_profile not in profiles:
            raise InvalidInputError(
                f"the agent {name} needs this profile", path=f"$.layers.profile/{agent.policy_profile}"
            )
    return msgspec.structs.replace(spec, policy=tenant, workspaces=workspaces, profiles=profiles)


async def _problems(spec: TenantSpec, guardrails: str) -> list[Problem]:
    layers = {GUARDRAIL: guardrails, **tenant_layers(spec)}
    return await asyncio.to_thread(check, layers, declared_actions(spec.integrations))


async def _known_tenant(scope: TenantScope) -> TenantSpec:
    spec = await find_tenant(scope)
    if spec is None:
        raise NotFoundError("there is no such tenant")
    return spec


async def _find_version(scope: TenantScope, policy_version: int) -> PolicyVersion:
    row = None
    if 0 < policy_version < 2**63:
        row = await scope.fetch_one(statements()["find_policy_version"], scope.tenant_id, policy_version)
    if row is None:
        raise NotFoundError("there is no such version")
    layers = msgspec.json.decode(row["layers"], type=dict[str, str])
    return PolicyVersion(row["policy_version"], row["author"], row["reason"], row["activated_at"], layers)


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > REASON_CHARACTERS_MAX or not reason.isprintable():
        raise InvalidInputError("a reason is 1 to 1000 printable characters", path="$.reason")

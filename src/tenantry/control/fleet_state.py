"""The fleet as it stands in the database, in the words of the fleet file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from tenantry.broker.secrets import SecretVersion
from tenantry.broker.store import list_secrets
from tenantry.control.fleet_file import own_guardrails
from tenantry.core.ids import TenantId
from tenantry.core.principal import Principal
from tenantry.core.quota import QuotaClass
from tenantry.registry.documents import GUARDRAIL_NAME
from tenantry.registry.specs import (
    FleetFile,
    ModelSpec,
    PolicySpec,
    ProviderSpec,
    SecretSpec,
    TenantSpec,
    ValueRef,
)
from tenantry.registry.store import (
    TenantRow,
    find_tenant,
    list_platform_specs,
    list_provider_credentials,
    list_tenants,
)
from tenantry.storage.scope import PlatformScope, Scopes, TenantScope

SECRETS_MAX: Final = 1_000

T = TypeVar("T")


class PlatformState(msgspec.Struct, frozen=True):
    """What stands above tenants. ``credentials`` are sealed documents by provider."""

    guardrails: str
    quota_classes: dict[str, QuotaClass]
    providers: dict[str, ProviderSpec]
    models: dict[str, ModelSpec]
    credentials: dict[str, str]


async def read_platform(scope: PlatformScope) -> PlatformState:
    """Five statements inside the caller's block."""
    guardrails = await list_platform_specs(scope, "guardrail")
    found = guardrails.get(GUARDRAIL_NAME)
    return PlatformState(
        guardrails=(found.text or "") if isinstance(found, PolicySpec) else "",
        quota_classes=_of(QuotaClass, await list_platform_specs(scope, "quota_class")),
        providers=_of(ProviderSpec, await list_platform_specs(scope, "provider")),
        models=_of(ModelSpec, await list_platform_specs(scope, "model")),
        credentials=await list_provider_credentials(scope),
    )


async def read_all_tenants(scope: PlatformScope) -> list[TenantRow]:
    """Every tenant, a page of a thousand a statement."""
    rows: list[TenantRow] = []
    while page := await list_tenants(scope, after=rows[-1].tenant_id if rows else "", limit=1_000):
        rows += page
    return rows


async def read_tenant(scope: TenantScope) -> TenantSpec | None:
    """A tenant as declared, its secrets by reference; six statements in the caller's block."""
    spec = await find_tenant(scope)
    if spec is None:
        return None
    secrets = {row.name: _secret_of(scope.tenant_id, row) for row in await current_secrets(scope)}
    return msgspec.structs.replace(spec, secrets=secrets)


async def current_secrets(scope: TenantScope) -> list[SecretVersion]:
    """The secrets in force, one version each; at most a thousand versions are looked at."""
    return [row for row in await list_secrets(scope, limit=SECRETS_MAX) if row.current]


async def export_fleet(scopes: Scopes, principal: Principal) -> FleetFile:
    """The whole fleet as a file; a secret's value is an environment variable to be set. Not one snapshot."""
    platform_scope = scopes.platform(reason="export of the fleet", operator=principal.principal_id)
    async with platform_scope:
        platform = await read_platform(platform_scope)
        rows = await read_all_tenants(platform_scope)
    tenants: dict[str, TenantSpec] = {}
    for row in rows:
        async with await scopes.for_principal(principal, row.tenant_id) as scope:
            spec = await read_tenant(scope)
        if spec is not None:
            tenants[row.tenant_id] = spec
    return FleetFile(
        version=1,
        guardrails=PolicySpec(text=own_guardrails(platform.guardrails)),
        quota_classes=platform.quota_classes,
        tenants=tenants,
        providers=platform.providers,
        models=platform.models,
    )


def _secret_of(tenant_id: TenantId, row: SecretVersion) -> SecretSpec:
    variable = re.sub(r"[^A-Z0-9]", "_", f"{tenant_id}_{row.name}".upper())
    return SecretSpec(
        workspace=row.workspace_id,
        system=row.system,
        agent_classes=row.agent_classes,
        value=ValueRef(env=variable),
        capability="mutate" if row.capability == "mutate" else "read",
    )


def _of(kind: type[T], specs: Mapping[str, object]) -> dict[str, T]:
    return {name: spec for name, spec in specs.items() if isinstance(spec, kind)}

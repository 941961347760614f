"""What is registered, in the database: whole declarations in, facts out.

`load_facts` opens a transaction of its own; everything else runs inside the caller's ``async with scope:``,
so that a change, its version and its journal entry stand or fall together. Writers change specs first and
raise the version after (`gate/scopes.sql`), in one transaction where they can: facts are then never older
than the version they carry.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import AgentId, TenantId, parse_name
from tenantry.core.quota import QuotaClass
from tenantry.registry.documents import (
    GUARDRAIL_NAME,
    PLATFORM_KINDS,
    TENANT_KINDS,
    PlatformKind,
    PlatformThing,
    TenantBase,
    TenantKind,
    TenantThing,
    base_of,
    check_actions,
    check_tenant,
    decode_document,
    encode_document,
    parse_platform_name,
)
from tenantry.registry.facts import TenantFacts
from tenantry.registry.specs import (
    AgentSpec,
    FleetFile,
    IntegrationSpec,
    ModelSpec,
    PolicySpec,
    ProviderSpec,
    TenantSpec,
    WorkspaceSpec,
)
from tenantry.storage.connect import Row
from tenantry.storage.scope import PlatformScope, TenantScope
from tenantry.storage.statements import Statement, load_statements

TENANTS_PAGE_MAX = 1000
DISPLAY_NAME_CHARS_MAX = 200
_CREDENTIAL_KIND = "provider_credential"

T = TypeVar("T")


class TenantRow(msgspec.Struct, frozen=True):
    """A tenant in a list of the platform's; `created_at` is aware UTC."""

    tenant_id: TenantId
    display_name: str
    quota_class: str
    created_at: dt.datetime


class _Head(msgspec.Struct, frozen=True):
    policy_version: int
    fleet_version: int
    base: TenantBase


async def load_facts(scope: TenantScope) -> TenantFacts:
    """The tenant's facts under the versions that they carry; one statement, in a transaction of its own.

    Errors: `NotFoundError` while the tenant or its scope row does not stand; `InvalidInputError` that names
    the spec when a stored one no longer reads or names a thing that is gone: such a tenant is stopped, not
    guessed at.
    """
    async with scope:
        return await read_facts(scope)


async def read_facts(scope: TenantScope) -> TenantFacts:
    """`load_facts` inside the caller's transaction."""
    rows = await scope.fetch_all(_statements()["load_facts"], scope.tenant_id)
    return build_facts(scope.tenant_id, rows)


def build_facts(tenant_id: TenantId, rows: Iterable[Row]) -> TenantFacts:
    """Facts from rows of kind, name and JSON document. Errors: as `load_facts`."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(row["kind"], {})[row["name"]] = row["document"]
    if "tenant" not in found:
        raise NotFoundError("there is no such tenant")
    ((class_name, head_document),) = found["tenant"].items()
    head = decode_document(head_document, _Head, path="$.tenant")
    classes = _decode_all(found, "quota_class", QuotaClass)
    if class_name not in classes:
        raise InvalidInputError(f"the quota class {class_name} is not declared", path="$.quota_class")
    workspaces = _decode_all(found, "workspace", WorkspaceSpec)
    agents = _decode_all(found, "agent", AgentSpec)
    for name, agent in agents.items():
        if agent.workspace not in workspaces:
            raise InvalidInputError(
                "the agent's workspace is not declared", path=f"$.agents.{name}.workspace"
            )
    integrations = _decode_all(found, "integration", IntegrationSpec)
    check_actions(integrations)
    return TenantFacts(
        tenant_id=tenant_id,
        policy_version=head.policy_version,
        fleet_version=head.fleet_version,
        quota_class_name=class_name,
        quota_class=classes[class_name],
        allow_unpriced=head.base.allow_unpriced,
        workspaces=workspaces,
        agents={AgentId(name): agent for name, agent in agents.items()},
        integrations=integrations,
        actions={
            action: (name, spec)
            for name, integration in integrations.items()
            for action, spec in integration.actions.items()
        },
        providers=_decode_all(found, "provider", ProviderSpec),
        models=_decode_all(found, "model", ModelSpec),
        policies=_layers(
            _decode_all(found, "guardrail", PolicySpec).get(GUARDRAIL_NAME),
            head.base.policy,
            workspaces,
            _decode_all(found, "profile", PolicySpec),
        ),
        limits=head.base.limits,
    )


async def find_tenant(scope: TenantScope) -> TenantSpec | None:
    """The tenant as declared, without its secrets (those are the broker's); five round trips."""
    row = await scope.fetch_one(_statements()["find_tenant"], scope.tenant_id)
    if row is None:
        return None
    base = decode_document(row["document"], TenantBase, path="$")
    return TenantSpec(
        display_name=row["display_name"],
        quota_class=row["quota_class"],
        workspaces=await _list(scope, "workspace", WorkspaceSpec),
        agents=await _list(scope, "agent", AgentSpec),
        policy=base.policy,
        profiles=await _list(scope, "profile", PolicySpec),
        integrations=await _list(scope, "integration", IntegrationSpec),
        limits=base.limits,
        allow_unpriced=base.allow_unpriced,
    )


async def find_tenant_row(scope: TenantScope) -> TenantRow | None:
    """The tenant as it stands in the platform's list; one statement."""
    row = await scope.fetch_one(_statements()["find_tenant"], scope.tenant_id)
    if row is None:
        return None
    return TenantRow(scope.tenant_id, row["display_name"], row["quota_class"], row["created_at"])


async def put_tenant(scope: TenantScope, spec: TenantSpec, *, path: str = "$") -> bool:
    """Make the tenant what `spec` declares, and nothing else; True when anything changed.

    Its secrets are left to the broker. For a new tenant `scope.ensure_data_key()` comes right after. Cost:
    nine statements. Errors: `InvalidInputError` that names the field under `path`.
    """
    check_tenant(spec, path=path)
    check_storable(spec, path=path)
    changed = await scope.execute(
        _statements()["put_tenant"],
        scope.tenant_id,
        spec.display_name,
        spec.quota_class,
        encode_document(base_of(spec), path=path),
    )
    changed += await _replace(scope, "workspace", spec.workspaces, path=f"{path}.workspaces")
    changed += await _replace(scope, "agent", spec.agents, path=f"{path}.agents")
    changed += await _replace(scope, "profile", spec.profiles, path=f"{path}.profiles")
    changed += await _replace(scope, "integration", spec.integrations, path=f"{path}.integrations")
    return changed > 0


def check_storable(spec: TenantSpec, *, path: str = "$") -> None:
    """Refuse what the database could choke on, or no list could show; its secrets are not looked at.

    Raises `InvalidInputError` that names the field.
    """
    if not 1 <= len(spec.display_name) <= DISPLAY_NAME_CHARS_MAX:
        raise InvalidInputError("a display name has 1 to 200 characters", path=f"{path}.display_name")
    encode_document(msgspec.structs.replace(spec, secrets={}), path=path)
    parse_platform_name(spec.quota_class, path=f"{path}.quota_class")


async def list_specs(scope: TenantScope, kind: TenantKind) -> Mapping[str, TenantThing]:
    """The tenant's specs of one kind by name. Errors: `InvalidInputError` when one no longer reads."""
    return await _list(scope, kind, TENANT_KINDS[kind])


async def put_spec(scope: TenantScope, kind: TenantKind, name: str, spec: TenantThing) -> bool:
    """Declare one thing of the tenant's; True when it changed. Cost: seven statements.

    Errors: `InvalidInputError` that names the field: a bad name, the wrong type for the kind, or a tenant
    that would not hold together; `NotFoundError` when there is no such tenant. Then the transaction must be
    left.
    """
    parse_name(name, path="$.name")
    if type(spec) is not TENANT_KINDS[kind]:
        raise InvalidInputError(f"this is not a declaration of kind {kind}", path="$")
    document = encode_document(spec, path="$")
    changed = await scope.execute(_statements()["put_specs"], scope.tenant_id, kind, [name], [document])
    await _check_whole(scope)
    return changed > 0


async def delete_spec(scope: TenantScope, kind: TenantKind, name: str) -> bool:
    """Take one thing of the tenant's away; False when it was not there. Cost and errors: as `put_spec`."""
    parse_name(name, path="$.name")
    changed = await scope.execute(_statements()["delete_spec"], scope.tenant_id, kind, name)
    await _check_whole(scope)
    return changed > 0


async def list_tenants(scope: PlatformScope, *, after: str = "", limit: int = 100) -> list[TenantRow]:
    """A page of all tenants by id, after the one given; at most 1,000."""
    rows = await scope.fetch_all(_statements()["list_tenants"], after, max(1, min(limit, TENANTS_PAGE_MAX)))
    return [
        TenantRow(row["tenant_id"], row["display_name"], row["quota_class"], row["created_at"])
        for row in rows
    ]


async def put_platform(scope: PlatformScope, fleet: FleetFile) -> bool:
    """Make guardrails, quota classes, providers and models what the file says; True when anything changed.

    The tenants in the file are not looked at. Cost: eight statements. Errors: `InvalidInputError` that names
    the field: a bad name, or a model whose provider is not declared.
    """
    for name, model in fleet.models.items():
        if model.provider not in fleet.providers:
            raise InvalidInputError("no provider of that name is declared", path=f"$.models.{name}.provider")
    changed = await _replace_platform(scope, "guardrail", {GUARDRAIL_NAME: fleet.guardrails}, path="$")
    changed += await _replace_platform(scope, "quota_class", fleet.quota_classes, path="$.quota_classes")
    changed += await _replace_platform(scope, "provider", fleet.providers, path="$.providers")
    changed += await _replace_platform(scope, "model", fleet.models, path="$.models")
    return changed > 0


async def list_platform_specs(scope: PlatformScope, kind: PlatformKind) -> Mapping[str, PlatformThing]:
    """The platform's specs of one kind by name. Errors: `InvalidInputError` when one no longer reads."""
    rows = await scope.fetch_all(_statements()["list_platform_specs"], kind)
    documents = {row["name"]: row["document"] for row in rows}
    return _decode_all({kind: documents}, kind, PLATFORM_KINDS[kind])


async def list_provider_credentials(scope: PlatformScope | TenantScope) -> dict[str, str]:
    """Each provider's credential document (JSON), sealed; the platform's, so every tenant's scope reads it."""
    rows = await scope.fetch_all(_statements()["list_platform_specs"], _CREDENTIAL_KIND)
    return {row["name"]: row["document"] for row in rows}


async def put_provider_credentials(scope: PlatformScope, documents: Mapping[str, str]) -> bool:
    """Make the providers' credential documents what is given, and no others; True when anything changed."""
    statements, names = _statements(), list(documents)
    deleted = await scope.execute(statements["delete_other_platform_specs"], _CREDENTIAL_KIND, names)
    put = await scope.execute(
        statements["put_platform_specs"], _CREDENTIAL_KIND, names, list(documents.values())
    )
    return deleted + put > 0


async def _check_whole(scope: TenantScope) -> None:
    tenant = await find_tenant(scope)
    if tenant is None:
        raise NotFoundError("there is no such tenant")
    check_tenant(tenant)


async def _list(scope: TenantScope, kind: TenantKind, shape: type[T]) -> dict[str, T]:
    rows = await scope.fetch_all(_statements()["list_specs"], scope.tenant_id, kind)
    return {
        row["name"]: decode_document(row["document"], shape, path=f"$.{kind}s.{row['name']}") for row in rows
    }


async def _replace(
    scope: TenantScope, kind: TenantKind, specs: Mapping[str, msgspec.Struct], *, path: str
) -> int:
    documents = {name: encode_document(spec, path=f"{path}.{name}") for name, spec in specs.items()}
    statements, names = _statements(), list(documents)
    deleted = await scope.execute(statements["delete_other_specs"], scope.tenant_id, kind, names)
    return deleted + await scope.execute(
        statements["put_specs"], scope.tenant_id, kind, names, list(documents.values())
    )


async def _replace_platform(
    scope: PlatformScope, kind: PlatformKind, specs: Mapping[str, msgspec.Struct], *, path: str
) -> int:
    documents: dict[str, str] = {}
    for name, spec in specs.items():
        where = f"{path}.{name}"
        documents[parse_platform_name(name, path=where)] = encode_document(spec, path=where)
    statements, names = _statements(), list(documents)
    deleted = await scope.execute(statements["delete_other_platform_specs"], kind, names)
    return deleted + await scope.execute(
        statements["put_platform_specs"], kind, names, list(documents.values())
    )


def _decode_all(found: Mapping[str, Mapping[str, str]], kind: str, shape: type[T]) -> dict[str, T]:
    return {
        name: decode_document(document, shape, path=f"$.{kind}s.{name}")
        for name, document in found.get(kind, {}).items()
    }


def _layers(
    guardrail: PolicySpec | None,
    tenant: PolicySpec | None,
    workspaces: Mapping[str, WorkspaceSpec],
    profiles: Mapping[str, PolicySpec],
) -> dict[str, str]:
    """Cedar text by layer; a layer without text is left out."""
    declared: dict[str, PolicySpec | None] = {"guardrail": guardrail, "tenant": tenant}
    declared |= {f"workspace/{name}": workspace.policy for name, workspace in workspaces.items()}
    declared |= {f"profile/{name}": profile for name, profile in profiles.items()}
    return {
        layer: policy.text
        for layer, policy in declared.items()
        if policy is not None and policy.text is not None
    }


@functools.cache
def _statements() -> Mapping[str, Statement]:
    return load_statements("tenantry.registry", "store.sql")

"""`apply`, `diff` and `export` of the fleet file.

The whole file is checked before anything is written. Then the platform's part is one transaction and each
tenant one more: a crash in between leaves each of them before or after, and applying again finishes. Tenants
that the file does not name are left as they are, and so are secrets. A value that is not given stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from tenantry.broker.platform import open_credential, seal_credential
from tenantry.broker.secrets import SecretValue
from tenantry.broker.store import SecretDeclaration, holds_value, put_secret
from tenantry.control import fleet_state as state
from tenantry.control.errors import PolicyFrozenError
from tenantry.control.fleet_changes import Change, find_changes
from tenantry.control.fleet_file import complete, read_fleet, validate
from tenantry.control.scopes import (
    find_tenant_scope,
    put_scopes,
    raise_version,
    statements,
    tenant_layers,
)
from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import TenantId, WorkspaceId
from tenantry.core.principal import Principal, Right
from tenantry.identity.rights import require
from tenantry.journal.admin import AdminJournal
from tenantry.registry.specs import FleetFile, SecretSpec, TenantSpec
from tenantry.registry.store import TenantRow, put_platform, put_provider_credentials, put_tenant
from tenantry.storage.scope import Scopes, TenantScope
from tenantry.storage.seal import KeyRing

Values = Mapping[str, str]


class AppliedTenant(msgspec.Struct, frozen=True):
    """What became of one tenant."""

    tenant_id: TenantId
    changed: bool
    policy_version: int


class Applied(msgspec.Struct, frozen=True):
    """What an apply did."""

    changed: bool
    changes: list[Change]
    tenants: list[AppliedTenant]


class _Plan(msgspec.Struct, frozen=True):
    fleet: FleetFile
    platform: state.PlatformState
    tenants: dict[str, TenantSpec]
    rows: list[TenantRow]
    changes: list[Change]
    values: dict[str, SecretValue]

    def changes_under(self, path: str) -> list[Change]:
        return [c for c in self.changes if c.path == path or c.path.startswith(f"{path}.")]


class Fleet:
    """Use cases of the fleet file; operators only."""

    def __init__(self, scopes: Scopes, keyring: KeyRing, journal: AdminJournal) -> None:
        self._scopes = scopes
        self._keyring = keyring
        self._journal = journal

    async def export(self, principal: Principal) -> FleetFile:
        """The fleet as it stands; no secret's value is in it."""
        require(principal, Right.FLEET_APPLY)
        return await state.export_fleet(self._scopes, principal)

    async def diff(self, principal: Principal, document: bytes, values: Values) -> list[Change]:
        """What `apply` would change. Errors: as `apply`; nothing is written."""
        return (await self._plan(principal, document, values)).changes

    async def apply(self, principal: Principal, document: bytes, values: Values) -> Applied:
        """Make the fleet what the file says.

        `values` maps ``tenants.T.secrets.S`` and ``providers.P.credential`` to values. Errors:
        `InvalidInputError` that names the field, `PolicyFrozenError`: then nothing was written.
        """
        plan = await self._plan(principal, document, values)
        platform_changed = await self._apply_platform(principal, plan)
        applied = [
            await self._apply_tenant(principal, plan, TenantId(tenant_id), platform_changed=platform_changed)
            for tenant_id in sorted(plan.fleet.tenants)
        ]
        if platform_changed:
            await self._refresh_others(principal, plan)
        return Applied(bool(plan.changes), plan.changes, applied)

    async def _plan(self, principal: Principal, document: bytes, values: Values) -> _Plan:
        require(principal, Right.FLEET_APPLY)
        require(principal, Right.GUARDRAIL_WRITE)
        fleet = complete(read_fleet(document))
        given = {name: _secret_value(name, value) for name, value in values.items()}
        _check_values(fleet, given)
        scope = self._scopes.platform(reason="the fleet file", operator=principal.principal_id)
        async with scope:
            platform = await state.read_platform(scope)
            rows = await state.read_all_tenants(scope)
        known = {row.tenant_id for row in rows}
        tenants: dict[str, TenantSpec] = {}
        differing: set[str] = set()
        frozen: set[str] = set()
        for tenant_id in fleet.tenants.keys() & known:
            async with await self._scopes.for_principal(principal, TenantId(tenant_id)) as tenant:
                spec = await state.read_tenant(tenant)
                assert spec is not None, "it was listed"
                tenants[tenant_id] = spec
                differing |= await _differing_values(tenant, fleet.tenants[tenant_id], given)
                row = await find_tenant_scope(tenant)
                if row is not None and row["frozen"]:
                    frozen.add(tenant_id)
        secrets = {tenant_id: frozenset(spec.secrets) for tenant_id, spec in tenants.items()}
        await asyncio.to_thread(validate, fleet, known_secrets=secrets)
        _check_classes_in_use(fleet, rows)
        differing |= self._differing_credentials(platform, given)
        _check_missing(fleet, tenants, platform, given)
        changes = find_changes(fleet, platform, tenants, differing)
        plan = _Plan(fleet, platform, tenants, rows, changes, given)
        for tenant_id in sorted(frozen):
            if plan.changes_under(f"$.tenants.{tenant_id}"):
                raise PolicyFrozenError(tenant_id)
        return plan

    async def _apply_platform(self, principal: Principal, plan: _Plan) -> bool:
        credentials = {
            name: plan.platform.credentials[name]
            for name in plan.fleet.providers
            if name in plan.platform.credentials and plan.fleet.providers[name].credential is not None
        }
        for name in plan.fleet.providers:
            value = plan.values.get(f"providers.{name}.credential")
            if value is not None:
                credentials[name] = seal_credential(
                    self._keyring, name, value, before=plan.platform.credentials.get(name)
                )
        scope = self._scopes.platform(reason="the fleet file", operator=principal.principal_id)
        async with scope:
            changed = await put_platform(scope, plan.fleet)
            changed = await put_provider_credentials(scope, credentials) or changed
            if changed:
                await scope.fetch_one(statements()["bump_fleet_version"])
        return changed

    async def _apply_tenant(
        self, principal: Principal, plan: _Plan, tenant_id: TenantId, *, platform_changed: bool
    ) -> AppliedTenant:
        spec = plan.fleet.tenants[tenant_id]
        is_new = tenant_id not in plan.tenants
        scope = await (
            self._scopes.for_registration(principal, tenant_id)
            if is_new
            else self._scopes.for_principal(principal, tenant_id)
        )
        changes = plan.changes_under(f"$.tenants.{tenant_id}")
        path = f"$.tenants.{tenant_id}"
        async with scope:
            changed = await put_tenant(scope, spec, path=path)
            if is_new:
                await scope.ensure_data_key()
            await put_scopes(scope, spec, plan.fleet.quota_classes[spec.quota_class])
            for name, secret in spec.secrets.items():
                value = plan.values.get(f"tenants.{tenant_id}.secrets.{name}")
                if value is not None:
                    _, put = await put_secret(scope, _declaration(name, secret), value)
                    changed = changed or put
            if changed:
                version = await raise_version(
                    scope, tenant_layers(spec), author=scope.actor, reason="fleet file", is_new=is_new
                )
            else:
                row = await find_tenant_scope(scope)
                assert row is not None, "its scope was put just now"
                version = row["policy_version"]
            if changed or platform_changed:
                await self._journal.write(
                    scope,
                    name="fleet.apply",
                    target=f"tenant/{tenant_id}",
                    detail={
                        "paths": [change.path for change in changes][:100],
                        "platform_changed": platform_changed,
                        "policy_version": version,
                    },
                )
        return AppliedTenant(tenant_id, changed, version)

    async def _refresh_others(self, principal: Principal, plan: _Plan) -> None:
        """Limits of tenants that the file does not name, whose quota class it may have changed."""
        for row in plan.rows:
            if row.tenant_id in plan.fleet.tenants:
                continue
            if plan.fleet.quota_classes[row.quota_class] == plan.platform.quota_classes.get(row.quota_class):
                continue
            async with await self._scopes.for_principal(principal, row.tenant_id) as scope:
                spec = await state.read_tenant(scope)
                if spec is None:
                    raise NotFoundError("there is no such tenant")
                await put_scopes(scope, spec, plan.fleet.quota_classes[row.quota_class])
                await self._journal.write(
                    scope,
                    name="fleet.apply",
                    target=f"quota_class/{row.quota_class}",
                    detail={"paths": [], "platform_changed": True},
                )

    def _differing_credentials(
        self, platform: state.PlatformState, given: Mapping[str, SecretValue]
    ) -> set[str]:
        differing = set()
        for key, value in given.items():
            head, _, rest = key.partition(".")
            document = platform.credentials.get(rest.removesuffix(".credential"))
            if head != "providers":
                continue
            if (
                document is None
                or open_credential(self._keyring, rest.removesuffix(".credential"), document).value != value
            ):
                differing.add(key)
        return differing


def _declaration(name: str, secret: SecretSpec) -> SecretDeclaration:
    return SecretDeclaration(
        WorkspaceId(secret.workspace), name, secret.system, secret.agent_classes, secret.capability
    )


def _secret_value(name: str, value: str) -> SecretValue:
    try:
        return SecretValue(value)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), path=f"$.{name}") from None


def _check_values(fleet: FleetFile, given: Mapping[str, SecretValue]) -> None:
    """Every value given belongs to something in the file."""
    wanted = {
        f"tenants.{tenant_id}.secrets.{name}"
        for tenant_id, spec in fleet.tenants.items()
        for name in spec.secrets
    }
    wanted |= {
        f"providers.{name}.credential"
        for name, provider in fleet.providers.items()
        if provider.credential is not None
    }
    for name in sorted(given.keys() - wanted):
        raise InvalidInputError("a value is given for what the file does not declare", path=f"$.{name}")


async def _differing_values(
    scope: TenantScope, spec: TenantSpec, given: Mapping[str, SecretValue]
) -> set[str]:
    differing = set()
    for name, secret in spec.secrets.items():
        key = f"tenants.{scope.tenant_id}.secrets.{name}"
        value = given.get(key)
        if value is not None and not await holds_value(scope, _declaration(name, secret), value):
            differing.add(key)
    return differing


def _check_classes_in_use(fleet: FleetFile, rows: list[TenantRow]) -> None:
    for row in rows:
        if row.tenant_id not in fleet.tenants and row.quota_class not in fleet.quota_classes:
            raise InvalidInputError(
                f"the quota class {row.quota_class} is missing, and a tenant that the file leaves out uses it",
                path="$.quota_classes",
            )


def _check_missing(
    fleet: FleetFile,
    tenants: Mapping[str, TenantSpec],
    platform: state.PlatformState,
    given: Mapping[str, SecretValue],
) -> None:
    """What is new, or is for another use now, needs its value."""
    for tenant_id, spec in fleet.tenants.items():
        held = tenants[tenant_id].secrets if tenant_id in tenants else {}
        for name, secret in spec.secrets.items():
            if f"tenants.{tenant_id}.secrets.{name}" in given:
                continue
            before = held.get(name)
            if before is None or _use_of(before) != _use_of(secret):
                path = f"$.tenants.{tenant_id}.secrets.{name}.value"
                raise InvalidInputError("the secret's value is not given", path=path)
    for name, provider in fleet.providers.items():
        key = f"providers.{name}.credential"
        if provider.credential is not None and key not in given and name not in platform.credentials:
            raise InvalidInputError("the credential's value is not given", path=f"$.{key}")


def _use_of(secret: SecretSpec) -> tuple[object, ...]:
    return secret.workspace, secret.system, frozenset(secret.agent_classes), secret.capability

"""What every change of a tenant's configuration shares: its scope rows, its version, its limits."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final

import msgspec

from tenantry.control.errors import PolicyFrozenError
from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.quota import Limits, QuotaClass
from tenantry.quota.limits import overlay
from tenantry.registry.specs import TenantSpec
from tenantry.storage.connect import Row
from tenantry.storage.errors import StatementError
from tenantry.storage.scope import TenantScope
from tenantry.storage.statements import Statement, load_statements
from tenantry.switches.board import AGENT, TENANT, WORKSPACE

# A limit is a number that every program can hold exactly.
LIMIT_MAX: Final = 2**53


def check_limits(limits: Limits, *, path: str) -> None:
    """Refuse what no meter can hold. Raises `InvalidInputError` that names the limit."""
    for name, value in msgspec.structs.asdict(limits).items():
        if value is not None and not 0 <= value <= LIMIT_MAX:
            raise InvalidInputError(f"a limit is 0 to {LIMIT_MAX}", path=f"{path}.{name}")


async def lock_tenant(scope: TenantScope) -> Row:
    """Take the tenant's row before anything else of it changes. Errors: `NotFoundError`."""
    row = await scope.fetch_one(statements()["lock_tenant"], scope.tenant_id)
    if row is None:
        raise NotFoundError("there is no such tenant")
    return row


async def find_tenant_scope(scope: TenantScope) -> Row | None:
    """Versions and switches of the tenant as a whole; None while it has no scope."""
    return await scope.fetch_one(statements()["find_tenant_scope"], scope.tenant_id)


async def put_scopes(scope: TenantScope, spec: TenantSpec, quota_class: QuotaClass) -> None:
    """Make the scope rows and their limits what is declared; a statement each, in the order of locks."""
    rows: list[tuple[int, str, Limits, Limits]] = [(TENANT, scope.tenant_id, quota_class.tenant, spec.limits)]
    rows += [
        (WORKSPACE, name, quota_class.workspace, spec.workspaces[name].limits)
        for name in sorted(spec.workspaces)
    ]
    rows += [(AGENT, name, quota_class.agent, spec.agents[name].limits) for name in sorted(spec.agents)]
    for level, subject, base, own in rows:
        limits = msgspec.json.encode(overlay(base, own)).decode()
        await scope.fetch_one(statements()["put_scope"], scope.tenant_id, level, subject, limits)


async def raise_version(
    scope: TenantScope, layers: Mapping[str, str], *, author: str, reason: str, is_new: bool = False
) -> int:
    """The version under which what was just written holds, and its place in the history.

    Whatever was decided under the one before no longer begins. Cost: two statements. Errors:
    `PolicyFrozenError`.
    """
    name = "find_tenant_scope" if is_new else "bump_policy_version"
    try:
        row = await scope.fetch_one(statements()[name], scope.tenant_id)
    except StatementError as error:
        if error.sqlstate == "55000":
            raise PolicyFrozenError(scope.tenant_id) from None
        raise
    assert row is not None, "the tenant's scope was made before"
    version: int = row["policy_version"]
    document = msgspec.json.encode(layers).decode()
    await scope.execute(
        statements()["add_policy_version"], scope.tenant_id, version, document, author, reason
    )
    return version


def tenant_layers(spec: TenantSpec) -> dict[str, str]:
    """The Cedar text of the tenant's own layers, without the platform's guardrails."""
    declared = {"tenant": spec.policy}
    declared |= {f"workspace/{name}": workspace.policy for name, workspace in spec.workspaces.items()}
    declared |= {f"profile/{name}": profile for name, profile in spec.profiles.items()}
    return {
        layer: policy.text
        for layer, policy in declared.items()
        if policy is not None and policy.text is not None
    }


@functools.cache
def statements() -> Mapping[str, Statement]:
    """The statements of `scopes.sql`."""
    return load_statements("tenantry.control", "scopes.sql")

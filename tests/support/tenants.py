"""Tenants for tests, as the platform registers them: a data key, and the scope rows that `begin` locks."""

from __future__ import annotations

import itertools
from typing import Final

import asyncpg
import msgspec

from tenantry.core.clock import Clock
from tenantry.core.ids import AgentId, KeyId, PrincipalId, TenantId, WorkspaceId
from tenantry.core.principal import Principal, Role
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.seal import NONCE_BYTES, RootKey
from tests.support.cluster import connect_as

ROOT_KEY: Final = RootKey(bytes(range(32)))
OPERATOR: Final = Principal(
    principal_id=PrincipalId("op_test"),
    key_id=KeyId("key_operator"),
    role=Role.OPERATOR,
    tenant_id=None,
    workspace_id=None,
)

_NUMBERS = itertools.count(1)


class TestTenant(msgspec.Struct, frozen=True):
    """A tenant with one workspace and one agent; `admin` is its tenant_admin."""

    __test__ = False

    tenant_id: TenantId
    workspace_id: WorkspaceId
    agent_id: AgentId
    admin: Principal

    def principal(self, role: Role) -> Principal:
        """Somebody of this tenant in another role."""
        return msgspec.structs.replace(
            self.admin, role=role, principal_id=PrincipalId(f"{role}_{self.tenant_id}")
        )


async def register_tenant(
    target: DatabaseTarget,
    clock: Clock,
    *,
    name: str | None = None,
    limits: dict[str, int] | None = None,
    root_key: RootKey = ROOT_KEY,
) -> TestTenant:
    """Write a tenant's rows as the superuser; `limits` are columns of its tenant-level scope row.

    Names are unique within the process, so tests share a database without meeting.
    """
    tenant_id = TenantId(name or f"tenant_{next(_NUMBERS)}")
    tenant = TestTenant(
        tenant_id=tenant_id,
        workspace_id=WorkspaceId("support"),
        agent_id=AgentId("helper"),
        admin=Principal(
            principal_id=PrincipalId(f"admin_{tenant_id}"),
            key_id=KeyId(f"key_{tenant_id}"),
            role=Role.TENANT_ADMIN,
            tenant_id=tenant_id,
            workspace_id=None,
        ),
    )
    connection = await connect_as(target, target.admin)
    try:
        async with connection.transaction():
            await _write(connection, tenant, clock, limits or {}, root_key)
    finally:
        await connection.close()
    return tenant


async def _write(
    connection: asyncpg.Connection[asyncpg.Record],
    tenant: TestTenant,
    clock: Clock,
    limits: dict[str, int],
    root_key: RootKey,
) -> None:
    tenant_id = tenant.tenant_id
    await connection.execute("insert into tenantry.directory_tenants (tenant_id) values ($1)", tenant_id)
    await connection.execute(
        "insert into tenantry.tenants (tenant_id, display_name, quota_class) values ($1, 'Tenant', 'small')",
        tenant_id,
    )
    wrapped = root_key.wrap(
        clock.random_bytes(32), tenant_id=tenant_id, key_version=1, nonce=clock.random_bytes(NONCE_BYTES)
    )
    await connection.execute(
        "insert into tenantry.tenant_keys (tenant_id, key_version, wrapped_key) values ($1, 1, $2)",
        tenant_id,
        wrapped,
    )
    subjects = ((0, tenant_id), (1, tenant.workspace_id), (2, tenant.agent_id))
    for level, subject_id in subjects:
        await connection.execute(
            "insert into tenantry.scopes (tenant_id, level, subject_id) values ($1, $2, $3)",
            tenant_id,
            level,
            subject_id,
        )
    for column, value in limits.items():
        await connection.execute(
            f"update tenantry.scopes set {column} = $2 where tenant_id = $1 and level = 0", tenant_id, value
        )

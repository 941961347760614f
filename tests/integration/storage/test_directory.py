from __future__ import annotations

import hashlib

import pytest
from tests.support.fixtures import MakeTenant

from tenantry.core.ids import TenantId
from tenantry.storage.database import Shard
from tenantry.storage.directory import Directory
from tenantry.storage.errors import StatementError
from tenantry.storage.scope import Scopes


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def test_keys_lead_to_their_tenant_or_to_the_operators(
    shard: Shard, scopes: Scopes, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    directory = Directory(shard)
    mine, operators, nobodys = (digest(f"{word} {tenant.tenant_id}") for word in ("mine", "ops", "none"))
    async with await scopes.for_principal(tenant.admin) as scope:
        await directory.add_key(scope, mine)
    async with scopes.platform(reason="install", operator="op") as platform:
        await directory.add_key(platform, operators)
    assert await directory.find_tenant_by_key(mine) == (tenant.tenant_id, False)
    assert await directory.find_tenant_by_key(operators) == (None, True)
    for absent in (nobodys, b"", b"\0" * 10_000):
        assert await directory.find_tenant_by_key(absent) is None
    assert await directory.shard_of(tenant.tenant_id) == "main"
    assert await directory.shard_of(TenantId("never_was")) is None


@pytest.mark.invariant(12)
async def test_a_tenant_cannot_take_or_remove_another_s_key(
    shard: Shard, scopes: Scopes, make_tenant: MakeTenant
) -> None:
    attacker, victim = await make_tenant(), await make_tenant()
    directory = Directory(shard)
    key, operators = digest(f"key {victim.tenant_id}"), digest(f"ops {victim.tenant_id}")
    async with await scopes.for_principal(victim.admin) as scope:
        await directory.add_key(scope, key)
    async with scopes.platform(reason="install", operator="op") as platform:
        await directory.add_key(platform, operators)
        await directory.remove_key(platform, key)
    hostile = await scopes.for_principal(attacker.admin)
    async with hostile:
        await directory.remove_key(hostile, key)
        await directory.remove_key(hostile, operators)
    with pytest.raises(StatementError) as taken:
        async with hostile:
            await directory.add_key(hostile, key)
    assert taken.value.sqlstate == "23505"
    assert await directory.find_tenant_by_key(key) == (victim.tenant_id, False)
    assert await directory.find_tenant_by_key(operators) == (None, True)
    async with await scopes.for_principal(victim.admin) as scope:
        await directory.remove_key(scope, key)
    assert await directory.find_tenant_by_key(key) is None

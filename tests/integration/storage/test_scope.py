"""Scopes on a real database: what they open, bind, commit and refuse."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from tests.support.cluster import connect_as
from tests.support.fixtures import MakeTenant
from tests.support.tenants import OPERATOR, ROOT_KEY

from tenantry.core.clock import SystemClock
from tenantry.core.errors import InvalidInputError, NotFoundError, StorageUnavailableError
from tenantry.core.ids import AgentId, PrincipalId, RunId, TenantId, WorkspaceId
from tenantry.core.principal import Role
from tenantry.core.run import RunClaims
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import PoolSizes, Shard
from tenantry.storage.errors import LockTimeoutError, ScopeMisuseError, SealBrokenError, StatementError
from tenantry.storage.scope import Scopes
from tenantry.storage.statements import Statement

ECHO = Statement(
    "echo",
    "one",
    "select current_setting('app.tenants') as bound, current_user::text as role, $1::text as said",
)
NAMES = Statement("names", "many", "select name from tenantry.tenant_specs order by name")
PUT = Statement(
    "put",
    "exec",
    "insert into tenantry.tenant_specs (tenant_id, kind, name, spec) values ($1, 'agent', $2, '{}')",
)
RENAME = Statement("rename", "exec", "update tenantry.tenants set display_name = $2 where tenant_id = $1")
FAIL = Statement("fail", "one", "select 1 / $1::integer as n")


async def test_a_scope_binds_its_tenant_and_its_role(scopes: Scopes, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    async with await scopes.for_principal(tenant.admin) as scope:
        row = await scope.fetch_one(ECHO, "hello")
    assert row is not None
    assert dict(row.items()) == {"bound": f"{{{tenant.tenant_id}}}", "role": "tenantry_app", "said": "hello"}


async def test_a_clean_exit_commits_and_an_error_rolls_back(scopes: Scopes, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    scope = await scopes.for_principal(tenant.admin)
    async with scope:
        assert await scope.execute(PUT, tenant.tenant_id, "kept") == 1

    async def change_my_mind() -> None:
        async with scope:
            await scope.execute(PUT, tenant.tenant_id, "dropped")
            raise InvalidInputError("changed my mind")

    with pytest.raises(InvalidInputError, match="changed my mind"):
        await change_my_mind()
    async with scope:
        assert [row["name"] for row in await scope.fetch_all(NAMES)] == ["kept"]


async def test_a_block_that_hides_a_failed_statement_cannot_commit(
    scopes: Scopes, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    scope = await scopes.for_principal(tenant.admin)

    async def hide() -> None:
        async with scope:
            await scope.execute(PUT, tenant.tenant_id, "lost")
            with pytest.raises(StatementError):
                await scope.fetch_one(FAIL, 0)

    with pytest.raises(StatementError, match="rolled back") as caught:
        await hide()
    assert caught.value.sqlstate == "25P02"
    async with scope:
        assert await scope.fetch_all(NAMES) == []


async def test_a_scope_without_a_statement_takes_no_connection(
    scopes: Scopes, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    held = [await scopes.for_principal(tenant.admin) for _ in range(50)]
    async with asyncio.timeout(5):
        for scope in held:
            await scope.__aenter__()
        for scope in held:
            await scope.__aexit__(None, None, None)


async def test_errors_name_the_state_and_the_constraint_and_no_argument(
    scopes: Scopes, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    scope = await scopes.for_principal(tenant.admin)
    async with scope:
        await scope.execute(PUT, tenant.tenant_id, "twice")
    with pytest.raises(StatementError) as twice:
        async with scope:
            await scope.execute(PUT, tenant.tenant_id, "twice")
    assert (twice.value.sqlstate, twice.value.constraint) == ("23505", "tenant_specs_pkey")
    for secret in (b"hunter2", "\ud800hunter2", 2**80, ["hunter2"]):
        with pytest.raises(StatementError) as wrong:
            async with scope:
                await scope.fetch_one(ECHO, secret)
        assert "hunter2" not in str(wrong.value)
        assert wrong.value.__cause__ is None
        assert wrong.value.__suppress_context__
    with pytest.raises(StatementError) as nul:
        async with scope:
            await scope.fetch_one(ECHO, "a\0b")
    assert nul.value.sqlstate == "22021"
    with pytest.raises(StatementError, match="number of arguments"):
        async with scope:
            await scope.fetch_one(ECHO)


async def test_misuse_is_told(scopes: Scopes, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    scope = await scopes.for_principal(tenant.admin)
    with pytest.raises(ScopeMisuseError, match="async with"):
        await scope.fetch_one(ECHO, "x")
    async with scope:
        with pytest.raises(ScopeMisuseError, match="one transaction"):
            async with scope:
                pass
        with pytest.raises(ScopeMisuseError, match=":one"):
            await scope.execute(ECHO, "x")


async def test_a_lock_that_does_not_come_free_is_a_lock_timeout(
    scopes: Scopes, make_tenant: MakeTenant, database: DatabaseTarget
) -> None:
    tenant = await make_tenant()
    holder = await connect_as(database, database.admin)
    try:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(
            "update tenantry.tenants set display_name = 'held' where tenant_id = $1", tenant.tenant_id
        )
        with pytest.raises(LockTimeoutError):
            async with await scopes.for_principal(tenant.admin) as scope:
                await scope.execute(RENAME, tenant.tenant_id, "mine")
        await transaction.rollback()
    finally:
        await holder.close()


async def test_who_gets_a_scope_for_which_tenant(scopes: Scopes, make_tenant: MakeTenant) -> None:
    mine, other = await make_tenant(), await make_tenant()
    assert (await scopes.for_principal(mine.admin, mine.tenant_id)).tenant_id == mine.tenant_id
    assert (await scopes.for_principal(OPERATOR, other.tenant_id)).actor == "op_test"
    with pytest.raises(NotFoundError) as foreign:
        await scopes.for_principal(mine.admin, other.tenant_id)
    never = TenantId("never_was")
    with pytest.raises(NotFoundError) as absent:
        await scopes.for_principal(OPERATOR, never)
    assert str(foreign.value) == str(absent.value)
    with pytest.raises(NotFoundError):
        await scopes.for_principal(OPERATOR)
    for hostile in ("", "A", "a'; drop", "a,b", '{"x"}', "a\0b", "\ud800", "a" * 64, "öl"):
        with pytest.raises(NotFoundError):
            await scopes.for_principal(OPERATOR, TenantId(hostile))
        with pytest.raises(NotFoundError):
            await scopes.for_job(TenantId(hostile), "reaper")


async def test_scopes_of_runs_and_jobs_name_their_actor(
    scopes: Scopes, make_tenant: MakeTenant, clock: SystemClock
) -> None:
    tenant = await make_tenant()
    claims = RunClaims(
        tenant_id=tenant.tenant_id,
        workspace_id=WorkspaceId("support"),
        agent_id=AgentId("helper"),
        run_id=RunId("run_1"),
        attempt=1,
        principal_id=PrincipalId("p"),
        expires_at=clock.now() + dt.timedelta(hours=1),
    )
    assert (await scopes.for_run(claims)).actor == "run:run_1"
    assert (await scopes.for_job(tenant.tenant_id, "reaper")).actor == "job:reaper"


async def test_sealing_belongs_to_tenant_table_and_row(scopes: Scopes, make_tenant: MakeTenant) -> None:
    first, second = await make_tenant(), await make_tenant()
    mine = await scopes.for_principal(first.admin)
    theirs = await scopes.for_principal(second.admin)
    sealed = mine.seal(b"body", table="journal", row_id="act_1")
    assert mine.unseal(sealed, table="journal", row_id="act_1") == b"body"
    for scope, table, row_id in (
        (theirs, "journal", "act_1"),
        (mine, "secrets", "act_1"),
        (mine, "journal", "act_2"),
    ):
        with pytest.raises(SealBrokenError):
            scope.unseal(sealed, table=table, row_id=row_id)


async def test_keys_begin_with_the_tenant_and_are_unambiguous(
    scopes: Scopes, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    scope = await scopes.for_principal(tenant.admin)
    keys = [
        scope.key(*parts)
        for parts in ((), ("",), ("a", "b"), ("a:b",), ("a%3Ab",), ("a", "", "b"), ("a", "b", ""))
    ]
    assert len(set(keys)) == len(keys)
    assert all(key == tenant.tenant_id or key.startswith(f"{tenant.tenant_id}:") for key in keys)


async def test_a_tenant_is_registered_with_its_key_or_not_at_all(shard: Shard, scopes: Scopes) -> None:
    add = Statement(
        "add",
        "exec",
        "insert into tenantry.tenants (tenant_id, display_name, quota_class) values ($1, $2, 'small')",
    )
    name = TenantId("registered_here")
    scope = await scopes.for_registration(OPERATOR, name)

    async def give_up() -> None:
        async with scope:
            await scope.execute(add, name, "New")
            await scope.ensure_data_key()
            raise InvalidInputError("no")

    with pytest.raises(InvalidInputError):
        await give_up()
    with pytest.raises(NotFoundError):
        await scopes.for_principal(OPERATOR, name)
    scope = await scopes.for_registration(OPERATOR, name)
    with pytest.raises(ScopeMisuseError, match="registered"):
        scope.seal(b"x", table="journal", row_id="1")
    async with scope:
        await scope.execute(add, name, "New")
        await scope.ensure_data_key()
        sealed = scope.seal(b"x", table="journal", row_id="1")
    again = await scopes.for_principal(OPERATOR, name)
    assert again.unseal(sealed, table="journal", row_id="1") == b"x"
    once_more = await scopes.for_registration(OPERATOR, name)
    async with once_more:
        await once_more.ensure_data_key()
        assert once_more.unseal(sealed, table="journal", row_id="1") == b"x"
    shard.keyring.forget(name)


async def test_only_operators_register(scopes: Scopes, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    with pytest.raises(NotFoundError):
        await scopes.for_registration(tenant.admin, TenantId("sneaked_in"))
    with pytest.raises(NotFoundError):
        await scopes.for_registration(tenant.principal(Role.OPERATOR), TenantId("sneaked_in"))
    with pytest.raises(InvalidInputError):
        await scopes.for_registration(OPERATOR, TenantId("Not An Id"))


async def test_platform_scopes_bind_their_reason(scopes: Scopes) -> None:
    bound = Statement(
        "bound", "one", "select current_setting('app.platform_reason') as reason, current_user::text as role"
    )
    async with scopes.platform(reason="audit 'q3'; --", operator="op_1") as scope:
        row = await scope.fetch_one(bound)
    assert row is not None
    assert (row["reason"], row["role"]) == ("audit 'q3'; --", "tenantry_platform")
    for reason in ("", "  ", "a\0b", "\ud800", "x" * 1001):
        with pytest.raises(InvalidInputError):
            scopes.platform(reason=reason, operator="op_1")


async def test_a_scope_is_had_while_every_pooled_connection_is_taken(
    database: DatabaseTarget, clock: SystemClock, make_tenant: MakeTenant
) -> None:
    tenant, other = await make_tenant(), await make_tenant()
    shard = await Shard.open(database, ROOT_KEY, PoolSizes(app=1), clock)
    try:
        scopes = Scopes(shard, clock)
        async with await scopes.for_principal(tenant.admin) as scope:
            await scope.fetch_one(ECHO, "taken")
            second = await scopes.for_principal(other.admin)
            with pytest.raises(StorageUnavailableError, match="none of the 1"):
                async with second:
                    await second.fetch_one(ECHO, "too many")
    finally:
        await shard.close()

"""Attackers on storage: one tenant, or nobody, behind every runtime role, on every table the schema has."""

from __future__ import annotations

import asyncio
import copy
import pickle
import random
from collections.abc import Coroutine, Generator
from typing import Any, Final

import asyncpg
import pytest
from tests.support.catalogue import RUNTIME_ROLES, fill, row_for
from tests.support.cluster import connect_as
from tests.support.fixtures import MakeTenant
from tests.support.tenants import ROOT_KEY, TestTenant

from tenantry.core.clock import SystemClock
from tenantry.core.ids import TenantId
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import PoolSizes, Shard
from tenantry.storage.errors import ScopeMisuseError, SealBrokenError, StatementError
from tenantry.storage.scope import BoundCall, PlatformScope, Scopes, TenantScope
from tenantry.storage.statements import Statement

# Read before anybody can be bound, by design: the directory has no content, and control follows every switch.
READABLE_UNBOUND: Final = frozenset(
    {
        *(("directory_tenants", role) for role in RUNTIME_ROLES),
        *(("directory_keys", role) for role in RUNTIME_ROLES),
        ("switches", "tenantry_control"),
    }
)
# Control also writes them: a switch of the fleet has no tenant.
WRITABLE_UNBOUND: Final = frozenset({("switches", "tenantry_control")})

# What each role binds; {} is the tenant.
BINDINGS: Final = {
    "tenantry_app": ("app.tenants", "{{{}}}"),
    "tenantry_control": ("app.tenants", "{{{}}}"),
    "tenantry_gate": ("app.batch", '{{"{0}": "{0}"}}'),
}
NOTHING: Final = {
    "app.tenants": ("", "{}", "{NULL}", '{""}', "{{}}", "nonsense"),
    "app.batch": ("", "{}", "null", "[]", '""', "0", "nonsense"),
    "app.platform_reason": ("",),
}
ECHO: Final = Statement("echo", "one", "select current_setting('app.tenants') as bound")


class Pair:
    """An attacker and its victim, each with a row in every table."""

    def __init__(self, attacker: TestTenant, victim: TestTenant, names: list[str]) -> None:
        self.attacker = attacker.tenant_id
        self.victim = victim.tenant_id
        self.attacker_admin = attacker.admin
        self.victim_admin = victim.admin
        self.tables = names


@pytest.fixture
async def pair(database: DatabaseTarget, make_tenant: MakeTenant) -> Pair:
    attacker, victim = await make_tenant(), await make_tenant()
    root = await connect_as(database, database.admin)
    try:
        names = await fill(root, attacker.tenant_id)
        await fill(root, victim.tenant_id)
    finally:
        await root.close()
    assert len(names) >= 12
    return Pair(attacker, victim, names)


async def census(database: DatabaseTarget, tenant_id: TenantId, names: list[str]) -> dict[str, str]:
    """A digest of a tenant's rows, a table."""
    root = await connect_as(database, database.admin)
    try:
        return {
            table: await root.fetchval(
                "select md5(coalesce(string_agg(t::text, '|' order by t::text), ''))"
                f" from tenantry.{table} t where tenant_id = $1",
                tenant_id,
            )
            for table in names
        }
    finally:
        await root.close()


# ---------------------------------------------------------------------------------------------- nothing bound


@pytest.mark.invariant(2)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("role", RUNTIME_ROLES)
async def test_nothing_bound_reads_and_writes_nothing(
    database: DatabaseTarget, pair: Pair, role: str, *, used: bool
) -> None:
    before = await census(database, pair.victim, pair.tables)
    connection = await connect_as(database, role)
    try:
        if used:
            async with connection.transaction():
                for setting in NOTHING:
                    await connection.execute("select set_config($1, 'x', true)", setting)
            assert await connection.fetchval("select current_setting('app.tenants', true)") == ""
        for table in pair.tables:
            for sql in (f"select from tenantry.{table}", f"select count(*) from tenantry.{table}"):
                if (table, role) in READABLE_UNBOUND:
                    continue
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.fetch(sql)
            if (table, role) in WRITABLE_UNBOUND:
                continue
            insert = await row_for(connection, table, pair.victim)
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(insert.sql, *insert.args)
            for sql in (
                f"update tenantry.{table} set tenant_id = tenant_id",
                f"delete from tenantry.{table}",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(sql)
    finally:
        await connection.close()
    assert await census(database, pair.victim, pair.tables) == before


@pytest.mark.invariant(2)
@pytest.mark.parametrize("role", RUNTIME_ROLES)
async def test_binding_to_nothing_sees_nothing(database: DatabaseTarget, pair: Pair, role: str) -> None:
    connection = await connect_as(database, role)
    try:
        for setting, values in NOTHING.items():
            for value in (*values, None):
                for table in pair.tables:
                    if (table, role) not in READABLE_UNBOUND:
                        assert await _sees(connection, table, setting, value) == 0, (table, setting, value)
    finally:
        await connection.close()


async def _sees(
    connection: asyncpg.Connection[asyncpg.Record], table: str, setting: str, value: str | None
) -> int:
    """How many rows are seen under a binding; 0 when the database raises."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("select set_config($1, $2, true)", setting, value)
        return len(await connection.fetch(f"select from tenantry.{table}"))
    except (asyncpg.InsufficientPrivilegeError, asyncpg.DataError):
        return 0
    finally:
        await transaction.rollback()


# --------------------------------------------------------------------------------------------- another tenant


@pytest.mark.invariant(12)
@pytest.mark.parametrize("role", sorted(BINDINGS))
async def test_a_bound_role_cannot_touch_another_tenant(
    database: DatabaseTarget, pair: Pair, role: str
) -> None:
    setting, form = BINDINGS[role]
    before = await census(database, pair.victim, pair.tables)
    connection = await connect_as(database, role)
    own = 0

    async def attempt(sql: str, *args: object) -> int:
        """Rows touched, bound to the attacker; -1 when the database refused."""
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute("select set_config($1, $2, true)", setting, form.format(pair.attacker))
            return int((await connection.execute(sql, *args)).rpartition(" ")[2])
        except (asyncpg.InsufficientPrivilegeError, asyncpg.ForeignKeyViolationError):
            return -1
        finally:
            await transaction.rollback()

    try:
        for table in pair.tables:
            name = f"tenantry.{table}"
            own += max(0, await attempt(f"select from {name} where tenant_id = $1", pair.attacker))
            if (table, role) not in READABLE_UNBOUND:
                assert await attempt(f"select from {name} where tenant_id = $1", pair.victim) <= 0, table
                assert await attempt(f"select from {name} where tenant_id <> $1", pair.attacker) <= 0, table
            if (table, role) in WRITABLE_UNBOUND:
                continue
            foreign = await row_for(connection, table, pair.victim)
            assert await attempt(foreign.sql, *foreign.args) == -1, table
            for sql in (
                f"update {name} set tenant_id = tenant_id where tenant_id = $1",
                f"delete from {name} where tenant_id = $1",
            ):
                assert await attempt(sql, pair.victim) <= 0, sql
            moved = f"update {name} set tenant_id = $1 where tenant_id = $2"
            assert await attempt(moved, pair.victim, pair.attacker) <= 0, table
    finally:
        await connection.close()
    assert own >= 5, "the attacker sees its own rows, or this test shows nothing"
    assert await census(database, pair.victim, pair.tables) == before


@pytest.mark.invariant(12)
async def test_a_scope_cannot_touch_another_tenant(
    database: DatabaseTarget, scopes: Scopes, pair: Pair
) -> None:
    before = await census(database, pair.victim, pair.tables)
    root = await connect_as(database, database.admin)
    foreign = {table: await row_for(root, table, pair.victim) for table in pair.tables}
    await root.close()
    scope = await scopes.for_principal(pair.attacker_admin)

    async def attempt(sql: str, *args: object) -> int:
        try:
            async with scope:
                return await scope.execute(Statement("attack", "exec", sql), *args)
        except StatementError as error:
            if error.sqlstate not in {"42501", "23503"}:
                raise
            return 0

    for table in pair.tables:
        name = f"tenantry.{table}"
        if (table, "tenantry_app") not in READABLE_UNBOUND:
            assert await attempt(f"select from {name} where tenant_id = $1", pair.victim) == 0
        assert await attempt(foreign[table].sql, *foreign[table].args) == 0
        assert (
            await attempt(f"update {name} set tenant_id = tenant_id where tenant_id = $1", pair.victim) == 0
        )
        assert await attempt(f"delete from {name} where tenant_id = $1", pair.victim) == 0
    assert await census(database, pair.victim, pair.tables) == before


async def test_a_batch_of_two_does_not_reach_a_third(
    database: DatabaseTarget, pair: Pair, make_tenant: MakeTenant
) -> None:
    third = await make_tenant()
    connection = await connect_as(database, "tenantry_gate")
    try:
        async with connection.transaction():
            both = f'{{"{pair.attacker}": "", "{third.tenant_id}": ""}}'
            await connection.execute("select set_config('app.batch', $1, true)", both)
            rows = await connection.fetch("select distinct tenant_id from tenantry.scopes order by 1")
    finally:
        await connection.close()
    assert [row["tenant_id"] for row in rows] == sorted([pair.attacker, third.tenant_id])


# ----------------------------------------------------------------------------------------------- cancellation


class CancelAt:
    """Awaits a coroutine and cancels it at its `turn`-th wait, exactly there."""

    def __init__(self, work: Coroutine[Any, Any, None], turn: int) -> None:
        self._work = work
        self._turn = turn

    def __await__(self) -> Generator[Any, Any, bool]:
        """Whether it was cancelled."""
        inner = self._work.__await__()
        try:
            waited = next(inner)
            for _ in range(self._turn):
                yield waited
                waited = next(inner)
            inner.throw(asyncio.CancelledError())
        except StopIteration:
            return False
        except asyncio.CancelledError:
            return True
        raise AssertionError("the coroutine went on waiting after its cancellation")


@pytest.mark.invariant(2)
@pytest.mark.parametrize("seed", [1, 2])
async def test_cancelled_scopes_leave_no_foreign_binding(
    database: DatabaseTarget, clock: SystemClock, make_tenant: MakeTenant, seed: int
) -> None:
    chance = random.Random(seed)
    shard = await Shard.open(database, ROOT_KEY, PoolSizes(app=2), clock)
    scopes = Scopes(shard, clock)
    tenants = [await make_tenant(), await make_tenant()]
    cancelled = 0

    async def use(tenant: TestTenant, statements: int) -> None:
        async with await scopes.for_principal(tenant.admin) as scope:
            for _ in range(statements):
                row = await scope.fetch_one(ECHO)
                assert row is not None
                assert row["bound"] == f"{{{tenant.tenant_id}}}"

    async def attack(number: int) -> None:
        nonlocal cancelled
        tenant = tenants[number % 2]
        cancelled += await CancelAt(use(tenant, chance.randrange(1, 4)), chance.randrange(7))
        await use(tenants[(number + 1) % 2], 1)

    try:
        for first in range(0, 200, 4):
            await asyncio.gather(*(attack(number) for number in range(first, first + 4)))
        assert cancelled >= 60, "or this test shows nothing"
        lender = shard.lender("tenantry_app")
        held = [await lender.take(), await lender.take()]
        for connection in held:
            assert not connection.is_in_transaction()
            bound = await connection.fetchval("select coalesce(current_setting('app.tenants', true), '')")
            assert bound == ""
            await lender.give_back(connection)
    finally:
        await shard.close()


async def test_a_cancelled_write_is_not_committed(
    database: DatabaseTarget, scopes: Scopes, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    put = Statement(
        "put",
        "exec",
        "insert into tenantry.tenant_specs (tenant_id, kind, name, spec) values ($1, 'agent', 'ghost', '{}')",
    )
    reached = asyncio.Event()

    async def write() -> None:
        async with await scopes.for_principal(tenant.admin) as scope:
            await scope.execute(put, tenant.tenant_id)
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await census(database, tenant.tenant_id, ["tenant_specs"]) == await census(
        database, TenantId("never_was"), ["tenant_specs"]
    )


# -------------------------------------------------------------------------------------------- sealed, by hand


@pytest.mark.invariant(12)
async def test_sealed_rows_and_wrapped_keys_do_not_open_for_another_tenant(
    database: DatabaseTarget, scopes: Scopes, pair: Pair, shard: Shard
) -> None:
    victim = await scopes.for_principal(pair.victim_admin)
    attacker = await scopes.for_principal(pair.attacker_admin)
    sealed = victim.seal(b"the victim's", table="journal", row_id="act_1")
    with pytest.raises(SealBrokenError):
        attacker.unseal(sealed, table="journal", row_id="act_1")
    root = await connect_as(database, database.admin)
    try:
        await root.execute(
            "update tenantry.tenant_keys set wrapped_key ="
            " (select wrapped_key from tenantry.tenant_keys where tenant_id = $1) where tenant_id = $2",
            pair.victim,
            pair.attacker,
        )
    finally:
        await root.close()
    shard.keyring.forget(pair.attacker)
    with pytest.raises(SealBrokenError):
        await scopes.for_principal(pair.attacker_admin)


async def test_scopes_and_calls_cannot_be_made_by_hand(scopes: Scopes, pair: Pair, shard: Shard) -> None:
    scope = await scopes.for_principal(pair.attacker_admin)
    call = scope.call("begin", b"payload")
    assert (call.tenant_id, call.shard_id, call.statement_name, call.payload) == (
        pair.attacker,
        "main",
        "begin",
        b"payload",
    )
    with pytest.raises(ScopeMisuseError):
        BoundCall(object(), pair.victim, "main", "begin", b"")  # type: ignore[arg-type]
    with pytest.raises(ScopeMisuseError):
        TenantScope(
            None,  # type: ignore[arg-type]
            shard,
            tenant_id=pair.victim,
            actor="me",
            data_key=None,
            clock=SystemClock(),
        )
    with pytest.raises(ScopeMisuseError):
        PlatformScope(object(), shard, reason="because", operator="me")  # type: ignore[arg-type]
    for thing in (scope, call):
        for attack in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(ScopeMisuseError):
                attack(thing)
    for name in ("tenant_id", "statement_name"):
        with pytest.raises(AttributeError):
            setattr(call, name, pair.victim)
    with pytest.raises(AttributeError):
        scope.tenant_id = pair.victim  # type: ignore[misc]
    for kind in (BoundCall, TenantScope, PlatformScope):
        with pytest.raises(ScopeMisuseError):
            type("Forged", (kind,), {})

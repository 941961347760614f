"""Attackers on the gate: who may call its function, what it takes from whom, and joins that forget the tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest
from tests.support.cluster import connect_as
from tests.support.crossing import Crossing, mutants, sources
from tests.support.fixtures import MakeTenant
from tests.support.gates import BATCH, Bench, Lanes, make_begin, make_settle
from tests.support.tenants import TestTenant, register_tenant

from tenantry.core.clock import SystemClock
from tenantry.core.errors import TenantryError
from tenantry.gate.calls import BeginItem, encode
from tenantry.storage.bound import MAKER, BoundCall
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.errors import ScopeMisuseError

GATE_FUNCTIONS: Final = (
    "batch_v1",
    "begin_v1",
    "begin_one_v1",
    "decide_v1",
    "settle_v1",
    "settle_rest_v1",
    "open_run_v1",
    "ask_approval_v1",
    "refusal_detail_v1",
)
# Forgotten without a difference: parts of lines, and why.
HARMLESS: Final = {
    "s.level = 0 and s.subject_id =": "at level tenant the subject is the tenant",
    "j.idempotency_key = k.key": "sends the batch the item-by-item way, which looks again",
    "count(distinct (it.tenant_id, it.key))": "likewise",
    "begin.sql: where s.tenant_id = w.tenant_id and s.level = w.level": "likewise, for the count is off",
}
# What is locked, and what of it exists: no answer depends on a lock too many.
LOCKS: Final = frozenset({"batch.sql"})


@pytest.fixture
async def bench(database: DatabaseTarget) -> AsyncIterator[Bench]:
    async with Bench.open(database) as opened:
        yield opened


@pytest.mark.invariant(2)
@pytest.mark.parametrize("role", ["tenantry_app", "tenantry_control", "tenantry_platform"])
async def test_no_other_role_may_call_the_gates_functions(database: DatabaseTarget, role: str) -> None:
    connection = await connect_as(database, role)
    try:
        for name in GATE_FUNCTIONS:
            signatures = await connection.fetch(
                "select p.oid::regprocedure::text as signature, has_function_privilege(p.oid, 'execute') as may"
                " from pg_proc p where p.proname = $1 and p.pronamespace = 'tenantry'::regnamespace",
                name,
            )
            assert [row["may"] for row in signatures] == [False], (name, signatures)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch(BATCH.sql, *encode("ins_x", [], [], skip_locked=False))
    finally:
        await connection.close()


@pytest.mark.invariant(2)
async def test_the_function_binds_what_it_is_given_and_so_the_batcher_is_the_guard(
    bench: Bench, make_tenant: MakeTenant, database: DatabaseTarget
) -> None:
    """The gate's own role could begin for anybody; what cannot be had is a call of another tenant's."""
    mine, victim = await make_tenant(), await make_tenant()
    run = await bench.open_run(victim)
    item = make_begin(victim, run)
    async with Lanes.open(database) as lanes:
        scope = await lanes.scope(mine)
        for call in (
            lambda: lanes.batcher.begin(scope.call("begin", item)),
            lambda: lanes.batcher.settle(scope.call("settle", make_settle(item))),
        ):
            with pytest.raises(TenantryError, match="another tenant"):
                call()
        with pytest.raises(ScopeMisuseError):
            BoundCall(object(), victim.tenant_id, "main", "begin", item)  # type: ignore[arg-type]
        elsewhere = BoundCall(MAKER, victim.tenant_id, "another-shard", "begin", item)
        with pytest.raises(TenantryError, match="shard"):
            _ = lanes.batcher.begin(elsewhere)
    assert await bench.journal(victim) == []
    assert await bench.begin(item) == ["allowed"], "the function itself asks nobody"


@pytest.mark.invariant(2)
async def test_the_binding_ends_with_the_call(
    bench: Bench, make_tenant: MakeTenant, database: DatabaseTarget
) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    connection = await connect_as(database, "tenantry_gate")
    try:
        rows = await connection.fetch(
            BATCH.sql, *encode("ins_x", [], [make_begin(tenant, run)], skip_locked=False)
        )
        assert [row["code"] for row in rows] == ["allowed"]
        for table in ("scopes", "journal", "log_leaves"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="no tenant is bound"):
                await connection.fetch(f"select * from tenantry.{table}")
    finally:
        await connection.close()


@pytest.mark.invariant(2)
async def test_names_of_another_tenants_things_find_nothing(bench: Bench, make_tenant: MakeTenant) -> None:
    """Every field of an item but the tenant is a caller's word; both tenants are bound."""
    mine, victim = await make_tenant(), await make_tenant()
    runs = [await bench.open_run(t) for t in (mine, victim)]
    theirs = make_begin(victim, runs[1], key=f"{runs[1]}/k")
    await bench.begin(theirs)
    before = await bench.scopes(victim)
    hostile: list[dict[str, Any]] = [
        {"scope_run": runs[1], "run": runs[1]},
        {"workspace": victim.tenant_id},
        {"agent": victim.tenant_id},
    ]
    codes = await bench.begin(
        *(make_begin(mine, runs[0], **changes) for changes in hostile), quiet(victim, runs[1])
    )
    assert codes == ["unknown_scope"] * 3 + ["denied"]
    assert await bench.begin(make_begin(mine, runs[0], key=f"{runs[1]}/k"), quiet(victim, runs[1])) == [
        "allowed",
        "denied",
    ]
    stolen = make_settle(make_begin(mine, runs[0], action_id=theirs.action_id))
    settled, _ = await bench.batch([quiet(victim, runs[1])], [stolen])
    assert [r.code for r in settled] == ["unknown"]
    after = await bench.scopes(victim)
    for row in (*before, *after):
        for column in ("refusals", "log_size"):
            row.pop(column)
    assert after == before


def quiet(victim: TestTenant, run: str) -> BeginItem:
    """A refused item that uses nothing: it only gets its tenant bound."""
    return make_begin(victim, run, allow=False, journal_bytes=0, content=b"")


@pytest.mark.invariant(12)
async def test_two_tenants_alike_in_every_name_share_nothing(bench: Bench, make_tenant: MakeTenant) -> None:
    await Crossing(bench, [await make_tenant(), await make_tenant()]).walk()


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.invariant(12)
async def test_a_join_that_forgets_the_tenant_is_found(fresh_database: DatabaseTarget) -> None:
    """Each statement of the gate, once without its tenant: the walk above must fail on every one."""
    survivors, tried = [], 0
    real = sources()
    async with Bench.open(fresh_database) as bench:
        for name, line, text in mutants():
            if any(part in f"{name}: {line}" for part in HARMLESS) or (
                name in LOCKS and "(s_items" not in line
            ):
                continue
            try:
                await bench.root.execute(text)
            except asyncpg.PostgresError:
                continue  # does not even compile
            tried += 1
            try:
                pair = [await register_tenant(fresh_database, SystemClock()) for _ in range(2)]
                await Crossing(bench, pair).walk()
                survivors.append(f"{name}: {line}")
            except (AssertionError, TenantryError, asyncpg.PostgresError):
                pass
            finally:
                await bench.root.execute(real[name])
    assert tried >= 20
    assert survivors == []

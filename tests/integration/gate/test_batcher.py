"""Group commit: what one item, one tenant or one foreign lock does to the others in its batch."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

import msgspec
import pytest
from tests.support.cluster import connect_as
from tests.support.fixtures import MakeTenant
from tests.support.gates import (
    Bench,
    Lanes,
    check_log,
    gather_all,
    make_begin,
    make_model_begin,
    make_settle,
    reserved_of,
    turns_until,
)

from tenantry.core.errors import StorageUnavailableError, TenantryError
from tenantry.gate.calls import BeginItem, BeginResult
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.errors import StatementError

# What lies between an item and the database that a hostile caller could think of.
POISON: dict[str, dict[str, Any]] = {
    "nul": {"principal": "a\0b"},
    "surrogate": {"name": "\ud800"},
    "int64": {"model_tokens": 2**63},
    "sum": {"model_tokens": 2**63 - 1, "model_inflight": 1},
    "smallint": {"risk": 2**15},
    "json": {"reason": "{"},
    "run_spec": {"run_spec": "{}", "scope_run": None, "kind": "run"},
    "days": {"timeout_ms": 2**62},
}


async def begin(lanes: Lanes, tenant: Any, item: BeginItem) -> BeginResult:  # noqa: ANN401 - a TestTenant
    return await lanes.ledger.begin(await lanes.scope(tenant), item)


@pytest.mark.invariant(5)
async def test_one_key_and_two_bodies_in_one_batch(bench: Bench, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    items = [make_begin(tenant, run, key="k", input_sha256=bytes([place % 2]) * 32) for place in range(64)]
    _, results = await bench.batch(items)
    assert [r.code for r in results] == ["allowed", "key_reuse", *["open", "key_reuse"] * 31]
    assert {r.prior_action_id for r in results[1:]} == {items[0].action_id}
    scopes = await bench.scopes(tenant)
    assert [s["tool_calls_day_reserved"] for s in scopes] == [1] * 4
    assert len(await bench.journal(tenant)) == 1
    await bench.settle(make_settle(items[0], output=b"the answer"))
    _, results = await bench.batch(items[1:])
    assert [r.code for r in results] == ["key_reuse", *["recorded", "key_reuse"] * 31]
    assert {r.output for r in results[1::2]} == {b"the answer"}


@pytest.mark.invariant(5)
async def test_a_refused_winner_leaves_the_key_to_the_next(bench: Bench, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    items = [make_begin(tenant, run, key="k", allow=place > 1) for place in range(4)]
    _, results = await bench.batch(items)
    assert [r.code for r in results] == ["denied", "denied", "allowed", "open"]


@pytest.mark.parametrize("poison", POISON)
async def test_a_poisoned_item_fails_alone(
    bench: Bench, lanes: Lanes, make_tenant: MakeTenant, poison: str
) -> None:
    hostile, quiet = await make_tenant(), await make_tenant()
    runs = [await bench.open_run(t) for t in (hostile, quiet)]
    if poison == "sum":
        await begin(lanes, hostile, make_model_begin(hostile, runs[0], tokens=5))
    good = [make_begin(t, run) for t, run in zip((hostile, quiet), runs, strict=True) for _ in range(3)]
    bad = make_begin(hostile, runs[0], **POISON[poison])
    results = await gather_all(
        *(
            begin(lanes, hostile if item.tenant_id == hostile.tenant_id else quiet, item)
            for item in [*good[:2], bad, *good[2:]]
        )
    )
    failed = results.pop(2)
    assert isinstance(failed, StatementError), failed
    assert "\0" not in str(failed) and bad.principal not in str(failed)
    assert [r.code for r in results] == ["allowed"] * 6
    for tenant in (hostile, quiet):
        await check_log(bench.root, tenant.tenant_id)
        assert (await bench.scope(tenant, 0))["tool_calls_day_reserved"] == 3
    assert lanes.ledger.oldest_open_age_s() > 0


async def test_a_poisoner_goes_alone_and_its_neighbours_do_not(
    bench: Bench, lanes: Lanes, make_tenant: MakeTenant
) -> None:
    hostile, quiet = await make_tenant(), await make_tenant()
    runs = [await bench.open_run(t) for t in (hostile, quiet)]
    for _ in range(3):
        results = await gather_all(
            begin(lanes, quiet, make_begin(quiet, runs[1])),
            begin(lanes, hostile, make_begin(hostile, runs[0], reason="{")),
            begin(lanes, quiet, make_begin(quiet, runs[1])),
        )
        assert isinstance(results[1], StatementError)
        assert [results[0].code, results[2].code] == ["allowed"] * 2
    await begin(lanes, hostile, make_begin(hostile, runs[0]))
    assert set(lanes.batcher._aside) == {hostile.tenant_id}


async def test_an_item_in_another_tenants_name_is_refused(
    bench: Bench, lanes: Lanes, make_tenant: MakeTenant
) -> None:
    mine, other = await make_tenant(), await make_tenant()
    run = await bench.open_run(other)
    foreign = make_begin(other, run)
    with pytest.raises(TenantryError, match="another tenant"):
        await begin(lanes, mine, foreign)
    with pytest.raises(TenantryError, match="another tenant"):
        await lanes.ledger.settle(await lanes.scope(mine), make_settle(foreign))
    assert lanes.ledger.oldest_open_age_s() == 0
    assert await bench.journal(other) == []


@pytest.mark.invariant(11)
async def test_a_foreign_lock_holds_up_its_own_tenant_only(
    bench: Bench, lanes: Lanes, make_tenant: MakeTenant, database: DatabaseTarget
) -> None:
    quiet, held = await make_tenant(), await make_tenant()
    runs = [await bench.open_run(t) for t in (quiet, held)]
    await begin(lanes, quiet, make_begin(quiet, runs[0]))
    foreign = await connect_as(database, database.admin)
    try:
        async with foreign.transaction():
            await foreign.execute(
                "select from tenantry.scopes where tenant_id = $1 and level = 0 for update", held.tenant_id
            )
            waiting = [asyncio.create_task(begin(lanes, held, make_begin(held, runs[1]))) for _ in range(5)]
            took = []
            for _ in range(20):
                started = asyncio.get_running_loop().time()
                assert (await begin(lanes, quiet, make_begin(quiet, runs[0]))).code == "allowed"
                took.append((asyncio.get_running_loop().time() - started) * 1000)
            assert not any(task.done() for task in waiting)
        results = await asyncio.wait_for(asyncio.gather(*waiting), 2.0)
    finally:
        await foreign.close()
    assert [r.code for r in results] == ["allowed"] * 5
    print(f"beside a held tenant: median {statistics.median(took):.1f} ms, worst {max(took):.1f} ms")
    # The first pays the lock's time-out, 20 ms; nobody after it pays anything.
    assert statistics.median(took) < 50
    assert max(took[1:]) < 200
    assert (await begin(lanes, held, make_begin(held, runs[1]))).code == "allowed"


async def test_a_held_fleet_row_ends_in_an_honest_error(
    bench: Bench,
    lanes: Lanes,
    make_tenant: MakeTenant,
    database: DatabaseTarget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tenantry.gate.batch.BEGIN_PATIENCE_S", 0.3)
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    item = make_begin(tenant, run)
    foreign = await connect_as(database, database.admin)
    try:
        async with foreign.transaction():
            await foreign.execute("select from tenantry.fleet_scope for update")
            with pytest.raises(StorageUnavailableError):
                await asyncio.wait_for(begin(lanes, tenant, item), 3.0)
    finally:
        await foreign.close()
    await lanes.ledger.drain(5.0)
    assert await bench.journal(tenant) == []
    assert (await begin(lanes, tenant, make_begin(tenant, run))).code == "allowed"


@pytest.mark.invariant(12)
async def test_hostile_tenants_in_one_batch_see_nothing_of_each_other(
    bench: Bench, make_tenant: MakeTenant
) -> None:
    """Names, keys, digests, approvals and action ids are alike; only the tenant differs."""
    tenants = [await make_tenant() for _ in range(3)]
    for tenant in tenants:
        await bench.root.execute(
            "insert into tenantry.scopes (tenant_id, level, subject_id, attempt, lease_expires_at)"
            " values ($1, 3, 'wr_same', 1, tenantry.now() + interval '1 hour')",
            tenant.tenant_id,
        )
    first, *_ = tenants
    action_id = make_begin(first, "wr_same").action_id
    same = {"key": "k", "action_id": action_id}
    _, results = await bench.batch(
        [make_begin(t, "wr_same", **same, content=t.tenant_id.encode()) for t in tenants]
    )
    assert [(r.code, r.position) for r in results] == [("allowed", 0)] * 3
    begun = [make_begin(t, "wr_same", **same, content=t.tenant_id.encode()) for t in tenants]
    settled, _ = await bench.batch(
        (), [make_settle(item, output=item.tenant_id.encode() * 4) for item in begun[:2]]
    )
    assert [r.code for r in settled] == ["settled"] * 2
    _, results = await bench.batch([make_begin(t, "wr_same", key="k") for t in tenants])
    assert [r.code for r in results] == ["recorded", "recorded", "open"]
    assert [r.output for r in results[:2]] == [t.tenant_id.encode() * 4 for t in tenants[:2]]
    for tenant in tenants:
        told = [r for r, t in zip(results, tenants, strict=True) if t is tenant]
        others = [t.tenant_id for t in tenants if t is not tenant]
        text = msgspec.json.encode(told).decode()
        assert not any(other in text for other in others)
        assert [row["content"] for row in await bench.journal(tenant)] == [tenant.tenant_id.encode()]


async def test_whoever_waits_is_told_when_the_gate_closes(
    bench: Bench, database: DatabaseTarget, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    foreign = await connect_as(database, database.admin)
    try:
        async with foreign.transaction(), Lanes.open(database) as lanes:
            await foreign.execute("select from tenantry.fleet_scope for update")
            scope = await lanes.scope(tenant)
            waiting = [
                asyncio.create_task(lanes.ledger.begin(scope, make_begin(tenant, run))) for _ in range(50)
            ]
            await turns_until(lambda: lanes.batcher._main_connection._busy)
            await lanes.batcher.close()
            results = await asyncio.wait_for(gather_all(*waiting), 2.0)
            assert {type(result) for result in results} == {StorageUnavailableError}
            with pytest.raises(StorageUnavailableError):
                await asyncio.wait_for(lanes.ledger.begin(scope, make_begin(tenant, run)), 2.0)
    finally:
        await foreign.close()


@pytest.mark.parametrize(
    "rounds", [100, pytest.param(1_000, marks=[pytest.mark.soak, pytest.mark.timeout(300)])]
)
async def test_two_batchers_in_opposite_orders_never_deadlock(
    bench: Bench, database: DatabaseTarget, make_tenant: MakeTenant, rounds: int
) -> None:
    tenants = [await make_tenant() for _ in range(4)]
    runs = [await bench.open_run(t) for t in tenants]
    async with (
        Lanes.open(database, instance_id="ins_1") as one,
        Lanes.open(database, instance_id="ins_2") as two,
    ):

        async def storm(lanes: Lanes, order: list[int]) -> int:
            scopes = [await lanes.scope(t) for t in tenants]
            done = 0
            for _ in range(rounds):
                items = [make_model_begin(tenants[n], runs[n], tokens=1) for n in order]
                results = await asyncio.gather(
                    *(lanes.ledger.begin(scopes[n], item) for n, item in zip(order, items, strict=True))
                )
                done += sum(r.code == "allowed" for r in results)
                for n, item in zip(order, items, strict=True):
                    lanes.ledger.settle_later(scopes[n], make_settle(item))
            return done

        deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
        before = await bench.root.fetchval(deadlocks)
        done = await asyncio.gather(storm(one, [0, 1, 2, 3]), storm(two, [3, 2, 1, 0]))
        await asyncio.gather(one.ledger.drain(10.0), two.ledger.drain(10.0))
        assert tuple(done) == (rounds * 4, rounds * 4)
        await bench.root.execute("select pg_stat_clear_snapshot()")
        assert await bench.root.fetchval(deadlocks) == before
    for tenant in tenants:
        assert [reserved_of(s) for s in await bench.scopes(tenant)] == [{}] * 4
        await check_log(bench.root, tenant.tenant_id)

"""Many at once on a budget that covers few: exactly those few, at each level, however many gateways ask."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import multiprocessing
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.support.fixtures import MakeTenant
from tests.support.gates import (
    CALLS,
    TOKENS,
    Bench,
    Lanes,
    check_log,
    make_begin,
    make_settle,
    over_limit,
    reserved_of,
    storm,
    storm_in_a_process,
)
from tests.support.tenants import TestTenant, register_tenant

from tenantry.core.clock import SystemClock
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.migrate import set_clock_offset

COVERED = 3
METERS = ("model_tokens_minute", "model_tokens_day", "cost_microusd_day")


@contextlib.asynccontextmanager
async def sampling(bench: Bench, tenant: TestTenant) -> AsyncIterator[list[int]]:
    """Look at every snapshot that can be had meanwhile; the list counts them."""
    stop, looked = asyncio.Event(), [0]

    async def look() -> None:
        while not stop.is_set():
            for scope in await bench.scopes(tenant):
                assert not over_limit(scope), scope
                assert all(value >= 0 for value in reserved_of(scope).values())
            looked[0] += 1

    task = asyncio.create_task(look())
    try:
        yield looked
    finally:
        stop.set()
        await task
    assert looked[0] > 0


async def bound(bench: Bench, tenant: TestTenant, run: str, level: int, meter: str) -> None:
    subject = (tenant.tenant_id, tenant.workspace_id, tenant.agent_id, run)[level]
    each = TOKENS * 10 if meter == "cost_microusd_day" else TOKENS
    # One unit short of the fourth.
    await bench.set_scope(tenant, level, subject, **{f"{meter}_limit": each * (COVERED + 1) - 1})


@pytest.mark.invariant(3)
@pytest.mark.parametrize("gateways", [1, 3])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
async def test_a_budget_never_used_before_lets_exactly_what_it_covers_through(
    bench: Bench, database: DatabaseTarget, make_tenant: MakeTenant, level: int, gateways: int
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(Lanes.open(database)) for _ in range(gateways)]
        tenant = await make_tenant()
        run = await bench.open_run(tenant)
        await bound(bench, tenant, run, level, METERS[(level + gateways) % len(METERS)])
        async with sampling(bench, tenant):
            codes, allowed = await storm(opened, tenant, run)
        assert codes == {"allowed": COVERED, "budget_exceeded": CALLS - COVERED}
        assert (await bench.scope(tenant, 0))["model_inflight_reserved"] == COVERED
        for item in allowed:
            await opened[0].ledger.settle(await opened[0].scope(tenant), make_settle(item, "void"))
        assert [reserved_of(scope) for scope in await bench.scopes(tenant)] == [{}] * 4
        assert await check_log(bench.root, tenant.tenant_id) == CALLS + COVERED


@pytest.mark.invariant(3)
@pytest.mark.parametrize("gateways", [1, 3])
async def test_right_after_a_window_ended_the_new_one_covers_as_many(
    fresh_database: DatabaseTarget, gateways: int
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        bench = await stack.enter_async_context(Bench.open(fresh_database))
        opened = [await stack.enter_async_context(Lanes.open(fresh_database)) for _ in range(gateways)]
        tenant = await register_tenant(fresh_database, SystemClock())
        run = await bench.open_run(tenant, lease_expires_at=dt.datetime(2099, 1, 1, tzinfo=dt.UTC))
        await bound(bench, tenant, run, 0, "model_tokens_day")
        await bound(bench, tenant, run, 1, "model_tokens_minute")
        late: list[Any] = []
        for day in range(3):
            # A little after midnight, so that no minute ends in the middle of a storm.
            now = await bench.root.fetchval("select clock_timestamp()")
            midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + dt.timedelta(days=day + 1)
            await set_clock_offset(fresh_database, midnight - now + dt.timedelta(milliseconds=1))
            async with sampling(bench, tenant):
                codes, allowed = await storm(opened, tenant, run)
            assert codes == {"allowed": COVERED, "budget_exceeded": CALLS - COVERED}, day
            # Those of yesterday post to a window that nobody counts any more.
            for item in late:
                await opened[0].ledger.settle(await opened[0].scope(tenant), make_settle(item))
            late = allowed
            scope = await bench.scope(tenant, 0)
            assert (scope["model_tokens_day_used"], scope["model_tokens_day_reserved"]) == (
                0,
                COVERED * TOKENS,
            )
            assert scope["model_inflight_reserved"] == COVERED


@pytest.mark.invariant(3)
async def test_three_processes_share_one_budget(
    bench: Bench, database: DatabaseTarget, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    await bound(bench, tenant, run, 2, "cost_microusd_day")
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=storm_in_a_process, args=(database, tenant, run, start, answers))
        for _ in range(3)
    ]
    async with sampling(bench, tenant):
        for process in processes:
            process.start()
        found = [await asyncio.to_thread(answers.get, timeout=40) for _ in processes]
    for process in processes:
        process.join(10)
        assert process.exitcode == 0
    assert sum(map(Counter, found), Counter()) == {"allowed": COVERED, "budget_exceeded": CALLS * 3 - COVERED}
    assert await check_log(bench.root, tenant.tenant_id) == CALLS * 3


@pytest.mark.invariant(3)
@pytest.mark.parametrize("gauge", ["model_inflight", "requests"])
async def test_a_gauge_and_a_rate_let_exactly_as_many_through(
    bench: Bench, lanes: Lanes, make_tenant: MakeTenant, gauge: str
) -> None:
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    columns = (
        {"model_inflight_limit": COVERED}
        if gauge == "model_inflight"
        else {"requests_interval_us": 60_000_000, "requests_burst": COVERED}
    )
    await bench.set_scope(tenant, 1, tenant.workspace_id, **columns)
    codes, _ = await storm([lanes], tenant, run)
    assert codes == {"allowed": COVERED, "throttled": CALLS - COVERED}


@pytest.mark.invariant(3)
async def test_plain_calls_of_several_gateways_share_one_budget(
    bench: Bench, database: DatabaseTarget, make_tenant: MakeTenant
) -> None:
    """One in flight a gateway: each is the plain call, and each waits for the others' row locks."""
    tenant = await make_tenant(limits={"tool_calls_day_limit": 50})
    run = await bench.open_run(tenant)
    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(Lanes.open(database)) for _ in range(3)]

        async def one_by_one(lanes: Lanes) -> list[str]:
            scope = await lanes.scope(tenant)
            return [(await lanes.ledger.begin(scope, make_begin(tenant, run))).code for _ in range(40)]

        async with sampling(bench, tenant):
            told = await asyncio.gather(*map(one_by_one, opened))
    codes = Counter(itertools.chain.from_iterable(told))
    assert codes == {"allowed": 50, "budget_exceeded": 70}
    for scope in await bench.scopes(tenant):
        assert scope["tool_calls_day_reserved"] == 50
    assert await check_log(bench.root, tenant.tenant_id) == 120

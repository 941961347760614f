"""The jobs on a real database: what a lost process began is settled once, at the bound, and never too early."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeAlias

import asyncpg
import pytest
from tests.support.cluster import connect_as
from tests.support.fixtures import MakeTenant
from tests.support.gates import (
    Lanes,
    add_run_scope,
    check_log,
    make_begin,
    make_model_begin,
    make_settle,
    reserved_of,
    turns_until,
)
from tests.support.tenants import ROOT_KEY, TestTenant, register_tenant
from tests.support.whole_gate import GateBench

from tenantry.core.clock import SystemClock
from tenantry.core.ids import new_id
from tenantry.gate.calls import BeginItem
from tenantry.jobs.background import background_jobs
from tenantry.jobs.confirm import ConfirmSwitches
from tenantry.jobs.leader import Leader
from tenantry.jobs.reaper import Reaper
from tenantry.jobs.runner import Jobs
from tenantry.jobs.runs import ExpireRuns
from tenantry.journal.entries import JournalOutput
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import PoolSizes, Shard
from tenantry.storage.scope import Scopes

CLOCK = SystemClock()
Admin: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def root(fresh_database: DatabaseTarget) -> AsyncIterator[Admin]:
    connection = await connect_as(fresh_database, fresh_database.admin)
    yield connection
    await connection.close()


@pytest.fixture
async def shard(fresh_database: DatabaseTarget) -> AsyncIterator[Shard]:
    sizes = PoolSizes(gate=0, app=4, platform=2, control=3)
    opened = await Shard.open(fresh_database, ROOT_KEY, sizes, CLOCK)
    yield opened
    await opened.close()


@pytest.fixture
def make_tenant_in(fresh_database: DatabaseTarget) -> MakeTenant:
    async def make(*, name: str | None = None, limits: dict[str, int] | None = None) -> TestTenant:
        return await register_tenant(fresh_database, CLOCK, name=name, limits=limits)

    return make


async def add_instance(root: Admin, instance_id: str, *, lapsed_s: float) -> None:
    await root.execute(
        "insert into tenantry.instances (instance_id, role, started_at, lease_expires_at, oldest_open_at,"
        " acked_switch_seq) values ($1, 'gateway', now() - interval '1 hour', now() - make_interval(secs => $2),"
        " now() - interval '1 minute', 0)",
        instance_id,
        lapsed_s,
    )


async def begin_all(lanes: Lanes, tenant: TestTenant, items: list[BeginItem]) -> None:
    scope = await lanes.scope(tenant)
    results = await asyncio.gather(*(lanes.ledger.begin(scope, item) for item in items))
    assert {result.code for result in results} == {"allowed"}


async def states(root: Admin) -> dict[str, tuple[str, str | None, int | None]]:
    rows = await root.fetch("select action_id, state, status, used_tokens from tenantry.journal")
    return {row["action_id"]: (row["state"], row["status"], row["used_tokens"]) for row in rows}


@pytest.mark.invariant(3)
async def test_what_a_lost_process_began_is_posted_at_the_bound_once(
    fresh_database: DatabaseTarget,
    shard: Shard,
    root: Admin,
    make_tenant_in: MakeTenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tenantry.jobs.reaper.GRACE_S", 0.0)
    monkeypatch.setattr("tenantry.jobs.reaper.BATCH", 7)
    tenants = [await make_tenant_in() for _ in range(2)]
    scopes = Scopes(shard, CLOCK)
    async with (
        Lanes.open(fresh_database, instance_id="ins_lost") as lost,
        Lanes.open(fresh_database, instance_id="ins_live") as live,
    ):
        models, reads, writes, living, done = [], [], [], [], []
        for tenant in tenants:
            run = new_id("wr", CLOCK)
            await add_run_scope(root, tenant.tenant_id, run)
            models += [make_model_begin(tenant, run, tokens=10 + n) for n in range(8)]
            reads += [make_begin(tenant, run) for _ in range(3)]
            writes += [make_begin(tenant, run, risk=2) for _ in range(3)]
            mine = [i for i in (*models, *reads, *writes) if i.tenant_id == tenant.tenant_id]
            finished = make_model_begin(tenant, run, tokens=5)
            done.append(finished)
            await begin_all(lost, tenant, [*mine, finished])
            await lost.ledger.settle(await lost.scope(tenant), make_settle(finished, tokens=2))
            alive = make_begin(tenant, run)
            living.append(alive)
            await begin_all(live, tenant, [alive])
        await add_instance(root, "ins_lost", lapsed_s=1.5)
        await add_instance(root, "ins_live", lapsed_s=-60)
        reaper = Reaper(scopes, await shard.control_connection(), live.ledger.settle, CLOCK)
        assert await reaper.run() == 28
        after = await states(root)
        assert all(after[i.action_id] == ("settled", "unknown", i.model_tokens) for i in models)
        assert all(after[i.action_id] == ("settled", "unknown", 0) for i in reads)
        assert all(after[i.action_id] == ("held", "unknown", 0) for i in writes)
        assert all(after[i.action_id] == ("begun", None, None) for i in living)
        assert all(after[i.action_id] == ("settled", "ok", 2) for i in done)
        assert await root.fetchval("select array_agg(instance_id) from tenantry.instances") == ["ins_live"]
        assert await reaper.run() == 0

        # The process was only asleep: its own settlements come too late and change nothing.
        scope = await lost.scope(tenants[0])
        mine = [i for i in models if i.tenant_id == tenants[0].tenant_id]
        late = [await lost.ledger.settle(scope, make_settle(item, tokens=1)) for item in mine]
        assert {result.code for result in late} == {"already"}
        assert await states(root) == after
        for item in living:
            owner = next(t for t in tenants if t.tenant_id == item.tenant_id)
            await live.ledger.settle(await live.scope(owner), make_settle(item))
    for tenant in tenants:
        rows = await root.fetch("select * from tenantry.scopes where tenant_id = $1", tenant.tenant_id)
        assert all(reserved_of(dict(row)) == {} for row in rows)
        used = {row["level"]: row["model_tokens_day_used"] for row in rows}
        assert set(used.values()) == {sum(10 + n for n in range(8)) + 2}
        await check_log(root, tenant.tenant_id)
        opened_scope = await scopes.for_principal(tenant.admin)
        shown = next(i for i in models if i.tenant_id == tenant.tenant_id)
        stored = await root.fetchval(
            "select output from tenantry.journal where action_id = $1", shown.action_id
        )
        recorded = JournalOutput.decode(opened_scope, shown.action_id, stored)
        assert recorded.detail is not None and "gone" in recorded.detail


async def test_a_process_gets_time_to_come_back_after_the_database_was_away(
    fresh_database: DatabaseTarget,
    shard: Shard,
    root: Admin,
    make_tenant_in: MakeTenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tenantry.jobs.reaper.GRACE_S", 0.05)
    tenant = await make_tenant_in()
    run = new_id("wr", CLOCK)
    await add_run_scope(root, tenant.tenant_id, run)
    async with Lanes.open(fresh_database, instance_id="ins_slow") as slow:
        item = make_begin(tenant, run)
        await begin_all(slow, tenant, [item])
        await add_instance(root, "ins_slow", lapsed_s=30)
        reaper = Reaper(Scopes(shard, CLOCK), await shard.control_connection(), slow.ledger.settle, CLOCK)
        assert await reaper.run() == 0
        # It renewed between two looks.
        await root.execute("update tenantry.instances set lease_expires_at = now() - interval '10 s'")
        await asyncio.sleep(0.06)
        assert await reaper.run() == 0
        await asyncio.sleep(0.06)
        assert await reaper.run() == 1
        assert (await states(root))[item.action_id][0] == "settled"


async def test_actions_of_processes_that_nobody_knows_are_settled_too(
    fresh_database: DatabaseTarget,
    shard: Shard,
    root: Admin,
    make_tenant_in: MakeTenant,
) -> None:
    tenant = await make_tenant_in()
    run = new_id("wr", CLOCK)
    await add_run_scope(root, tenant.tenant_id, run)
    async with Lanes.open(fresh_database, instance_id="ins_nobody") as lanes:
        old, new = make_begin(tenant, run), make_begin(tenant, run)
        await begin_all(lanes, tenant, [old, new])
        await root.execute(
            "update tenantry.journal set begun_at = begun_at - interval '5 minutes' where action_id = $1",
            old.action_id,
        )
        reaper = Reaper(Scopes(shard, CLOCK), await shard.control_connection(), lanes.ledger.settle, CLOCK)
        await reaper.run()
        after = await states(root)
        assert after[old.action_id][0] == "settled"
        assert after[new.action_id][0] == "begun"


async def test_runs_past_their_deadline_end_and_free_their_slot(
    fresh_database: DatabaseTarget, shard: Shard, root: Admin, make_tenant_in: MakeTenant
) -> None:
    tenant = await make_tenant_in()
    async with GateBench.open(fresh_database) as bench:
        await bench.register(tenant)
        contexts = [await bench.open_run(tenant) for _ in range(3)]
        expired = contexts[0].claims.run_id
        await root.execute(
            "update tenantry.runs set deadline_at = now() - interval '1 second' where run_id = $1", expired
        )
        job = ExpireRuns(Scopes(shard, CLOCK), bench.gate.close_run)
        assert await job.run() == 1
        assert await job.run() == 0
    rows = await root.fetch("select run_id, state from tenantry.runs")
    assert {row["run_id"]: row["state"] for row in rows} == {
        c.claims.run_id: "expired" if c.claims.run_id == expired else "running" for c in contexts
    }
    slots = await root.fetchval(
        "select concurrent_runs_reserved from tenantry.scopes where tenant_id = $1 and level = 0",
        tenant.tenant_id,
    )
    assert slots == 2
    live = await root.fetchval(
        "select lease_expires_at > now() from tenantry.scopes where level = 3 and subject_id = $1", expired
    )
    assert live is False
    await check_log(root, tenant.tenant_id)


async def test_one_leads_and_another_follows_when_it_is_gone(
    fresh_database: DatabaseTarget, shard: Shard, root: Admin
) -> None:
    connection = await shard.control_connection()
    one = Leader(connection)
    assert await one.is_held()
    assert await one.is_held()
    async with contextlib.AsyncExitStack() as stack:
        other_shard = await Shard.open(
            fresh_database, ROOT_KEY, PoolSizes(gate=0, app=1, platform=0, control=1), CLOCK
        )
        stack.push_async_callback(other_shard.close)
        two = Leader(await other_shard.control_connection())
        assert not await two.is_held()
        await connection.close()
        async with asyncio.timeout(5):
            while not await two.is_held():  # noqa: ASYNC110 - the server notices a closed session by itself
                await asyncio.sleep(0.01)
        # A lost session is a lost lease, and is taken again.
        await root.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'tenantry_control'"
        )
        async with asyncio.timeout(5):
            while not await two.is_held():  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)


async def test_a_job_that_fails_stops_no_other_and_shows_in_its_lag(shard: Shard) -> None:
    class Bad:
        async def run(self) -> int:
            raise RuntimeError("broken")

    class Good:
        def __init__(self) -> None:
            self.runs = 0

        async def run(self) -> int:
            self.runs += 1
            return 0

    good = Good()
    faults: list[tuple[str, str]] = []
    jobs = Jobs(
        Leader(await shard.control_connection()),
        {"bad": Bad(), "good": good},
        CLOCK,
        on_fault=lambda name, error: faults.append((name, str(error))),
        each_s=0.01,
    )
    jobs.start()
    await turns_until(lambda: good.runs >= 3)
    await jobs.stop()
    assert faults[0] == ("bad", "broken")
    lags = jobs.lags()
    assert lags["bad"] > lags["good"] >= 0


async def test_the_jobs_run_together_and_a_second_set_does_nothing(
    fresh_database: DatabaseTarget, shard: Shard
) -> None:
    faults: list[object] = []
    async with GateBench.open(fresh_database) as bench:
        sets = [
            await background_jobs(
                shard,
                CLOCK,
                settle=bench.lanes.ledger.settle,
                close_run=bench.gate.close_run,
                on_fault=lambda name, error: faults.append((name, error)),
            )
            for _ in range(2)
        ]
        assert [await jobs.turn() for jobs in sets] == [True, False]
    assert faults == []
    assert set(sets[0].lags()) == {"reaper", "expire_runs", "confirm_switches"}
    assert sets[1].lags() == {}


async def test_a_switch_is_confirmed_late_when_all_have_heeded_it(shard: Shard, root: Admin) -> None:
    await root.execute(
        "insert into tenantry.switches (switch_seq, switch_id, level, subject_id, verb, epoch, requested_by, reason,"
        " requested_at) select n, 'sw_' || n, -1, 'fleet', 'kill', 0, 'op_x', 'x', now() - interval '2 minutes'"
        " from generate_series(1, 3) n"
    )
    await add_instance(root, "ins_behind", lapsed_s=-60)
    await root.execute("update tenantry.instances set acked_switch_seq = 2")
    job = ConfirmSwitches(await shard.control_connection())
    assert await job.run() == 2
    assert await job.run() == 0
    left = await root.fetchval(
        "select array_agg(switch_seq) from tenantry.switches where confirmed_at is null"
    )
    assert left == [3]

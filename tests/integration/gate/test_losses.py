"""Callers that go away and connections that are lost, at any moment: nothing leaks, nothing is done twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from tests.support.cluster import connect_as
from tests.support.fixtures import MakeTenant
from tests.support.gates import (
    Bench,
    Lanes,
    check_log,
    make_begin,
    make_model_begin,
    make_settle,
    reserved_of,
    terminate_gate_backends,
)
from tests.support.tenants import TestTenant
from tests.support.whole_gate import GateBench, GoneDoor, answer_ok, ignore

from tenantry.core.action import Outcome, OutcomeStatus
from tenantry.core.errors import StorageUnavailableError, UpstreamError
from tenantry.core.verdict import Allowed
from tenantry.gate.calls import BeginResult, SettleResult
from tenantry.gate.context import Timings
from tenantry.gate.ports import AdapterCall, Emit
from tenantry.storage.connect import DatabaseTarget

SEED = 20_270_301


async def steps(count: int) -> None:
    """Let everything else take so many turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def cancel_after(task: asyncio.Task[Any], delay_s: float, again: int = 0) -> None:
    """Cancel at an arbitrary moment, and perhaps again while the task ends."""
    await asyncio.sleep(delay_s)
    task.cancel()
    for _ in range(again):
        await steps(1)
        task.cancel()


async def nothing_left(bench: Bench, tenant: TestTenant) -> list[dict[str, Any]]:
    """No reservation and no open intent, and a whole log; the journal."""
    assert [reserved_of(scope) for scope in await bench.scopes(tenant)] == [{}] * 4
    rows = await bench.journal(tenant)
    assert Counter(row["state"] for row in rows)["begun"] == 0
    await check_log(bench.root, tenant.tenant_id)
    return rows


@pytest.mark.invariant(3)
@pytest.mark.invariant(9)
async def test_callers_of_the_ledger_cancelled_anywhere(
    bench: Bench, lanes: Lanes, make_tenant: MakeTenant
) -> None:
    chance = random.Random(SEED)
    tenant = await make_tenant(limits={"model_inflight_limit": 40})
    run = await bench.open_run(tenant)
    scope = await lanes.scope(tenant)
    settled: Counter[str] = Counter()

    async def caller() -> None:
        item = make_model_begin(tenant, run, key=chance.choice([None, None, f"k{chance.randrange(40)}"]))
        result = await lanes.ledger.begin(scope, item)
        if result.code == "allowed":
            settled[item.action_id] += 1
            answer: SettleResult = await lanes.ledger.settle(scope, make_settle(item))
            assert answer.code == "settled"

    for _ in range(10):
        tasks = [asyncio.create_task(caller()) for _ in range(30)]
        cancels = [
            asyncio.create_task(cancel_after(task, chance.random() * 0.03, chance.randrange(3)))
            for task in tasks[5:]  # on a slow disk all the others may be cancelled before they began
        ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*cancels)
        assert {type(r) for r in results} <= {type(None), asyncio.CancelledError}
    await lanes.ledger.drain(10.0)
    await steps(50)
    await lanes.ledger.drain(10.0)
    assert lanes.ledger.oldest_open_age_s() == 0
    rows = await nothing_left(bench, tenant)
    assert max(settled.values()) == 1
    posted = {row["action_id"] for row in rows if row["state"] == "settled"}
    assert posted == set(settled)


@pytest.mark.invariant(5)
@pytest.mark.invariant(9)
async def test_callers_of_the_gate_cancelled_anywhere(
    bench: Bench, gate: GateBench, make_tenant: MakeTenant
) -> None:
    chance = random.Random(SEED)
    tenant = await make_tenant()
    await gate.register(tenant)
    contexts = [await gate.open_run(tenant) for _ in range(3)]

    async def slow(call: AdapterCall, emit: Emit) -> Outcome:
        await steps(chance.randrange(20))
        return await answer_ok(call, emit)

    gate.adapter.script = slow
    for _ in range(10):
        tasks = []
        for _ in range(30):
            action = gate.action(key=chance.choice([None, f"k{chance.randrange(30)}"]), write=True)
            tasks.append(asyncio.create_task(gate.gate.act(chance.choice(contexts), action, ignore)))
        cancels = [
            asyncio.create_task(cancel_after(task, chance.random() * 0.06, chance.randrange(4)))
            for task in tasks
        ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*cancels)
        faults = [r for r in results if isinstance(r, Exception)]
        assert faults == []
    await gate.lanes.ledger.drain(10.0)
    await steps(50)
    await gate.lanes.ledger.drain(10.0)
    rows = [row for row in await bench.journal(tenant) if row["kind"] == "tool"]
    assert Counter(row["state"] for row in rows)["begun"] == 0
    assert gate.instance.live_count == 0
    for scope in await bench.scopes(tenant):
        assert set(reserved_of(scope)) <= {"concurrent_runs_reserved", "journal_bytes_reserved"}
        assert scope["tool_calls_day_reserved"] == 0
    performed = {row["action_id"] for row in rows if row["state"] != "voided"}
    assert len(gate.adapter.sent) == len(set(gate.adapter.sent))
    assert set(gate.adapter.sent) <= performed
    await check_log(bench.root, tenant.tenant_id)


@pytest.mark.invariant(9)
async def test_the_gates_connections_lost_at_any_moment(
    bench: Bench, lanes: Lanes, make_tenant: MakeTenant, database: DatabaseTarget
) -> None:
    chance = random.Random(SEED)
    tenant = await make_tenant()
    run = await bench.open_run(tenant)
    scope = await lanes.scope(tenant)
    performed: list[str] = []
    told: Counter[str] = Counter()
    stop = asyncio.Event()
    witness = await connect_as(database, database.admin)

    async def worker() -> None:
        while not stop.is_set():
            item = make_model_begin(tenant, run)
            try:
                result: BeginResult = await lanes.ledger.begin(scope, item)
            except StorageUnavailableError:
                told["unavailable"] += 1
                continue
            assert result.code == "allowed"
            performed.append(item.action_id)
            answer = await lanes.ledger.settle(scope, make_settle(item, tokens=7, microusd=70))
            told[answer.code] += 1

    workers = [asyncio.create_task(worker()) for _ in range(12)]
    killed = 0
    for _ in range(400):
        if killed >= 50:
            break
        await asyncio.sleep(chance.random() * 0.2)
        killed += await terminate_gate_backends(bench.root)
        seen = list(performed)
        known = await witness.fetchval(
            "select count(*) from tenantry.journal where tenant_id = $1 and action_id = any($2::text[])",
            tenant.tenant_id,
            seen,
        )
        assert known == len(seen), "performed without an intent"
    stop.set()
    await asyncio.wait_for(asyncio.gather(*workers), 20.0)
    await asyncio.wait_for(lanes.ledger.drain(20.0), 25.0)
    await witness.close()
    assert killed >= 50
    assert lanes.ledger.oldest_open_age_s() == 0
    rows = await nothing_left(bench, tenant)
    by_id = {row["action_id"]: row for row in rows}
    assert {by_id[action_id]["state"] for action_id in performed} == {"settled"}
    assert all(row["state"] == "voided" for row in rows if row["action_id"] not in set(performed))
    assert (await bench.scope(tenant, 0))["model_tokens_day_used"] == 7 * len(performed)
    assert told["settled"] + told["already"] == len(performed)
    print(f"{killed} backends lost; {dict(told)}")


async def test_a_cancelled_perform_that_takes_its_time_is_waited_for(
    bench: Bench, gate: GateBench, make_tenant: MakeTenant
) -> None:
    """However often the caller is cancelled, the upstream is closed before the bound is posted, and it is posted."""
    tenant = await make_tenant()
    await gate.register(tenant)
    context = await gate.open_run(tenant)
    started, closing, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stubborn(_call: AdapterCall, _emit: Emit) -> Outcome:
        try:
            started.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            closing.set()
            await closed.wait()
            raise
        raise AssertionError

    gate.adapter.script = stubborn
    action = gate.action(write=True)
    task = asyncio.create_task(gate.gate.act(context, action, ignore))
    await started.wait()
    for _ in range(4):
        task.cancel()
        await steps(5)
    await closing.wait()
    assert not task.done()
    closed.set()
    await asyncio.gather(task, return_exceptions=True)
    await gate.lanes.ledger.drain(5.0)
    row = next(r for r in await bench.journal(tenant) if r["action_id"] == action.action_id)
    assert (row["state"], row["status"]) == ("settled", "cut")


async def test_a_door_that_fails_at_its_first_word_leaks_nothing(
    bench: Bench, gate: GateBench, make_tenant: MakeTenant
) -> None:
    class Broken(GoneDoor):
        def begun(self, timings: Timings, /) -> None:
            raise ConnectionResetError(timings)

    tenant = await make_tenant()
    await gate.register(tenant)
    context = await gate.open_run(tenant)
    action = gate.action()
    with pytest.raises(ConnectionResetError):
        await gate.gate.act(context, action, Broken())
    await gate.lanes.ledger.drain(5.0)
    row = next(r for r in await bench.journal(tenant) if r["action_id"] == action.action_id)
    assert (row["state"], gate.adapter.sent) == ("voided", [])


@pytest.mark.invariant(5)
async def test_a_key_open_in_another_gateway_is_waited_for_and_then_unknown(
    bench: Bench, gate: GateBench, make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantry.gate.begin.OPEN_WAIT_S", 2.5)
    tenant = await make_tenant()
    await gate.register(tenant)
    context = await gate.open_run(tenant)
    action = gate.action(key="k")
    foreign = make_begin(
        tenant, context.claims.run_id, key=f"{context.claims.run_id}/k", input_sha256=action.input_sha256
    )
    assert await bench.begin(foreign) == ["allowed"]
    result = await gate.gate.act(context, action, ignore)
    assert type(result.verdict).__name__ == "UnknownOutcome"
    assert gate.adapter.sent == []


@pytest.mark.invariant(5)
async def test_what_was_never_sent_may_be_tried_again_under_its_key(
    gate: GateBench, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    await gate.register(tenant)
    context = await gate.open_run(tenant)

    async def unreachable(_call: AdapterCall, _emit: Emit) -> Outcome:
        raise UpstreamError("nobody there", sent=False)

    gate.adapter.script = unreachable
    first = await gate.gate.act(context, gate.action(key="k", write=True), ignore)
    assert type(first.verdict).__name__ == "ProviderDegraded"
    gate.adapter.script = answer_ok
    second = await gate.gate.act(context, gate.action(key="k", write=True), ignore)
    assert isinstance(second.verdict, Allowed) and second.outcome is not None
    assert second.outcome.status is OutcomeStatus.OK
    third = await gate.gate.act(context, gate.action(key="k", write=True), ignore)
    assert isinstance(third.verdict, Allowed) and third.verdict.recorded is not None
    assert len(gate.adapter.sent) == 2


async def test_a_refusal_by_a_meter_reaches_the_caller_as_a_verdict(
    bench: Bench, gate: GateBench, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(limits={"tool_calls_day_limit": 1})
    await gate.register(tenant)
    context = await gate.open_run(tenant)
    assert isinstance((await gate.gate.act(context, gate.action(), ignore)).verdict, Allowed)
    refused = (await gate.gate.act(context, gate.action(), ignore)).verdict
    assert type(refused).__name__ == "BudgetExceeded"
    await bench.set_scope(tenant, 2, tenant.agent_id, requests_interval_us=60_000_000, requests_burst=0)
    await bench.set_scope(tenant, 0, tenant.tenant_id, tool_calls_day_limit=None)
    assert type((await gate.gate.act(context, gate.action(), ignore)).verdict).__name__ == "Throttled"

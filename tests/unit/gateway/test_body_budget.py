from __future__ import annotations

import asyncio

import pytest

from tenantry.core.ids import TenantId
from tenantry.core.verdict import Throttled
from tenantry.gateway.body import BodyBudget
from tenantry.gateway.limits import DoorLimits

A, B, C = TenantId("a_a"), TenantId("b_b"), TenantId("c_c")


def budget(*, total: int = 100, tenant: int = 60, small: int = 5, wait_ms: int = 2_000) -> BodyBudget:
    limits = DoorLimits(
        bodies_bytes_max=total,
        tenant_bodies_bytes_max=tenant,
        body_small_bytes=small,
        body_wait_ms=wait_ms,
    )
    return BodyBudget(limits)


async def test_tenants_take_turns() -> None:
    bodies = budget()
    order: list[str] = []

    async def take(tenant: TenantId, name: str) -> None:
        assert await bodies.acquire(tenant, 50) is None
        order.append(name)

    assert await bodies.acquire(A, 50) is None
    assert await bodies.acquire(B, 50) is None
    names = [(A, "a1"), (A, "a2"), (A, "a3"), (B, "b1"), (C, "c1"), (C, "c2")]
    tasks = []
    for tenant, name in names:
        tasks.append(asyncio.create_task(take(tenant, name)))
        await asyncio.sleep(0)
    bodies.release(A, 50)
    holders = {"a": A, "b": B, "c": C}
    bodies.release(B, 50)
    await asyncio.sleep(0)
    done = 0
    while done < len(order):
        bodies.release(holders[order[done][0]], 50)
        done += 1
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert sorted(order) == ["a1", "a2", "a3", "b1", "c1", "c2"]
    assert set(order[:3]) == {"a1", "b1", "c1"}
    assert [bodies.held(tenant) for tenant in (A, B, C)] == [0, 0, 0]


async def test_small_bodies_pass_a_process_that_is_full() -> None:
    bodies = budget()
    assert await bodies.acquire(A, 60) is None
    assert await bodies.acquire(B, 40) is None
    assert await bodies.acquire(C, 5) is None
    assert bodies.held(C) == 5


async def test_a_body_above_the_tenants_budget_passes_alone() -> None:
    bodies = budget()
    assert await bodies.acquire(A, 80) is None
    bodies.release(A, 80)
    assert bodies.held(A) == 0


async def test_waiting_is_bounded_and_leaves_nothing() -> None:
    bodies = budget(wait_ms=20)
    assert await bodies.acquire(A, 60) is None
    assert isinstance(await bodies.acquire(A, 10), Throttled)
    bodies.release(A, 60)
    assert bodies.held(A) == 0
    assert await bodies.acquire(A, 60) is None


async def test_whoever_is_cancelled_leaves_nothing() -> None:
    bodies = budget()
    assert await bodies.acquire(A, 60) is None
    waiting = asyncio.create_task(bodies.acquire(A, 50))
    behind = asyncio.create_task(bodies.acquire(A, 10))
    await asyncio.sleep(0)
    # Cancelled in the same turn of the loop in which its turn came.
    bodies.release(A, 60)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await behind is None
    assert bodies.held(A) == 10
    bodies.release(A, 10)
    again = asyncio.create_task(bodies.acquire(A, 60))
    assert await again is None

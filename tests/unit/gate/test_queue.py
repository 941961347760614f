"""Queues a tenant: whose turn it is, and how much of a batch is whose."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tenantry.core.ids import TenantId
from tenantry.gate.calls import SettleItem, SettleResult
from tenantry.gate.queue import Entry, TenantQueues

NAMES = [TenantId(name) for name in ("ab", "cd", "ef")]


def entry(loop: asyncio.AbstractEventLoop, tenant: TenantId, number: int) -> Entry:
    future: asyncio.Future[SettleResult] = loop.create_future()
    item = SettleItem(tenant, f"act_{number}", "w", "a", None, "void", 0, 0, 0, "", b"", b"")
    return Entry(tenant, item, future, float(number))


def drawn(order: list[int], *, size: int, per_tenant: int) -> list[list[Entry]]:
    """Every batch until the queues are empty."""

    async def work() -> list[list[Entry]]:
        queues = TenantQueues(size=size, per_tenant=per_tenant)
        loop = asyncio.get_running_loop()
        for number, tenant in enumerate(order):
            queues.put(entry(loop, NAMES[tenant], number))
        batches, left = [], len(order)
        while left:
            batches.append(await queues.take())
            left -= len(batches[-1])
        assert queues.drain() == []
        return batches

    return asyncio.run(work())


orders = st.lists(st.integers(0, 2), max_size=60)


@given(orders, st.integers(1, 12), st.integers(1, 5))
def test_nothing_is_lost_or_doubled_and_a_tenants_order_stays(order: list[int], size: int, cap: int) -> None:
    batches = drawn(order, size=size, per_tenant=cap)
    taken = [e for batch in batches for e in batch]
    assert sorted(e.give_up_at for e in taken) == list(range(len(order)))
    for tenant in NAMES:
        mine = [e.give_up_at for e in taken if e.tenant_id == tenant]
        assert mine == sorted(mine)


@given(orders, st.integers(1, 12), st.integers(1, 5))
def test_no_batch_is_larger_than_allowed_for_all_or_for_one(order: list[int], size: int, cap: int) -> None:
    for batch in drawn(order, size=size, per_tenant=cap):
        assert 0 < len(batch) <= size
        assert max(Counter(e.tenant_id for e in batch).values()) <= cap


@given(st.integers(1, 50), st.integers(1, 5))
def test_a_flood_of_one_leaves_room_for_the_other_in_the_very_next_batch(flood: int, cap: int) -> None:
    first = drawn([0] * flood + [1], size=cap * 2, per_tenant=cap)[0]
    assert NAMES[1] in {e.tenant_id for e in first}


async def test_what_comes_back_goes_first_in_its_order() -> None:
    queues = TenantQueues(size=10, per_tenant=10)
    loop = asyncio.get_running_loop()
    entries = [entry(loop, NAMES[0], number) for number in range(4)]
    for waiting in entries[2:]:
        queues.put(waiting)
    queues.put_back(entries[:2])
    assert [e.give_up_at for e in await queues.take()] == [0, 1, 2, 3]


async def test_taking_waits_until_something_is_there() -> None:
    queues = TenantQueues(size=10, per_tenant=10)
    taking = asyncio.create_task(queues.take())
    await asyncio.sleep(0)
    assert not taking.done()
    put = entry(asyncio.get_running_loop(), NAMES[0], 1)
    queues.put(put)
    assert await taking == [put]


async def test_a_moved_tenant_is_in_the_other_queue_only() -> None:
    one, other = (TenantQueues(size=10, per_tenant=10) for _ in range(2))
    loop = asyncio.get_running_loop()
    for number, tenant in enumerate((0, 1, 0)):
        one.put(entry(loop, NAMES[tenant], number))
    one.move_tenant(NAMES[0], other)
    assert [e.give_up_at for e in await one.take()] == [1]
    assert [e.give_up_at for e in await other.take()] == [0, 2]

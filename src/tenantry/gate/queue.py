"""What waits for the next batch: a queue a tenant, taken round robin, at most so many of one tenant at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from tenantry.gate.calls import BeginItem, BeginResult, SettleItem, SettleResult

if TYPE_CHECKING:
    from tenantry.core.ids import TenantId


class Entry:
    """One item and whoever waits for its result. ``give_up_at`` is monotonic seconds."""

    __slots__ = ("future", "give_up_at", "item", "tenant_id")

    def __init__(
        self,
        tenant_id: TenantId,
        item: BeginItem | SettleItem,
        future: asyncio.Future[BeginResult] | asyncio.Future[SettleResult],
        give_up_at: float,
    ) -> None:
        self.tenant_id = tenant_id
        self.item = item
        self.future = future
        self.give_up_at = give_up_at

    def fail(self, error: Exception) -> None:
        """Tell the waiter, if it still waits."""
        if not self.future.done():
            self.future.set_exception(error)


class TenantQueues:
    """Round robin over tenants. A tenant gives at most `per_tenant` entries to a batch of at most `size`."""

    def __init__(self, *, size: int, per_tenant: int) -> None:
        self._size = size
        self._per_tenant = per_tenant
        self._queues: OrderedDict[TenantId, deque[Entry]] = OrderedDict()
        self._filled = asyncio.Event()

    def put(self, entry: Entry) -> None:
        """Append; the tenant's turn comes after those already waiting."""
        self._queues.setdefault(entry.tenant_id, deque()).append(entry)
        self._filled.set()

    def put_back(self, entries: list[Entry]) -> None:
        """Return entries that must go before whatever their tenants queued since."""
        for entry in reversed(entries):
            self._queues.setdefault(entry.tenant_id, deque()).appendleft(entry)
            self._queues.move_to_end(entry.tenant_id, last=False)
        if entries:
            self._filled.set()

    def move_tenant(self, tenant_id: TenantId, other: TenantQueues) -> None:
        """Hand everything of a tenant to another queue."""
        for entry in self._queues.pop(tenant_id, ()):
            other.put(entry)

    async def take(self) -> list[Entry]:
        """Wait until something is there, then take one batch of it."""
        while not self._queues:
            self._filled.clear()
            await self._filled.wait()
        batch: list[Entry] = []
        for tenant_id in list(self._queues):
            queue = self._queues.pop(tenant_id)
            share = min(len(queue), self._per_tenant, self._size - len(batch))
            batch.extend(queue.popleft() for _ in range(share))
            if queue:
                self._queues[tenant_id] = queue
            if len(batch) >= self._size:
                break
        return batch

    def drain(self) -> list[Entry]:
        """Take everything, for the end."""
        entries = [entry for queue in self._queues.values() for entry in queue]
        self._queues.clear()
        return entries

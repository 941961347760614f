"""Requests that were turned away before policy saw them: counted, and journaled as one row a second and tenant.

A refused flood must not become the noisy neighbour through its own journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from tenantry.core.errors import TenantryError
from tenantry.core.ids import ActionId, new_id
from tenantry.journal.entries import SALT_BYTES, AdminContent
from tenantry.storage.statements import load_statements

if TYPE_CHECKING:
    from tenantry.core.clock import Clock
    from tenantry.core.ids import InstanceId, TenantId
    from tenantry.storage.scope import Scopes

FLUSH_S: Final = 1.0


class ShedJournal:
    """Counts in memory; `start` writes what has come together each second. A crash loses a second's counts."""

    def __init__(self, scopes: Scopes, instance_id: InstanceId, clock: Clock) -> None:
        self._scopes = scopes
        self._instance_id = instance_id
        self._clock = clock
        self._statement = load_statements("tenantry.gate", "statements.sql")["note_shed"]
        self._counts: dict[TenantId, int] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, tenant_id: TenantId) -> None:
        """One more request of this tenant was shed."""
        self._counts[tenant_id] = self._counts.get(tenant_id, 0) + 1

    def start(self) -> None:
        """Write each second, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="gate-shed")

    async def close(self) -> None:
        """Write what is left, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.flush()

    async def flush(self) -> None:
        """One transaction a tenant with counts; a tenant whose row cannot be written is counted on."""
        counts, self._counts = self._counts, {}
        for tenant_id, count in counts.items():
            try:
                await self._write(tenant_id, count)
            except TenantryError:
                self._counts[tenant_id] = self._counts.get(tenant_id, 0) + count

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            with contextlib.suppress(TenantryError):
                await self.flush()

    async def _write(self, tenant_id: TenantId, count: int) -> None:
        scope = await self._scopes.for_job(tenant_id, "shed")
        action_id = ActionId(new_id("act", self._clock))
        detail = msgspec.json.encode({"requests": count})
        content = AdminContent(scope.actor, "gate.shed", "", detail).encode(
            scope, action_id, salt=self._clock.random_bytes(SALT_BYTES)
        )
        async with scope:
            await scope.fetch_one(
                self._statement,
                tenant_id,
                action_id,
                detail.decode(),
                self._instance_id,
                content,
                hashlib.sha256(content).digest(),
            )

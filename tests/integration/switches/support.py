"""Processes and switches for these tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from tests.support.tenants import ROOT_KEY, TestTenant

from tenantry.control.acknowledgements import Acknowledgements
from tenantry.control.switches import Switches
from tenantry.core.clock import SystemClock
from tenantry.core.ids import RunId
from tenantry.journal.admin import AdminJournal
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import PoolSizes, Shard
from tenantry.storage.scope import Scopes
from tenantry.switches.board import LiveKeys
from tenantry.switches.guard import LiveAction
from tenantry.switches.instance import Instance, LeaseTimes

CLOCK = SystemClock()


def keys_of(tenant: TestTenant, run: str | None = "run_1") -> LiveKeys:
    return LiveKeys(tenant.tenant_id, tenant.workspace_id, tenant.agent_id, RunId(run) if run else None)


@contextlib.asynccontextmanager
async def instance(
    target: DatabaseTarget, *, role: str = "gateway", times: LeaseTimes | None = None
) -> AsyncIterator[Instance]:
    """A process's instance, started, on connections of its own."""
    shard = await Shard.open(target, ROOT_KEY, PoolSizes(gate=0, app=1, platform=0, control=1), CLOCK)
    try:
        made = Instance(await shard.control_connection(), CLOCK, role=role, times=times)
        await made.start()
        try:
            yield made
        finally:
            await made.stop()
    finally:
        await shard.close()


@contextlib.asynccontextmanager
async def control(target: DatabaseTarget) -> AsyncIterator[Switches]:
    """The use cases of switches, on connections of their own."""
    shard = await Shard.open(target, ROOT_KEY, PoolSizes(gate=0, app=4, platform=1, control=2), CLOCK)
    try:
        acknowledgements = Acknowledgements(await shard.control_connection(), CLOCK)
        await acknowledgements.start()
        yield Switches(
            Scopes(shard, CLOCK),
            await shard.control_connection(),
            acknowledgements,
            AdminJournal(CLOCK, "ins_test"),
            CLOCK,
        )
    finally:
        await shard.close()


class Stream:
    """A live action that streams until it is ended; `close_slowly` holds its end back."""

    def __init__(self, at: Instance, keys: LiveKeys, *, close_slowly: asyncio.Event | None = None) -> None:
        self.action: LiveAction = at.live(keys)
        self.inside = asyncio.Event()
        self.ended_at: float | None = None
        self._close_slowly = close_slowly
        self.task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        async with self.action:
            self.inside.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.ended_at = CLOCK.monotonic()
                if self._close_slowly is not None:
                    await self._close_slowly.wait()


async def until(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    """Wait, in small steps, for something that sends no signal."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for sends no signal
            await asyncio.sleep(0.005)

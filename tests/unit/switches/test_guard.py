from __future__ import annotations

import asyncio

import pytest

from tenantry.core.errors import LeaseLapsedError
from tenantry.core.ids import AgentId, RunId, TenantId, WorkspaceId
from tenantry.switches.board import LiveKeys, Stop
from tenantry.switches.guard import LiveAction, LiveActions, StoppedError

KEYS = LiveKeys(TenantId("acme"), WorkspaceId("support"), AgentId("triage"), RunId("run_1"))
OTHER = LiveKeys(TenantId("acme"), WorkspaceId("sales"), AgentId("closer"), RunId("run_2"))
STRANGER = LiveKeys(TenantId("other"), WorkspaceId("support"), AgentId("triage"), RunId("run_1"))
STOP = Stop(1, "sw_1", 0, "killed", 0.0, None)


def passing(_keys: LiveKeys) -> None:
    return


def refusing(_keys: LiveKeys) -> None:
    raise LeaseLapsedError("the lease lapsed")


class Worker:
    """A task in a live block, held where it waits."""

    def __init__(self, registry: LiveActions, keys: LiveKeys = KEYS) -> None:
        self.action = LiveAction(registry, keys, passing)
        self.inside = asyncio.Event()
        self.hold = asyncio.Event()
        self.after = asyncio.Event()
        self.task = asyncio.create_task(self._work())

    async def _work(self) -> str:
        async with self.action:
            self.inside.set()
            await self.hold.wait()
        self.after.set()
        await asyncio.sleep(0)
        return "done"


async def test_an_end_becomes_a_stopped_error_and_leaves_no_cancellation_behind() -> None:
    registry = LiveActions()
    worker = Worker(registry)
    await worker.inside.wait()
    worker.action.end(STOP)
    worker.action.end(STOP)
    await worker.action.closed()
    with pytest.raises(StoppedError) as caught:
        await worker.task
    assert caught.value.stop == STOP
    assert worker.task.cancelling() == 0
    assert len(registry) == 0


async def test_a_cancellation_of_anybody_else_stays_one() -> None:
    registry = LiveActions()
    worker = Worker(registry)
    await worker.inside.wait()
    worker.task.cancel()
    worker.action.end(STOP)
    with pytest.raises(asyncio.CancelledError):
        await worker.task
    assert len(registry) == 0


async def test_a_body_that_ends_in_its_own_way_keeps_its_result() -> None:
    registry = LiveActions()
    action = LiveAction(registry, KEYS, passing)
    inside = asyncio.Event()

    async def work() -> str:
        async with action:
            inside.set()
            word = "done"
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                word = "cut"
        await asyncio.sleep(0)
        return word

    task = asyncio.create_task(work())
    await inside.wait()
    action.end(STOP)
    assert await task == "cut"
    assert action.was_ended


async def test_nothing_passes_the_guard_of_an_ended_action() -> None:
    registry = LiveActions()
    worker = Worker(registry)
    await worker.inside.wait()
    worker.action.check()
    worker.action.end(None)
    with pytest.raises(LeaseLapsedError):
        worker.action.check()
    with pytest.raises(StoppedError, match="lease lapsed"):
        await worker.task


async def test_an_end_after_the_block_touches_nobody() -> None:
    registry = LiveActions()
    worker = Worker(registry)
    await worker.inside.wait()
    worker.hold.set()
    await worker.after.wait()
    for action in registry.covered_by((0, "acme", "acme")):
        action.end(STOP)
    assert await worker.task == "done"


async def test_closed_waits_for_the_block_and_not_for_the_cancellation() -> None:
    registry = LiveActions()
    action = LiveAction(registry, KEYS, passing)
    inside, closing, may_close = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with action:
            inside.set()
            try:
                await asyncio.Event().wait()
            finally:
                closing.set()
                await may_close.wait()

    task = asyncio.create_task(work())
    await inside.wait()
    action.end(STOP)
    waiter = asyncio.create_task(action.closed())
    await closing.wait()
    assert not waiter.done()
    may_close.set()
    await waiter
    with pytest.raises(StoppedError):
        await task
    await action.closed()


async def test_who_may_not_enter_is_not_registered() -> None:
    registry = LiveActions()
    with pytest.raises(LeaseLapsedError):
        async with LiveAction(registry, KEYS, refusing):
            pytest.fail("entered")
    assert len(registry) == 0


async def test_scopes_cover_their_own_and_no_other() -> None:
    registry = LiveActions()
    workers = {keys: Worker(registry, keys) for keys in (KEYS, OTHER, STRANGER)}
    for worker in workers.values():
        await worker.inside.wait()
    covered = {
        (-1, "", ""): {KEYS, OTHER, STRANGER},
        (0, "acme", "acme"): {KEYS, OTHER},
        (1, "acme", "support"): {KEYS},
        (2, "acme", "closer"): {OTHER},
        (3, "acme", "run_1"): {KEYS},
        (3, "acme", "run_9"): set(),
        (0, "nobody", "nobody"): set(),
    }
    for key, expected in covered.items():
        assert {action.keys for action in registry.covered_by(key)} == expected
    for worker in workers.values():
        worker.hold.set()
        assert await worker.task == "done"
    assert len(registry) == 0

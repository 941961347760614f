"""The gate's side of the group commit: what was begun and is not settled, and nothing of it forgotten.

Whoever asks may be cancelled at any await. Its item is neither lost nor repeated: an intent that turns out to have
begun with nobody there to perform it is voided, and so is one of which the database never said whether it had begun.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Final

from tenantry.core.errors import StorageUnavailableError, TenantryError
from tenantry.gate.calls import SettleItem

if TYPE_CHECKING:
    from tenantry.core.clock import Clock
    from tenantry.gate.batch import Batcher
    from tenantry.gate.calls import BeginItem, BeginResult, SettleResult
    from tenantry.storage.scope import TenantScope

# A begin that takes longer is told as 'the database is away'; it is voided when it turns out to have begun.
BEGIN_WAIT_S: Final = 4.0

EMPTY_SHA256: Final = hashlib.sha256(b"").digest()


class Ledger:
    """Begins and settles through one batcher, and knows what is open."""

    def __init__(self, batcher: Batcher, clock: Clock) -> None:
        self._batcher = batcher
        self._clock = clock
        self._open: dict[str, tuple[float, asyncio.Event]] = {}
        self._background: set[asyncio.Task[SettleResult]] = set()

    async def begin(self, scope: TenantScope, item: BeginItem) -> BeginResult:
        """Ask for an intent; one round trip, shared with whatever else is queued.

        Raises `StorageUnavailableError` (nothing is performed; what may have begun is voided as soon as the
        database answers) and `StatementError` for an item that the database refuses.
        """
        future = self._batcher.begin(scope.call("begin", item))
        self._open[item.action_id] = (self._clock.monotonic(), asyncio.Event())
        try:
            async with asyncio.timeout(BEGIN_WAIT_S):
                result = await asyncio.shield(future)
        except TimeoutError:
            future.add_done_callback(lambda done: self._abandon(scope, item, done))
            raise StorageUnavailableError(
                "the database did not answer in time; nothing was performed"
            ) from None
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: self._abandon(scope, item, done))
            raise
        except StorageUnavailableError:
            self._void(scope, item)
            raise
        except TenantryError:
            self._closed(item.action_id)
            raise
        if result.code != "allowed" or item.run_spec is not None:
            # A run's own action stays begun as long as the run lives, whichever gateway ends it.
            self._closed(item.action_id)
        return result

    async def settle(self, scope: TenantScope, item: SettleItem) -> SettleResult:
        """Post what was used; repeated until the database has it. Goes on when the caller is cancelled."""
        return await asyncio.shield(self._settling(scope, item))

    def settle_later(self, scope: TenantScope, item: SettleItem) -> None:
        """The same, with nobody waiting."""
        _ = self._settling(scope, item)

    async def wait_settled(self, action_id: str, timeout_s: float) -> bool:
        """Wait for an action that this process began. False: it is not ours, or not settled in time."""
        known = self._open.get(action_id)
        if known is None:
            return False
        try:
            async with asyncio.timeout(timeout_s):
                await known[1].wait()
        except TimeoutError:
            return False
        return True

    def oldest_open_age_s(self) -> float:
        """Seconds since the oldest action that is begun, or may be, and not settled; 0 when there is none."""
        if not self._open:
            return 0.0
        return self._clock.monotonic() - next(iter(self._open.values()))[0]

    async def drain(self, timeout_s: float) -> None:
        """Wait, bounded, for settlements that are under way."""
        if self._background:
            await asyncio.wait(self._background, timeout=timeout_s)

    def _settling(self, scope: TenantScope, item: SettleItem) -> asyncio.Task[SettleResult]:
        task = asyncio.create_task(self._settle(scope, item))
        self._background.add(task)
        task.add_done_callback(self._finished)
        return task

    async def _settle(self, scope: TenantScope, item: SettleItem) -> SettleResult:
        try:
            return await self._batcher.settle(scope.call("settle", item))
        finally:
            self._closed(item.action_id)

    def _finished(self, task: asyncio.Task[SettleResult]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: whoever waited was told, and the reaper finds what stays open

    def _abandon(self, scope: TenantScope, item: BeginItem, done: asyncio.Future[BeginResult]) -> None:
        if done.cancelled():
            self._closed(item.action_id)
        elif done.exception() is not None or done.result().code == "allowed":
            self._void(scope, item)
        else:
            self._closed(item.action_id)

    def _void(self, scope: TenantScope, item: BeginItem) -> None:
        """Nothing was performed: give everything back."""
        self.settle_later(
            scope,
            SettleItem(
                tenant_id=item.tenant_id,
                action_id=item.action_id,
                workspace=item.workspace,
                agent=item.agent,
                scope_run=item.scope_run,
                status="void",
                tokens=0,
                microusd=0,
                journal_bytes=0,
                labels="",
                output=b"",
                output_sha256=EMPTY_SHA256,
                run_state="cancelled" if item.run_spec is not None else None,
            ),
        )

    def _closed(self, action_id: str) -> None:
        known = self._open.pop(action_id, None)
        if known is not None:
            known[1].set()

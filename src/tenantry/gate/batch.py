"""Group commit: one self-clocking batcher a process and shard (DESIGN §3, FLOORS §1).

What queued while the last batch was in flight is the next batch, so an idle gateway adds no wait. Two lanes, a
connection each:

- *main* carries many tenants at once. A foreign lock on one tenant's row costs it `lock_timeout` once: the batch goes
  again with SKIP LOCKED, and the tenant's items move to the side lane.
- *side* carries one tenant at a time: those whose rows somebody else holds, and for a minute those that sent two items
  within a minute that the database refused. Nobody else waits for them.

An item that the database refuses fails alone: after a failed batch each item is tried once by itself. A settlement is
repeated until the database has taken it or `SETTLE_PATIENCE_S` is over; a begin that nobody answered is reported as
`StorageUnavailableError`, and whoever asked for it voids it later (ledger.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final

from tenantry.core.errors import StorageUnavailableError, TenantryError
from tenantry.gate.calls import BeginItem, BeginResult, SettleItem, SettleResult, decode, encode
from tenantry.gate.queue import Entry, TenantQueues
from tenantry.storage.errors import LockTimeoutError, StatementError
from tenantry.storage.statements import load_statements

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tenantry.core.clock import Clock
    from tenantry.core.ids import InstanceId, TenantId
    from tenantry.storage.database import GateConnection
    from tenantry.storage.scope import BoundCall

BATCH_SIZE: Final = 32
TENANT_ITEMS: Final = 32
BEGIN_PATIENCE_S: Final = 5.0
SETTLE_PATIENCE_S: Final = 120.0
SUSPECT_S: Final = 60.0
RETRY_WAITS_S: Final = (0.02, 0.05, 0.1, 0.25)
LOCKED_WAIT_S: Final = 0.01


class Batcher:
    """The only caller of `tenantry.batch_v1`. Takes nothing but bound calls, and checks each against its scope."""

    def __init__(
        self,
        main: GateConnection,
        side: GateConnection,
        *,
        shard_id: str,
        instance_id: InstanceId,
        clock: Clock,
        per_tenant: int = TENANT_ITEMS,
        size: int = BATCH_SIZE,
    ) -> None:
        self._statement = load_statements("tenantry.gate", "statements.sql")["batch"]
        self._shard_id = shard_id
        self._instance_id = instance_id
        self._clock = clock
        self._main_connection = main
        self._side_connection = side
        self._main = TenantQueues(size=size, per_tenant=per_tenant)
        self._side = TenantQueues(size=per_tenant, per_tenant=per_tenant)
        # Until when (monotonic seconds) a tenant goes by the side lane; past: until its rows are free.
        self._aside: dict[TenantId, float] = {}
        self._failures: dict[TenantId, deque[float]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    def start(self) -> None:
        """Start both lanes on the running loop. The first batch prepares its statement, about 30 ms."""
        assert not self._tasks, "started twice"
        self._tasks = [
            asyncio.create_task(self._run_main(), name="gate-main"),
            asyncio.create_task(self._run_side(), name="gate-side"),
        ]

    async def close(self) -> None:
        """Stop; whatever still waits is told that the gate is closed."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for entry in (*self._main.drain(), *self._side.drain()):
            entry.fail(_closing())
        await self._main_connection.close()
        await self._side_connection.close()

    def begin(self, call: BoundCall[BeginItem]) -> asyncio.Future[BeginResult]:
        """Queue an intent. The future raises `StorageUnavailableError` when it may or may not have begun."""
        future: asyncio.Future[BeginResult] = asyncio.get_running_loop().create_future()
        self._put(call, future, BEGIN_PATIENCE_S)
        return future

    def settle(self, call: BoundCall[SettleItem]) -> asyncio.Future[SettleResult]:
        """Queue a settlement. It is repeated over losses of the database for `SETTLE_PATIENCE_S`."""
        future: asyncio.Future[SettleResult] = asyncio.get_running_loop().create_future()
        self._put(call, future, SETTLE_PATIENCE_S)
        return future

    def _put(
        self,
        call: BoundCall[BeginItem] | BoundCall[SettleItem],
        future: asyncio.Future[BeginResult] | asyncio.Future[SettleResult],
        patience_s: float,
    ) -> None:
        # INVARIANT 2: an item enters under the tenant that its scope was made for, and no other.
        if call.shard_id != self._shard_id or call.payload.tenant_id != call.tenant_id:
            msg = "an item names another tenant or shard than the scope that made the call"
            raise TenantryError(msg)
        if self._closed:
            raise _closing()
        entry = Entry(call.tenant_id, call.payload, future, self._clock.monotonic() + patience_s)
        (self._side if call.tenant_id in self._aside else self._main).put(entry)

    async def _run_main(self) -> None:
        while True:
            batch = await self._main.take()
            with _telling(batch):
                try:
                    await self._send(self._main_connection, batch, skip_locked=False)
                except LockTimeoutError:
                    await self._send_skipping(batch)
                except StatementError as error:
                    await self._send_alone(batch, error)
                except StorageUnavailableError as error:
                    await self._lost(self._main, batch, error)

    async def _run_side(self) -> None:
        while True:
            batch = await self._side.take()
            tenant_id = batch[0].tenant_id
            others = [entry for entry in batch if entry.tenant_id != tenant_id]
            self._side.put_back(others)
            mine = [entry for entry in batch if entry.tenant_id == tenant_id]
            with _telling(mine):
                try:
                    await self._send(self._side_connection, mine, skip_locked=False)
                    self._let_back(tenant_id)
                except LockTimeoutError:
                    self._wait_longer(mine)
                    await asyncio.sleep(LOCKED_WAIT_S)
                except StatementError as error:
                    await self._send_alone(mine, error, connection=self._side_connection)
                except StorageUnavailableError as error:
                    await self._lost(self._side, mine, error)

    async def _send(self, connection: GateConnection, batch: Sequence[Entry], *, skip_locked: bool) -> None:
        """One round trip; results go to their waiters, items whose rows are held to the side lane."""
        settles = [(e, e.item) for e in batch if isinstance(e.item, SettleItem)]
        begins = [(e, e.item) for e in batch if isinstance(e.item, BeginItem)]
        arguments = encode(
            self._instance_id, [i for _, i in settles], [i for _, i in begins], skip_locked=skip_locked
        )
        rows = await connection.fetch(self._statement, *arguments)
        settled, begun = decode(rows, len(settles), len(begins))
        for (entry, _), result in (*zip(settles, settled, strict=True), *zip(begins, begun, strict=True)):
            if result is None:
                entry.fail(TenantryError("the gate's function gave no answer for an item"))
            elif result.code == "skipped":
                self._set_aside(entry.tenant_id)
                self._side.put(entry)
            elif not entry.future.done():
                entry.future.set_result(result)  # type: ignore[arg-type]

    async def _send_skipping(self, batch: list[Entry]) -> None:
        try:
            await self._send(self._main_connection, batch, skip_locked=True)
        except LockTimeoutError:
            # Not a tenant's row: the fleet's. Everybody waits for it, and gives up in time.
            self._main.put_back(self._still_patient(batch))
            await asyncio.sleep(LOCKED_WAIT_S)
        except StatementError as error:
            await self._send_alone(batch, error)
        except StorageUnavailableError as error:
            await self._lost(self._main, batch, error)

    async def _send_alone(
        self, batch: list[Entry], error: StatementError, *, connection: GateConnection | None = None
    ) -> None:
        """After a failed batch each item goes by itself once, so that one item's fault touches no other."""
        if len(batch) == 1:
            batch[0].fail(error)
            self._note_failure(batch[0].tenant_id)
            return
        link = connection or self._main_connection
        for place, entry in enumerate(batch):
            try:
                await self._send(link, [entry], skip_locked=False)
            except LockTimeoutError:
                self._set_aside(entry.tenant_id)
                self._side.put(entry)
            except StatementError as own:
                entry.fail(own)
                self._note_failure(entry.tenant_id)
            except StorageUnavailableError as lost:
                await self._lost(self._main, batch[place:], lost)
                return

    async def _lost(self, queue: TenantQueues, batch: list[Entry], error: StorageUnavailableError) -> None:
        """Nobody knows whether it took effect: settlements go again, begins are reported so."""
        again: list[Entry] = []
        for entry in batch:
            if isinstance(entry.item, BeginItem):
                entry.fail(error)
            else:
                again.append(entry)
        queue.put_back(self._still_patient(again))
        await asyncio.sleep(RETRY_WAITS_S[min(len(again) // 16, len(RETRY_WAITS_S) - 1)])

    def _wait_longer(self, batch: list[Entry]) -> None:
        for entry in self._still_patient(batch):
            self._side.put(entry)

    def _still_patient(self, batch: list[Entry]) -> list[Entry]:
        now = self._clock.monotonic()
        patient = []
        for entry in batch:
            if entry.give_up_at > now:
                patient.append(entry)
            else:
                entry.fail(StorageUnavailableError("the rows that this needs are held by somebody else"))
        return patient

    def _set_aside(self, tenant_id: TenantId, *, until: float = 0.0) -> None:
        self._aside[tenant_id] = max(until, self._aside.get(tenant_id, 0.0))
        self._main.move_tenant(tenant_id, self._side)

    def _let_back(self, tenant_id: TenantId) -> None:
        if self._aside.get(tenant_id, 0.0) <= self._clock.monotonic():
            self._aside.pop(tenant_id, None)
            self._side.move_tenant(tenant_id, self._main)

    def _note_failure(self, tenant_id: TenantId) -> None:
        now = self._clock.monotonic()
        times = self._failures.setdefault(tenant_id, deque(maxlen=2))
        times.append(now)
        if len(times) > 1 and now - times[0] < SUSPECT_S:
            self._set_aside(tenant_id, until=now + SUSPECT_S)
        for known in [t for t, seen in self._failures.items() if now - seen[-1] > SUSPECT_S]:
            with contextlib.suppress(KeyError):
                del self._failures[known]


def _closing() -> StorageUnavailableError:
    return StorageUnavailableError("the gate is closing; nothing is performed")


@contextlib.contextmanager
def _telling(batch: Sequence[Entry]) -> Iterator[None]:
    """Whatever ends the work on a batch, whoever waits for it is told; and a fault of ours does not end the lane."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the lane serves all tenants, so it outlives any fault
        for entry in batch:
            entry.fail(StorageUnavailableError(f"the gate failed on a batch: {type(error).__name__}"))
    except BaseException:
        for entry in batch:
            entry.fail(_closing())
        raise

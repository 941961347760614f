"""One process's place among all that can act: its lease, and how it follows the switches (DESIGN §3, 'Kill').

States: new -> ready (lease live) <-> lapsed -> stopped.

The lease is 2 s and renewed every 500 ms on a reserved connection, in the statement that reads new switches;
a notification wakes the renewal at once. The process counts its lease from before the renewal was sent, so it
lapses here before it lapses for anybody else.

INVARIANT 4: a switch is in memory, and so refuses, in the same step in which a renewal makes the lease count
again; there is no moment at which this process may act and has not read every switch that was committed
before. A switch is acknowledged once all that it ended is seen closed, and never before those ahead of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from tenantry.core.clock import Clock
from tenantry.core.errors import LeaseLapsedError, StorageUnavailableError, TenantryError
from tenantry.core.ids import InstanceId, new_id
from tenantry.storage.connect import Row
from tenantry.storage.database import ControlConnection
from tenantry.storage.statements import Statement, load_statements
from tenantry.switches.board import LiveKeys, Stop, Switch, SwitchBoard
from tenantry.switches.guard import LiveAction, LiveActions

SWITCH_CHANNEL: Final = "tenantry_switch"
# Begun actions are reported older than they are known to be: begin's own time lies before its answer.
OPEN_MARGIN_S: Final = 5.0


class LeaseTimes(msgspec.Struct, frozen=True):
    """Seconds. ``answer_s`` is how long one renewal may take; ``retry_s`` the pause after one that failed."""

    lease_s: float = 2.0
    renew_s: float = 0.5
    answer_s: float = 1.5
    retry_s: float = 0.1
    close_s: float = 5.0


class Instance:
    """The lease, the board and the live actions of this process; one a process.

    `connection` serves nothing else. Cost: one round trip each half second.
    """

    def __init__(
        self,
        connection: ControlConnection,
        clock: Clock,
        *,
        role: str,
        address: str | None = None,
        times: LeaseTimes | None = None,
    ) -> None:
        self.instance_id = InstanceId(new_id("ins", clock))
        self._connection = connection
        self._clock = clock
        self._role = role
        self._address = address
        self._times = times or LeaseTimes()
        self._statements: Mapping[str, Statement] = load_statements("tenantry.switches", "store.sql")
        self._board = SwitchBoard()
        self._live = LiveActions()
        self._open_age_s: Callable[[], float] = lambda: 0.0
        self._valid_until = float("-inf")
        self._seen_seq = 0
        self._acked_seq = 0
        self._told_seq = 0
        # Switches read and not yet done with: the tasks that wait for what they ended.
        self._closing: dict[int, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._lapse_timer: asyncio.TimerHandle | None = None
        self._stopped = False

    @property
    def ready(self) -> bool:
        """Whether this process may begin anything: its lease counts."""
        return not self._stopped and self._clock.monotonic() < self._valid_until

    @property
    def acked_switch_seq(self) -> int:
        """Up to which number every switch is done with here."""
        return self._acked_seq

    @property
    def live_count(self) -> int:
        """Live actions now."""
        return len(self._live)

    def report_open(self, age_s: Callable[[], float]) -> None:
        """Let `age_s` say how long ago (seconds) the oldest action not yet settled was begun; 0: none is."""
        self._open_age_s = age_s

    async def start(self) -> None:
        """Load what stands, take the lease, follow. Errors: `StorageUnavailableError`; try again."""
        assert self._loop_task is None, "an instance starts once"
        await self._connection.listen(SWITCH_CHANNEL, self._heard)
        rows = await self._connection.fetch_all(self._statements["load"])
        now = self._clock.monotonic()
        for switch in map(_switch_of, rows):
            if switch is not None:
                self._board.apply(switch, now)
        self._seen_seq = self._acked_seq = self._told_seq = rows[0]["seen_seq"]
        await self._renew()
        self._loop_task = asyncio.create_task(self._follow(), name="tenantry-instance")

    async def stop(self) -> None:
        """End what is live, then leave: the row goes only when nothing here is open or unsettled.

        Otherwise it lapses, and the reaper settles what it held.
        """
        self._stopped = True
        if self._lapse_timer is not None:
            self._lapse_timer.cancel()
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait({self._loop_task})
        closed = await self._end_all()
        for task in self._closing.values():
            task.cancel()
        if closed and self._open_age_s() == 0:
            with contextlib.suppress(TenantryError):
                await self._connection.execute(self._statements["remove_instance"], self.instance_id)

    async def followed(self) -> None:
        """Wait until this process follows switches no longer: at `stop`, or by a fault, which is raised."""
        assert self._loop_task is not None, "not started"
        await asyncio.wait({self._loop_task})
        if not self._loop_task.cancelled():
            self._loop_task.result()

    def live(self, keys: LiveKeys) -> LiveAction:
        """A live action of the current task: `async with instance.live(keys) as guard:`; ~2 us."""
        return LiveAction(self._live, keys, self.check)

    def register(self, task: asyncio.Task[object], keys: LiveKeys) -> LiveAction:
        """Hold a whole task live until it is done. Errors: `LeaseLapsedError` when it must not start."""
        action = LiveAction(self._live, keys, self.check)
        action.attach(task)
        task.add_done_callback(lambda _task: action.detach())
        return action

    def check(self, keys: LiveKeys) -> None:
        """Raise `LeaseLapsedError` unless this process may act for `keys` right now. No wait."""
        now = self._clock.monotonic()
        if self._stopped or now >= self._valid_until:
            raise LeaseLapsedError("this process's lease lapsed; it performs nothing until it is renewed")
        stop = self._board.find_stop(keys, now)
        if stop is not None:
            raise LeaseLapsedError(f"the scope is {stop.mode}")

    def find_stop(self, keys: LiveKeys) -> Stop | None:
        """The switch in memory that covers `keys`, None when nothing does."""
        return self._board.find_stop(keys, self._clock.monotonic())

    async def _follow(self) -> None:
        """Renew for ever, each `renew_s` or as soon as there is something to read or to say."""
        while True:
            pause_s = self._times.renew_s
            try:
                await self._renew()
            except TenantryError:
                # Away or stuck: the lease runs out by itself, and the next try may find it back.
                pause_s = self._times.retry_s
            if self._acked_seq > self._told_seq and pause_s == self._times.renew_s:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _renew(self) -> None:
        """One round trip; see the module."""
        self._wake.clear()
        sent_at = self._clock.monotonic()
        acked = self._acked_seq
        open_s = max(self._open_age_s(), 0.0) + OPEN_MARGIN_S
        try:
            async with asyncio.timeout(self._times.answer_s):
                rows = await self._connection.fetch_all(
                    self._statements["renew"],
                    self.instance_id,
                    self._role,
                    self._address,
                    dt.timedelta(seconds=self._times.lease_s),
                    dt.timedelta(seconds=open_s),
                    acked,
                    acked > self._told_seq,
                )
        except TimeoutError:
            raise StorageUnavailableError("the renewal of the lease was not answered in time") from None
        # INVARIANT 4: from here to the new lease there is no await.
        self._told_seq = acked
        self._take_in(rows)
        self._valid_until = sent_at + self._times.lease_s
        self._watch_lapse()

    def _take_in(self, rows: list[Row]) -> None:
        now = self._clock.monotonic()
        for switch in map(_switch_of, rows):
            if switch is None or switch.switch_seq <= self._seen_seq:
                continue
            assert switch.switch_seq == self._seen_seq + 1, "switches are numbered without a gap"
            self._seen_seq = switch.switch_seq
            stop = self._board.apply(switch, now)
            ended = self._live.covered_by(switch.key) if stop is not None else []
            if ended:
                for action in ended:
                    action.end(stop)
                self._closing[switch.switch_seq] = asyncio.create_task(
                    self._see_closed(switch.switch_seq, ended), name=f"tenantry-switch-{switch.switch_seq}"
                )
        self._acknowledge()

    async def _see_closed(self, switch_seq: int, ended: list[LiveAction]) -> None:
        for action in ended:
            await action.closed()
        del self._closing[switch_seq]
        self._acknowledge()
        self._wake.set()

    def _acknowledge(self) -> None:
        """The highest number with nothing unfinished at or below it."""
        acked = min(self._closing, default=self._seen_seq + 1) - 1
        assert self._acked_seq <= acked <= self._seen_seq, "an acknowledgement is never taken back"
        self._acked_seq = acked

    def _heard(self, _payload: str) -> None:
        self._wake.set()

    def _watch_lapse(self) -> None:
        if self._lapse_timer is not None:
            self._lapse_timer.cancel()
        left_s = max(self._valid_until - self._clock.monotonic(), 0.0)
        self._lapse_timer = asyncio.get_running_loop().call_later(left_s, self._lapse)

    def _lapse(self) -> None:
        """Whoever waits for a kill now counts this process as dead: what is live ends."""
        if self._stopped:
            return
        if self._clock.monotonic() < self._valid_until:
            self._watch_lapse()
            return
        for action in list(self._live):
            action.end(None)

    async def _end_all(self) -> bool:
        live = list(self._live)
        for action in live:
            action.end(None)
        try:
            async with asyncio.timeout(self._times.close_s):
                for action in live:
                    await action.closed()
        except TimeoutError:
            return False
        return True


def _switch_of(row: Row) -> Switch | None:
    if row["switch_seq"] is None:
        return None
    return Switch(
        switch_seq=row["switch_seq"],
        switch_id=row["switch_id"],
        tenant_id=row["tenant_id"],
        level=row["level"],
        subject_id=row["subject_id"],
        verb=row["verb"],
        mode=row["mode"],
        expires_in_s=row["expires_in_s"],
    )

"""`gate.kill_p99`: how long the commit of a kill takes while the tenant has 256 begins and settles in flight.

The kill is control's own statement on its reserved connection, with the admin's journal entry. The callers
never stop asking, so a killed tenant goes on refusing at full speed until it is revived. That nothing begins
after the kill is counted twice: by what callers asked and heard while it stood, and by the tenant's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import AsyncIterator

from benchmarks.figure import Figure, percentile, repeat, significant
from benchmarks.load import Attempt
from benchmarks.world import OPERATOR, World, in_world
from tenantry.core.ids import TenantId, new_id
from tenantry.journal.admin import AdminJournal
from tenantry.storage.database import ControlConnection
from tenantry.storage.statements import load_statements

HOT = TenantId("hot")
RUNS = 64
IN_FLIGHT = 256
KILLS_MIN = 100
# A kill stands until so many callers have asked and been answered while it did.
ANSWERS = 64
BOUND_MS = 20.0
REASON = "measured"
GOAL = "<= 1"


def measure(repetitions: int, seconds: float) -> list[Figure]:
    """The p99 of all kills together, for a p99 of fewer than a hundred is a maximum; and what began after them."""
    del seconds  # a hundred kills take as long as they take

    async def scenario(world: World) -> list[Figure]:
        flood = _Flood(await world.open_runs([HOT] * RUNS))
        switch = _Switch(world, await world.shard.control_connection())
        rounds = repeat(repetitions)
        async with flood.flowing(world):
            times = [
                await _kill_and_revive(switch, flood)
                for _ in range(math.ceil(KILLS_MIN / len(rounds)) * len(rounds))
            ]
        return _figures(times, flood, await _count_by_log(world))

    return in_world(scenario, tenants=[HOT])


class _Flood:
    """Callers that begin and settle, and never give up. ``killed_at``: since when a kill stands."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = itertools.cycle(tokens)
        self._stop = False
        self._left = 0
        self._answered = asyncio.Event()
        self.killed_at = math.inf
        self.allowed = 0
        self.refused_while_killed = 0
        self.begun_while_killed = 0

    @contextlib.asynccontextmanager
    async def flowing(self, world: World) -> AsyncIterator[None]:
        """Keep them at it while the block runs."""
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(self._work(world))
            try:
                yield
            finally:
                self._stop = True

    async def wait_answers(self, count: int) -> None:
        """Wait until so many more were answered as things are now: allowed, or asked and answered under a kill."""
        self._left = count
        self._answered.clear()
        await self._answered.wait()

    async def _work(self, world: World) -> None:
        while not self._stop:
            attempt = Attempt(world, await world.path.gate.identify(next(self._tokens)))
            asked = time.perf_counter()
            allowed = await attempt.begin()
            # Asked and answered while the kill stood, or it proves nothing.
            under_kill = asked > self.killed_at
            if under_kill:
                self.begun_while_killed += allowed
                self.refused_while_killed += not allowed
            if allowed or under_kill:
                self._count_answer()
            if allowed:
                self.allowed += 1
                await attempt.settle()

    def _count_answer(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self._answered.set()


class _Switch:
    """Control's statement on its reserved connection."""

    def __init__(self, world: World, connection: ControlConnection) -> None:
        self._world = world
        self._connection = connection
        self._statement = load_statements("tenantry.control", "switches.sql")["switch_scope"]
        self._journal = AdminJournal(world.clock, world.instance.instance_id)

    async def __call__(self, verb: str) -> float:
        """Milliseconds from the word to the answer: its entry sealed, the wait for the tenant's row, the commit."""
        started = time.perf_counter()
        scope = await self._world.scopes.for_principal(OPERATOR, HOT)
        entry = self._journal.entry(
            scope, name=f"switch.{verb}", target=f"tenant/{HOT}", detail={"reason": REASON}
        )
        asked = (HOT, 0, HOT, verb, None, None, scope.actor, REASON, new_id("sw", self._world.clock), None)
        journaled = (
            entry.action_id,
            entry.name,
            entry.target,
            entry.detail,
            entry.instance_id,
            entry.content,
            entry.content_sha256,
        )
        row = await self._connection.fetch_one(self._statement, *asked, *journaled)
        assert row is not None, "a switch answers its number"
        return (time.perf_counter() - started) * 1000


async def _kill_and_revive(switch: _Switch, flood: _Flood) -> float:
    """Milliseconds of one kill at full speed; it stands until callers have met it, and then the tenant is let go."""
    await flood.wait_answers(IN_FLIGHT)
    killed_ms = await switch("kill")
    flood.killed_at = time.perf_counter()
    await flood.wait_answers(ANSWERS)
    flood.killed_at = math.inf
    await switch("revive")
    return killed_ms


async def _count_by_log(world: World) -> int:
    admin = await world.connect_admin()
    try:
        count: int = await admin.fetchval(world.statements["count_begun_while_killed"].sql, HOT)
        return count
    finally:
        await admin.close()


def _figures(times: list[float], flood: _Flood, begun_by_log: int) -> list[Figure]:
    p99 = percentile(times, 0.99)
    begun = max(flood.begun_while_killed, begun_by_log)
    return [
        Figure(
            name="gate.kill_p99",
            value=significant(p99),
            unit="ms",
            against=f"{BOUND_MS:.0f} ms; {len(times)} kills, p50 {percentile(times, 0.5):.2f} ms, "
            f"longest {max(times):.2f} ms",
            ratio=significant(p99 / BOUND_MS),
            goal=GOAL,
        ),
        Figure(
            name="gate.kill_begun_after",
            value=begun,
            unit="begins",
            against=f"{flood.refused_while_killed:,} begins asked and refused while a kill stood, "
            f"{flood.allowed:,} allowed while none did",
            ratio=begun,
            goal="<= 0",
        ),
    ]

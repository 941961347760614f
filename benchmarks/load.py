"""Closed loops: so many actions, or so many durable INSERTs, in flight for so many seconds."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from benchmarks.world import OUTPUT, GatePath, World
from tenantry.core.action import Action, Outcome, OutcomeStatus
from tenantry.core.quota import Usage
from tenantry.core.verdict import Allowed
from tenantry.gate.context import RunContext, Timings
from tenantry.gate.settle import make_settlement

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.prepared_stmt import PreparedStatement

    from tenantry.core.event import Event
    from tenantry.gate.begin import Begun

FLOOR_CONNECTIONS: Final = 16
FLOOR_BODY: Final = bytes(300)
WARM_UP_S: Final = 0.2
_DONE: Final = Outcome(OutcomeStatus.OK, OUTPUT, Usage(tool_calls=1), http_status=200)


class Load:
    """What one round did. ``begin_ms`` runs from asking the gate to its word that the action is begun."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.actions = 0
        self.begin_ms: list[float] = []

    @property
    def rate(self) -> float:
        """Actions a second, each begun and settled durably."""
        return self.actions / self.seconds


class _Door:
    """A door's sink, which notes when the action was begun and drops the answer."""

    __slots__ = ("begun_at",)

    def __init__(self) -> None:
        self.begun_at = 0.0

    def begun(self, timings: Timings, /) -> None:
        del timings
        self.begun_at = time.perf_counter()

    async def __call__(self, event: Event, /) -> None:
        del event


async def drive(
    world: World, tokens: Sequence[str], *, in_flight: int, seconds: float, paths: Sequence[GatePath] = ()
) -> Load:
    """Keep `in_flight` whole actions going over the runs in turn; the first moments do not count.

    With `paths` each worker keeps to one of them.
    """
    load, turns, now = Load(seconds), itertools.cycle(tokens), time.perf_counter
    start = now() + min(WARM_UP_S, seconds / 5)
    end = start + seconds

    async def work(path: GatePath) -> None:
        while now() < end:
            asked = now()
            begun_at = await _act(world, path, next(turns))
            if start <= now() < end:
                load.actions += 1
                load.begin_ms.append((begun_at - asked) * 1000)

    chosen = itertools.cycle(paths or (world.path,))
    await asyncio.gather(*(work(next(chosen)) for _ in range(in_flight)))
    return load


@contextlib.asynccontextmanager
async def kept_busy(world: World, tokens: Sequence[str], *, in_flight: int) -> AsyncIterator[None]:
    """Keep `in_flight` whole actions going while the block runs, at speed when it begins."""
    turns, stop = itertools.cycle(tokens), asyncio.Event()

    async def work() -> None:
        while not stop.is_set():
            await _act(world, world.path, next(turns))

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(work())
        try:
            await asyncio.sleep(WARM_UP_S)
            yield
        finally:
            stop.set()


async def _act(world: World, path: GatePath, token: str) -> float:
    """One whole action as a door sends it; when it was begun (`perf_counter` seconds)."""
    door = _Door()
    context = await path.gate.identify(token)
    result = await path.gate.act(context, world.new_action(), door)
    assert isinstance(result.verdict, Allowed), f"a benchmark's action was not allowed: {result.verdict}"
    return door.begun_at


class Attempt:
    """The first half of one action, for benchmarks that look at `begin` alone."""

    def __init__(self, world: World, context: RunContext) -> None:
        self._world = world
        self._context = context
        self._action: Action = world.new_action()
        self._begun: Begun | None = None

    async def begin(self) -> bool:
        """Authorize, seal, and one round trip; whether it was allowed."""
        context = self._context
        self._begun = await self._world.path.begin(
            context.scope, context.subject, context.view, self._action, Timings()
        )
        return isinstance(self._begun.verdict, Allowed)

    async def settle(self) -> None:
        """Post the outcome of an allowed action."""
        assert self._begun is not None, "begin comes first"
        scope = self._context.scope
        settlement = make_settlement(scope, self._begun.item, _DONE, self._world.clock, action=self._action)
        await self._world.path.ledger.settle(scope, settlement)


class Floor:
    """What the disk and the server can do at best: one-row INSERTs, prepared, each committed durably."""

    def __init__(self, connections: list[asyncpg.Connection[asyncpg.Record]]) -> None:
        self._connections = connections
        self._inserts: list[PreparedStatement[asyncpg.Record]] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, world: World, connections: int = FLOOR_CONNECTIONS) -> AsyncIterator[Floor]:
        """A floor on so many connections of its own."""
        floor = cls([await world.connect_admin() for _ in range(connections)])
        try:
            sql = world.statements["insert_floor"].sql
            floor._inserts = [await connection.prepare(sql) for connection in floor._connections]
            yield floor
        finally:
            for connection in floor._connections:
                await connection.close()

    async def insert(self) -> None:
        """One row, on the first connection."""
        await self._inserts[0].fetch(FLOOR_BODY)

    async def rate(self, seconds: float) -> float:
        """Rows a second over all connections, one in flight on each."""
        rows, now = 0, time.perf_counter
        start = now() + min(WARM_UP_S, seconds / 5)
        end = start + seconds

        async def work(insert: PreparedStatement[asyncpg.Record]) -> None:
            nonlocal rows
            while now() < end:
                await insert.fetch(FLOOR_BODY)
                if start <= now() < end:
                    rows += 1

        await asyncio.gather(*(work(insert) for insert in self._inserts))
        return rows / seconds


def spread(tenants: int) -> Iterator[str]:
    """Names of so many tenants."""
    return (f"tenant_{number}" for number in range(tenants))

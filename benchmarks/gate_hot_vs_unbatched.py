"""`gate.hot_vs_unbatched`: a hot tenant's actions a second, 64 in flight, beside the same gate in batches of one.

The unbatched gate gets what it would need: a connection for each action in flight, and patience for locks.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import AsyncIterator

from benchmarks.figure import Figure, median_of, repeat
from benchmarks.gate_spread_64 import IN_FLIGHT
from benchmarks.load import drive
from benchmarks.world import GatePath, World, in_world

HOT = "hot"
GOAL = ">= 15"


def measure(repetitions: int, seconds: float) -> list[Figure]:
    """Both rates in turn."""

    async def scenario(world: World) -> list[Figure]:
        tokens = await world.open_runs([HOT] * IN_FLIGHT)
        async with _unbatched(world, tokens) as alone:
            rounds = []
            for _ in repeat(repetitions):
                one_by_one = await drive(world, tokens, in_flight=IN_FLIGHT, seconds=seconds, paths=alone)
                batched = await drive(world, tokens, in_flight=IN_FLIGHT, seconds=seconds)
                rounds.append((one_by_one.rate, batched.rate))
        alone_rate = statistics.median(rate for rate, _ in rounds)
        return [
            Figure(
                name="gate.hot_vs_unbatched",
                value=median_of(rate for _, rate in rounds),
                unit="actions/s",
                against=f"batches of one on {IN_FLIGHT} connections: {alone_rate:,.0f} actions/s",
                ratio=median_of(batched_rate / rate for rate, batched_rate in rounds),
                goal=GOAL,
            )
        ]

    return in_world(scenario, tenants=[HOT])


@contextlib.asynccontextmanager
async def _unbatched(world: World, tokens: list[str]) -> AsyncIterator[list[GatePath]]:
    """A gate for each action in flight, each connected while its role waits longer for locks."""
    admin = await world.connect_admin()
    try:
        await admin.execute(world.statements["set_gate_patience"].sql)
        paths = [await world.add_path(size=1, per_tenant=1) for _ in range(IN_FLIGHT)]
        for path in paths:
            await drive(world, tokens[:1], in_flight=1, seconds=0.001, paths=[path])
        yield paths
    finally:
        await admin.execute(world.statements["reset_gate_patience"].sql)
        await admin.close()

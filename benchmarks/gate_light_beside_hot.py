"""`gate.light_beside_hot`: how much a light tenant's begin is delayed by another with 256 in flight.

The light tenant has one action in flight, alone and then beside the flood, in turn.
"""

from __future__ import annotations

import statistics

from benchmarks.figure import Figure, median_of, percentile, repeat, significant
from benchmarks.load import drive, kept_busy
from benchmarks.world import World, in_world

LIGHT, HOT = "light", "hot"
FLOOD = 256
BOUND_MS = 5.0
GOAL = "<= 1"


def measure(repetitions: int, seconds: float) -> list[Figure]:
    """The difference of the two p99, over 5 ms."""

    async def scenario(world: World) -> list[Figure]:
        light = await world.open_runs([LIGHT])
        hot = await world.open_runs([HOT] * 64)
        rounds = []
        for _ in repeat(repetitions):
            alone = await drive(world, light, in_flight=1, seconds=seconds)
            async with kept_busy(world, hot, in_flight=FLOOD):
                beside = await drive(world, light, in_flight=1, seconds=seconds)
            rounds.append((percentile(alone.begin_ms, 0.99), percentile(beside.begin_ms, 0.99)))
        alone_ms = statistics.median(before for before, _ in rounds)
        added_ms = statistics.median(after - before for before, after in rounds)
        return [
            Figure(
                name="gate.light_beside_hot",
                value=median_of(after for _, after in rounds),
                unit="ms",
                against=f"alone, p99: {alone_ms:.2f} ms; bound of the difference: {BOUND_MS:.0f} ms",
                ratio=significant(added_ms / BOUND_MS),
                goal=GOAL,
            )
        ]

    return in_world(scenario, tenants=[LIGHT, HOT])

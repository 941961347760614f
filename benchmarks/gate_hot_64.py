"""`gate.hot_64`: whole actions a second of one hot tenant with 64 in flight, beside the same over 200 tenants.

The hot tenant's 64 runs share the rows of tenant, workspace and agent, which every begin and settle must lock.
"""

from __future__ import annotations

import statistics

from benchmarks.figure import Figure, median_of, repeat
from benchmarks.gate_spread_64 import IN_FLIGHT, TENANTS
from benchmarks.load import drive, spread
from benchmarks.world import World, in_world

HOT = "hot"
GOAL = ">= 0.8"


def measure(repetitions: int, seconds: float) -> list[Figure]:
    """Both rates in turn."""

    async def scenario(world: World) -> list[Figure]:
        wide = await world.open_runs(spread(TENANTS))
        hot = await world.open_runs([HOT] * IN_FLIGHT)
        rounds = []
        for _ in repeat(repetitions):
            over_all = await drive(world, wide, in_flight=IN_FLIGHT, seconds=seconds)
            of_one = await drive(world, hot, in_flight=IN_FLIGHT, seconds=seconds)
            rounds.append((over_all.rate, of_one.rate))
        over_all_rate = statistics.median(rate for rate, _ in rounds)
        return [
            Figure(
                name="gate.hot_64",
                value=median_of(rate for _, rate in rounds),
                unit="actions/s",
                against=f"the same over {TENANTS} tenants: {over_all_rate:,.0f} actions/s",
                ratio=median_of(hot_rate / wide_rate for wide_rate, hot_rate in rounds),
                goal=GOAL,
            )
        ]

    return in_world(scenario, tenants=[HOT, *spread(TENANTS)])

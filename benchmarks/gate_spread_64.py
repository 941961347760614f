"""`gate.spread_64`: whole actions a second, 64 in flight over 200 tenants, beside durable INSERTs at 16 connections.

An action is identified, authorized, begun, performed by an adapter that answers at once, and settled: two
journal writes, both durable. More INSERT connections than 16 are never better.
"""

from __future__ import annotations

import statistics

from benchmarks.figure import Figure, median_of, percentile, repeat
from benchmarks.load import Floor, Load, drive, spread
from benchmarks.world import World, in_world

TENANTS = 200
IN_FLIGHT = 64
GOAL = ">= 0.5"


def measure(repetitions: int, seconds: float) -> list[Figure]:
    """Actions a second; begin's p99 beside it, for information."""

    async def scenario(world: World) -> list[Figure]:
        tokens = await world.open_runs(spread(TENANTS))
        async with Floor.open(world) as floor:
            rounds = [
                (
                    await floor.rate(seconds),
                    await drive(world, tokens, in_flight=IN_FLIGHT, seconds=seconds),
                )
                for _ in repeat(repetitions)
            ]
        return _figures(rounds)

    return in_world(scenario, tenants=spread(TENANTS))


def _figures(rounds: list[tuple[float, Load]]) -> list[Figure]:
    inserts = statistics.median(rate for rate, _ in rounds)
    return [
        Figure(
            name="gate.spread_64",
            value=median_of(load.rate for _, load in rounds),
            unit="actions/s",
            against=f"durable one-row INSERTs at 16 connections: {inserts:,.0f}/s",
            ratio=median_of(load.rate / rate for rate, load in rounds),
            goal=GOAL,
        ),
        Figure(
            name="gate.spread_64_begin_p99",
            value=median_of(percentile(load.begin_ms, 0.99) for _, load in rounds),
            unit="ms",
            against=f"p50 of an INSERT at 16 connections, from its rate: {16_000 / inserts:.2f} ms",
            ratio=median_of(percentile(load.begin_ms, 0.99) * rate / 16_000 for rate, load in rounds),
            goal=None,
        ),
    ]

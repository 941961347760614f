"""`gate.begin_alone`: begin with one in flight, beside a durable one-row INSERT, call by call.

Begin is policy, envelope, sealing and the round trip that decides, reserves and journals. Between the two the
action is settled, which nobody times. One tenant, one run: nothing is ever contended.
"""

from __future__ import annotations

import statistics
import time

from benchmarks.figure import Figure, median_of, percentile, repeat
from benchmarks.load import Attempt, Floor
from benchmarks.world import World, in_world

GOAL = "<= 1.6"


def measure(repetitions: int, seconds: float) -> list[Figure]:
    """p50 of begin; its p99 for information."""

    async def scenario(world: World) -> list[Figure]:
        (token,) = await world.open_runs(["alone"])
        async with Floor.open(world, 1) as floor:
            await _round(world, floor, token, seconds / 5)
            rounds = [await _round(world, floor, token, seconds) for _ in repeat(repetitions)]
        return _figures(rounds)

    return in_world(scenario, tenants=["alone"])


async def _round(world: World, floor: Floor, token: str, seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds of each INSERT and each begin of one repetition."""
    inserts: list[float] = []
    begins: list[float] = []
    now = time.perf_counter
    end = now() + seconds
    while now() < end:
        attempt = Attempt(world, await world.path.gate.identify(token))
        marks = [now()]
        await floor.insert()
        marks.append(now())
        allowed = await attempt.begin()
        marks.append(now())
        assert allowed, "a benchmark's action was not allowed"
        await attempt.settle()
        inserts.append((marks[1] - marks[0]) * 1000)
        begins.append((marks[2] - marks[1]) * 1000)
    return inserts, begins


def _figures(rounds: list[tuple[list[float], list[float]]]) -> list[Figure]:
    figures = []
    for name, share, goal in (("gate.begin_alone", 0.5, GOAL), ("gate.begin_alone_p99", 0.99, None)):
        pairs = [(percentile(inserts, share), percentile(begins, share)) for inserts, begins in rounds]
        floor = statistics.median(insert for insert, _ in pairs)
        figures.append(
            Figure(
                name=name,
                value=median_of(begin for _, begin in pairs),
                unit="ms",
                against=f"a durable one-row INSERT, p{share * 100:.0f}: {floor:.3f} ms",
                ratio=median_of(begin / insert for insert, begin in pairs),
                goal=goal,
            )
        )
    return figures

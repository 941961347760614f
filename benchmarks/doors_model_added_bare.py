"""`doors.model_added_bare`: what a model call through the door takes longer than the bare provider, one at a time.

The provider is the example server, the gateway a process of its own with the whole product in it. Both are asked
in turn by the same client on a kept connection each: a whole answer of 50 tokens, then a stream of them.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from benchmarks import fleet, processes
from benchmarks.exchange import Exchange
from benchmarks.figure import Figure, median_of, percentile, repeat
from benchmarks.world import World, in_world

TENANT = "door"
PATH = "/v1/chat/completions"
WARM_UP = 20
WORDS = "Summarise the ticket and say what to do next. !tokens=50"


class _Side(NamedTuple):
    """One repetition of one side, in milliseconds: whole answers, and first bytes of streams."""

    whole: list[float]
    first: list[float]


def measure(repetitions: int, seconds: float) -> list[Figure]:
    """Added p50 and p99: of a whole answer, and of the first byte of a stream."""
    with processes.provider() as url:
        place = urlsplit(url)
        assert place.hostname is not None
        assert place.port is not None
        host, port = place.hostname, place.port

        async def scenario(world: World) -> list[Figure]:
            (token,) = await world.open_runs([TENANT])
            async with processes.gateway(world) as gateway_port:
                bare = await Exchange.open(host, port)
                door = await Exchange.open("127.0.0.1", gateway_port)
                with contextlib.closing(bare), contextlib.closing(door):
                    await _round(bare, door, token, 0.0)
                    rounds = [await _round(bare, door, token, seconds) for _ in repeat(repetitions)]
            return _figures(rounds)

        return in_world(scenario, tenants=[TENANT], provider_url=url)


async def _round(bare: Exchange, door: Exchange, token: str, seconds: float) -> tuple[_Side, _Side]:
    """Both sides in turn, at least `WARM_UP` times and until the time is over."""
    sides = _Side([], []), _Side([], [])
    over_at = time.perf_counter() + seconds
    asked = (bare, fleet.PROVIDER_KEY, sides[0]), (door, token, sides[1])
    while len(sides[0].whole) < WARM_UP or time.perf_counter() < over_at:
        for exchange, bearer, side in asked:
            side.whole.append((await exchange.post(PATH, bearer, _request(stream=False))).whole_ms)
        for exchange, bearer, side in asked:
            side.first.append((await exchange.post(PATH, bearer, _request(stream=True))).first_ms)
    return sides


def _request(*, stream: bool) -> bytes:
    return msgspec.json.encode(
        {"model": fleet.MODEL, "messages": [{"role": "user", "content": WORDS}], "stream": stream}
    )


def _figures(rounds: list[tuple[_Side, _Side]]) -> list[Figure]:
    figures = []
    for suffix, what, part in (("", "answer", 0), ("_first_byte", "first byte of a stream", 1)):
        for ending, share in (("", 0.5), ("_p99", 0.99)):
            pairs = [(percentile(bare[part], share), percentile(door[part], share)) for bare, door in rounds]
            bare_ms = statistics.median(bare for bare, _ in pairs)
            figures.append(
                Figure(
                    name=f"doors.model_added_bare{suffix}{ending}",
                    value=median_of(door - bare for bare, door in pairs),
                    unit="ms",
                    against=f"the bare provider's {what}, p{share * 100:.0f}: {bare_ms:.2f} ms",
                    ratio=median_of(door / bare for bare, door in pairs),
                    goal=None,
                )
            )
    return figures

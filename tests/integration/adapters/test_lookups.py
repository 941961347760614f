"""Names: one look-up, every address checked, connections to nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from tests.support.calls import CLOCK, Sink, tool_call
from tests.support.upstreams import Upstream, answering

from tenantry.adapters.registry import Adapters
from tenantry.core.action import OutcomeStatus
from tenantry.core.errors import EgressDeniedError, UpstreamError
from tenantry.registry.specs import HttpActionSpec

GET = HttpActionSpec(risk="read", method="GET", path="/x")


class Names:
    """A name server that answers from a list, the next answer each time."""

    def __init__(self, *answers: Sequence[str] | OSError) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, _host: str, _port: int) -> Sequence[str]:
        self.asked += 1
        answer = self.answers[min(self.asked, len(self.answers)) - 1]
        if isinstance(answer, OSError):
            raise answer
        return answer


Make = Callable[[Callable[[str, int], Sequence[str]]], Adapters]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Adapters] = []

    def build(lookup: Callable[[str, int], Sequence[str]]) -> Adapters:
        made.append(Adapters(CLOCK, lookup=lookup))
        return made[-1]

    yield build
    for adapters in made:
        await adapters.close()


async def test_one_lookup_a_connection_and_the_name_in_the_host_header(make: Make) -> None:
    names = Names(["127.0.0.1"])
    adapters = make(names)
    async with Upstream(answering(200)) as upstream:
        for _ in range(3):
            outcome = await adapters.perform(
                tool_call(f"http://tickets.example:{upstream.port}", GET), Sink()
            )
            assert outcome.status is OutcomeStatus.OK
        assert names.asked == 1
        assert upstream.requests[0].headers["host"] == f"tickets.example:{upstream.port}"


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["169.254.169.254"],
        ["fe80::1%lo"],
        ["0.0.0.0"],
        ["64:ff9b::7f00:1"],
        ["not an address"],
        [f"8.8.8.{n}" for n in range(20)],
    ],
)
async def test_a_name_that_points_inside_is_denied(make: Make, addresses: list[str]) -> None:
    async with Upstream(answering(200)) as upstream:
        call = tool_call(f"http://rebind.example:{upstream.port}", GET, allow_private=False)
        with pytest.raises(EgressDeniedError):
            await make(Names(addresses)).perform(call, Sink())
        assert upstream.connections == 0


async def test_a_name_that_changes_its_mind_between_check_and_use(make: Make) -> None:
    """The answer that was checked is the answer that is used: the second one is never asked for."""
    names = Names(["127.0.0.1"], ["169.254.169.254"])
    async with Upstream(answering(200)) as upstream:
        outcome = await make(names).perform(tool_call(f"http://a.example:{upstream.port}", GET), Sink())
        assert outcome.status is OutcomeStatus.OK and names.asked == 1


async def test_a_name_without_addresses(make: Make) -> None:
    answers: tuple[OSError | list[str], ...] = (OSError(-2, "unknown"), [])
    for answer in answers:
        with pytest.raises(UpstreamError, match="does not resolve") as fault:
            await make(Names(answer)).perform(tool_call("http://a.example:80", GET), Sink())
        assert not fault.value.sent


async def test_a_lookup_that_hangs_holds_no_caller_and_few_threads(make: Make) -> None:
    release = threading.Event()
    asked: list[str] = []

    def hang(host: str, _port: int) -> list[str]:
        asked.append(host)
        release.wait(10)
        return ["127.0.0.1"]

    adapters = make(hang)
    try:
        hosts = [f"h{n % 3}.example" for n in range(9)]
        results = await asyncio.gather(
            *(
                adapters.perform(
                    tool_call(
                        "http://h0.example:1",
                        HttpActionSpec(risk="read", method="GET", url_from_input="url"),
                        f'{{"url":"http://{host}:80/"}}'.encode(),
                        seconds=0.2,
                        allowed_hosts=("*.example",),
                    ),
                    Sink(),
                )
                for host in hosts
            ),
            return_exceptions=True,
        )
        assert all(isinstance(result, UpstreamError) and not result.sent for result in results)
        assert len(asked) == len(set(asked)) == 2
    finally:
        release.set()


async def test_localhost_by_the_systems_resolver() -> None:
    adapters = Adapters(CLOCK)
    async with Upstream(answering(200)) as upstream:
        outcome = await adapters.perform(tool_call(f"http://localhost:{upstream.port}", GET), Sink())
        assert outcome.status is OutcomeStatus.OK
    await adapters.close()

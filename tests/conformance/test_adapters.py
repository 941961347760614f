"""What `gate.ports.Adapter` promises, over every adapter that the registry picks from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from tests.support.calls import BOUND, CLOCK, TOOL_BOUND, Open, Shut, Sink, model_call, tool_call
from tests.support.upstreams import Peer, Upstream, answering

from tenantry.adapters.breaker import BreakerSettings
from tenantry.adapters.registry import Adapters, AdapterSettings
from tenantry.core.action import Outcome, OutcomeStatus
from tenantry.core.errors import EgressDeniedError, LeaseLapsedError, UpstreamError
from tenantry.core.event import Chunk, Event, Head
from tenantry.gate.ports import AdapterCall, Guard, ProviderDegradedError
from tenantry.registry.specs import HttpActionSpec

ANSWER = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
READ = HttpActionSpec(risk="read", method="GET", path="/x")
WRITE = HttpActionSpec(risk="high_risk", method="POST", path="/x")
Make = Callable[[str, Guard, float, bool], AdapterCall]


def _model(url: str, guard: Guard, seconds: float, allow_private: bool) -> AdapterCall:
    return model_call(url, guard=guard, seconds=seconds, allow_private=allow_private)


def _read(url: str, guard: Guard, seconds: float, allow_private: bool) -> AdapterCall:
    return tool_call(url, READ, guard=guard, seconds=seconds, allow_private=allow_private)


def _write(url: str, guard: Guard, seconds: float, allow_private: bool) -> AdapterCall:
    return tool_call(url, WRITE, guard=guard, seconds=seconds, allow_private=allow_private)


KINDS = {"model": _model, "read": _read, "write": _write}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    return KINDS[request.param]


@pytest.fixture
async def adapters() -> AsyncIterator[Adapters]:
    made = Adapters(CLOCK, AdapterSettings(breaker=BreakerSettings(failures=2, cool_down_ms=60_000)))
    yield made
    await made.close()


async def dies(peer: Peer) -> None:
    await peer.read_request()


async def hangs(peer: Peer) -> None:
    await peer.read_request()
    await peer.until_closed()


async def test_a_report_is_an_outcome(adapters: Adapters, make: Make) -> None:
    async with Upstream(answering(200, ANSWER)) as upstream:
        guard = Open()
        outcome = await adapters.perform(make(upstream.url, guard, 5.0, True), Sink())
        assert outcome.status is OutcomeStatus.OK and outcome.http_status == 200
        assert isinstance(outcome.output, bytes)
        assert guard.checks == 1


async def test_what_is_emitted_is_nothing_or_one_head_and_then_chunks(adapters: Adapters, make: Make) -> None:
    for script in (answering(200, ANSWER), answering(400), dies):
        async with Upstream(script) as upstream:
            sink = Sink()
            await adapters.perform(make(upstream.url, Open(), 5.0, True), sink)
            assert all(
                isinstance(event, Head if place == 0 else Chunk) for place, event in enumerate(sink.events)
            )


async def test_raised_means_nothing_was_sent(adapters: Adapters, make: Make) -> None:
    async with Upstream(answering(200, ANSWER)) as upstream:
        with pytest.raises(EgressDeniedError) as denied:
            await adapters.perform(make(upstream.url, Open(), 5.0, False), Sink())
        assert not denied.value.sent
        with pytest.raises(LeaseLapsedError):
            await adapters.perform(make(upstream.url, Shut(), 5.0, True), Sink())
        with pytest.raises(UpstreamError) as late:
            await adapters.perform(make(upstream.url, Open(), 0.0, True), Sink())
        assert not late.value.sent
        assert upstream.bytes_received == 0


async def test_sent_is_never_raised(adapters: Adapters, make: Make) -> None:
    for script, seconds in ((dies, 5.0), (hangs, 0.1)):
        async with Upstream(script) as upstream:
            outcome = await adapters.perform(make(upstream.url, Open(), seconds, True), Sink())
            assert outcome.status in {OutcomeStatus.FAILED, OutcomeStatus.UNKNOWN}
            assert outcome.usage in {BOUND, TOOL_BOUND}
            assert len(upstream.requests) == 1


async def test_an_open_breaker_sends_nothing(adapters: Adapters, make: Make) -> None:
    async with Upstream(dies) as upstream:
        for _ in range(2):
            await adapters.perform(make(upstream.url, Open(), 5.0, True), Sink())
        with pytest.raises(ProviderDegradedError) as degraded:
            await adapters.perform(make(upstream.url, Open(), 5.0, True), Sink())
        assert not degraded.value.sent and degraded.value.retry_after_ms > 0
        assert len(upstream.requests) == 2


async def test_a_kill_closes_and_is_raised(adapters: Adapters, make: Make) -> None:
    async with Upstream(hangs) as upstream:
        task = asyncio.create_task(adapters.perform(make(upstream.url, Open(), 5.0, True), Sink()))
        await upstream.arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await upstream.closed.wait()
        # A kill says nothing about the upstream.
        for _ in range(3):
            again = asyncio.create_task(adapters.perform(make(upstream.url, Open(), 5.0, True), Sink()))
            upstream.arrived.clear()
            await upstream.arrived.wait()
            again.cancel()
            with pytest.raises(asyncio.CancelledError):
                await again


async def test_a_client_that_is_gone_changes_nothing(adapters: Adapters, make: Make) -> None:
    async def gone(_event: Event, /) -> None:
        return None

    async with Upstream(answering(200, ANSWER)) as upstream:
        with_client: Outcome = await adapters.perform(make(upstream.url, Open(), 5.0, True), Sink())
        without = await adapters.perform(make(upstream.url, Open(), 5.0, True), gone)
        assert with_client == without

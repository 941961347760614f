"""Up to the first byte: the guard, what counts as sent, connections that died, cancellation."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import pytest
from tests.support.calls import CLOCK, Open, Shut, Sink, model_call, tool_call
from tests.support.upstreams import Peer, Upstream, answering

from tenantry.adapters.connector import Attempt, GuardedTransport
from tenantry.adapters.registry import Adapters, AdapterSettings
from tenantry.core.action import OutcomeStatus
from tenantry.core.errors import LeaseLapsedError, UpstreamError
from tenantry.gate.ports import AdapterCall, Guard
from tenantry.registry.specs import HttpActionSpec

GET = HttpActionSpec(risk="read", method="GET", path="/x")
POST = HttpActionSpec(risk="write", method="POST", path="/x")
PUT = HttpActionSpec(risk="write", method="PUT", path="/x")
ANSWER = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
BIG = b'{"x":"' + b"a" * 4_000_000 + b'"}'


def calls(url: str, guard: Guard) -> list[AdapterCall]:
    return [
        tool_call(url, GET, guard=guard),
        tool_call(url, POST, b'{"a":1}', guard=guard),
        tool_call(url, POST, BIG, guard=guard),
        model_call(url, guard=guard),
        model_call(url, BIG, guard=guard),
    ]


class Ticks:
    """Counts turns of the loop."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self.count += 1
        self._handle = self._loop.call_soon(self._tick)

    def stop(self) -> None:
        self._handle.cancel()


@pytest.mark.invariant(4)
async def test_no_turn_of_the_loop_between_the_check_and_the_first_byte(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = Ticks()
    trace: list[tuple[str, int]] = []

    class Marking(Open):
        def check(self) -> None:
            super().check()
            trace.append(("check", ticks.count))

    class Recorded(asyncio.Transport):
        """The real transport, with a note of when it was written to."""

        def __init__(self, real: asyncio.Transport) -> None:
            super().__init__()
            self._real = real

        def write(self, data: bytes | bytearray | memoryview) -> None:
            trace.append(("write", ticks.count))
            self._real.write(data)

        def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
            trace.append(("write", ticks.count))
            self._real.writelines(list_of_data)

        def __getattribute__(self, name: str) -> object:
            if name in {"write", "writelines", "_real", "__class__"}:
                return object.__getattribute__(self, name)
            return getattr(object.__getattribute__(self, "_real"), name)

    original = GuardedTransport.__init__

    def watched(
        self: GuardedTransport, transport: asyncio.Transport, protocol: object, attempt: Attempt
    ) -> None:
        original(self, Recorded(transport), protocol, attempt)  # type: ignore[arg-type]

    monkeypatch.setattr(GuardedTransport, "__init__", watched)
    async with Upstream(answering(200, ANSWER)) as upstream:
        guard = Marking()
        # Twice, so that new connections and kept ones are both seen.
        for call in calls(upstream.url, guard) * 2:
            trace.clear()
            assert (await adapters.perform(call, Sink())).status is OutcomeStatus.OK
            assert [name for name, _ in trace[:2]] == ["check", "write"], "the first byte follows a check"
            assert trace[0][1] == trace[1][1], "the loop ran between the check and the first byte"
            assert [name for name, _ in trace].count("check") == 1
        assert guard.checks == 10
    ticks.stop()


@pytest.mark.invariant(4)
async def test_a_shut_guard_lets_not_one_byte_out(adapters: Adapters) -> None:
    async with Upstream(answering(200, ANSWER)) as upstream:
        for call in calls(upstream.url, Shut()):
            sink = Sink()
            with pytest.raises(LeaseLapsedError):
                await adapters.perform(call, sink)
            assert not sink.events
        # A kept connection is guarded as a new one is.
        await adapters.perform(tool_call(upstream.url, GET), Sink())
        received, requests = upstream.bytes_received, len(upstream.requests)
        with pytest.raises(LeaseLapsedError):
            await adapters.perform(tool_call(upstream.url, POST, guard=Shut()), Sink())
        # The connection of the refused one is not used again.
        await adapters.perform(tool_call(upstream.url, GET), Sink())
        assert len(upstream.requests) == requests + 1 == 2
        assert upstream.bytes_received == 2 * received


@pytest.mark.invariant(4)
async def test_a_switch_pulled_while_connections_are_awaited(adapters: Adapters) -> None:
    """Calls that wait for a connection when the kill comes do not begin after it."""
    release = asyncio.Event()
    killed = False

    async def script(peer: Peer) -> None:
        while await peer.read_request() is not None:
            await release.wait()
            await peer.reply(200)

    class Switch:
        def check(self) -> None:
            if killed:
                raise LeaseLapsedError("suspended")

    async with Upstream(script) as upstream:
        running = [
            asyncio.create_task(
                adapters.perform(tool_call(upstream.url, POST, guard=Switch(), connections_max=4), Sink())
            )
            for _ in range(8)
        ]
        while len(upstream.requests) < 4:
            upstream.arrived.clear()
            await upstream.arrived.wait()
        killed = True
        release.set()
        results = await asyncio.gather(*running, return_exceptions=True)
        assert len(upstream.requests) == 4
        assert sum(isinstance(result, LeaseLapsedError) for result in results) == 4


def closing_after_first(how: Callable[[Peer], Awaitable[None]]) -> Callable[[Peer], Awaitable[None]]:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.reply(200, ANSWER)
        await how(peer)

    return script


@pytest.mark.parametrize("spec", [GET, POST, PUT])
async def test_a_connection_that_died_while_kept_is_not_written_to(
    adapters: Adapters, spec: HttpActionSpec
) -> None:
    closed = asyncio.Event()

    async def close(peer: Peer) -> None:
        peer.writer.close()
        closed.set()

    async with Upstream(closing_after_first(close)) as upstream:
        for _ in range(3):
            closed.clear()
            outcome = await adapters.perform(tool_call(upstream.url, spec), Sink())
            assert outcome.status is OutcomeStatus.OK
            # The end has reached our kernel; our loop need not have read it.
            await closed.wait()
        assert upstream.connections == len(upstream.requests) == 3


@pytest.mark.parametrize("spec", [GET, POST, PUT])
async def test_nothing_is_sent_again_when_a_kept_connection_dies_under_it(
    adapters: Adapters, spec: HttpActionSpec
) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.reply(200)
        # The second request is read and left without an answer.
        await peer.read_request()

    async with Upstream(script) as upstream:
        first = await adapters.perform(tool_call(upstream.url, spec), Sink())
        assert first.status is OutcomeStatus.OK
        second = await adapters.perform(tool_call(upstream.url, spec), Sink())
        expected = OutcomeStatus.FAILED if spec is GET else OutcomeStatus.UNKNOWN
        assert second.status is expected
        assert len(upstream.requests) == 2


async def test_a_declared_read_is_sent_once_more(adapters: Adapters) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        if peer.upstream.connections > 1:
            await peer.reply(200, b'{"ok":true}')

    spec = HttpActionSpec(risk="read", method="GET", path="/x", retries_read=True)
    async with Upstream(script) as upstream:
        outcome = await adapters.perform(tool_call(upstream.url, spec), Sink())
        assert outcome.status is OutcomeStatus.OK and "second" in (outcome.detail or "")
        assert len(upstream.requests) == 2
    mutation = HttpActionSpec(risk="write", method="POST", path="/x", retries_read=True)
    async with Upstream(script) as upstream:
        outcome = await adapters.perform(tool_call(upstream.url, mutation), Sink())
        assert outcome.status is OutcomeStatus.UNKNOWN
        assert len(upstream.requests) == 1


async def test_nobody_listens(adapters: Adapters) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        for call in calls(url, guard := Open()):
            with pytest.raises(UpstreamError, match="no connection could be made") as fault:
                await adapters.perform(call, Sink())
            assert not fault.value.sent
            assert fault.value.__cause__ is None and fault.value.__context__ is None
        assert guard.checks == 0


async def test_a_listener_that_never_accepts(adapters: Adapters) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
            fillers.append(filler)
        for call in (
            model_call(url, connect_timeout_ms=100),
            tool_call(url, POST, seconds=0.1),
        ):
            with pytest.raises(UpstreamError) as fault:
                await adapters.perform(call, Sink())
            assert not fault.value.sent
        for filler in fillers:
            filler.close()


async def test_tls_against_a_plain_server_is_not_sent(adapters: Adapters) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(10)
        await peer.send(b"HTTP/1.1 400 no\r\n\r\n")

    async with Upstream(script) as upstream:
        url = upstream.url.replace("http:", "https:")
        with pytest.raises(UpstreamError) as fault:
            await adapters.perform(tool_call(url, POST), Sink())
        assert not fault.value.sent


@pytest.mark.parametrize("stage", ["head", "body"])
@pytest.mark.parametrize("kind", ["model", "tool"])
async def test_cancellation_closes_the_upstream_at_once(adapters: Adapters, kind: str, stage: str) -> None:
    began = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        if stage == "body":
            await peer.begin("text/event-stream")
            await peer.chunk(b"data: {}\n\n")
        began.set()
        await peer.until_closed()

    async with Upstream(script) as upstream:
        call = model_call(upstream.url) if kind == "model" else tool_call(upstream.url, POST)
        task = asyncio.create_task(adapters.perform(call, Sink()))
        await began.wait()
        killed_at = asyncio.get_running_loop().time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await upstream.closed.wait()
        assert upstream.closed_at - killed_at < 0.05


async def test_cancellation_drops_what_is_still_to_be_sent(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upstream that does not read keeps no killed request alive in our buffers."""
    attempts: list[Attempt] = []
    original = Attempt.begin

    def begin(self: Attempt) -> None:
        attempts.append(self)
        original(self)

    monkeypatch.setattr(Attempt, "begin", begin)
    waiting = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        waiting.set()
        await asyncio.Event().wait()

    async with Upstream(script) as upstream:
        body = b'{"x":"' + b"a" * 30_000_000 + b'"}'
        task = asyncio.create_task(adapters.perform(model_call(upstream.url, body), Sink()))
        await waiting.wait()
        transport = attempts[0].transport
        assert transport is not None
        # The first piece arrived; the rest fills the kernel's buffers within a few turns of the loop.
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert transport.get_write_buffer_size() > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transport.is_closing()
        if not type(transport).__module__.startswith("uvloop"):
            # uvloop drops what waits too, and goes on counting it.
            assert transport.get_write_buffer_size() == 0


async def test_pools_are_apart_and_bounded() -> None:
    adapters = Adapters(CLOCK, AdapterSettings(pools_max=3))
    async with Upstream(answering(200, ANSWER)) as upstream:
        for number in range(8):
            outcome = await adapters.perform(model_call(upstream.url, pool_key=f"t{number}/acme"), Sink())
            assert outcome.status is OutcomeStatus.OK
        # No connection is shared between pools, and no more pools are kept than allowed.
        assert upstream.connections == 8
        assert len(adapters._pools) == 3
    await adapters.close()
    assert len(adapters._pools) == 0


async def test_an_upstreams_cookies_are_not_kept(adapters: Adapters) -> None:
    async with Upstream(answering(200, Set_Cookie="session=1; Path=/")) as upstream:
        for _ in range(2):
            await adapters.perform(tool_call(upstream.url, GET), Sink())
        assert all("cookie" not in request.headers for request in upstream.requests)
        assert upstream.connections == 1


async def test_the_environments_proxy_is_not_used(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    async with Upstream(answering(200)) as upstream:
        assert (await adapters.perform(tool_call(upstream.url, GET), Sink())).status is OutcomeStatus.OK


async def test_an_unknown_kind_and_an_undeclared_action(adapters: Adapters) -> None:
    call = tool_call("http://127.0.0.1:1", GET)
    for action in (
        msgspec.structs.replace(call.action, kind="file"),
        msgspec.structs.replace(call.action, name="nothing"),
        msgspec.structs.replace(call.action, kind="model", model="nothing"),
        msgspec.structs.replace(call.action, kind="model", model=None),
    ):
        with pytest.raises(UpstreamError) as fault:
            await adapters.perform(dataclasses.replace(call, action=action), Sink())
        assert not fault.value.sent

"""Model calls: streams and answers passed on, the bill found, and every way in which a provider breaks."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc

import msgspec
import pytest
from tests.support.calls import BOUND, CLOCK, MODEL, SECRET, Sink, model_call
from tests.support.upstreams import Peer, Script, Upstream, answering

from tenantry.adapters import model as module
from tenantry.adapters.breaker import BreakerSettings
from tenantry.adapters.pricing import price
from tenantry.adapters.registry import Adapters, AdapterSettings
from tenantry.core.action import Outcome, OutcomeStatus
from tenantry.core.errors import UpstreamError
from tenantry.core.event import Chunk, Event
from tenantry.core.quota import Usage
from tenantry.gate.ports import ProviderDegradedError

DELTA = b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":null}],"usage":null}\n\n'
BILL = b'data: {"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120}}\n\n'
DONE = b"data: [DONE]\n\n"
USED = Usage(
    model_inflight=1, model_tokens=120, cost_microusd=price(MODEL, prompt=100, cached=0, completion=20)
)
WHOLE = (
    b'{"id":"c","choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":100,'
    b'"prompt_tokens_details":{"cached_tokens":40},"completion_tokens":20}}'
)


def streaming(*pieces: bytes, ends: bool = True) -> Script:
    async def script(peer: Peer) -> None:
        while await peer.read_request() is not None:
            await peer.begin("text/event-stream; charset=utf-8")
            for piece in pieces:
                await peer.chunk(piece)
            if not ends:
                return
            await peer.end()

    return script


async def test_a_stream(adapters: Adapters) -> None:
    async with Upstream(streaming(DELTA, DELTA + BILL, DONE)) as upstream:
        sink = Sink()
        outcome = await adapters.perform(model_call(upstream.url, b'{"model":"m","stream":true}'), sink)
        assert sink.head.stream and sink.head.status == 200
        assert sink.head.content_type == "text/event-stream"
        assert sink.body == DELTA + DELTA + BILL + DONE == outcome.output
        assert BILL in sink.chunks
        assert outcome.status is OutcomeStatus.OK and outcome.usage == USED
        assert outcome.content_type == "text/event-stream" and outcome.http_status == 200
        request = upstream.requests[0]
        assert (request.method, request.target) == ("POST", "/v1/chat/completions")
        assert request.body == b'{"model":"m","stream":true}'
        assert request.headers["authorization"] == f"Bearer {SECRET}"
        assert request.headers["content-type"] == "application/json"
        # The connection is kept for the next call.
        await adapters.perform(model_call(upstream.url), Sink())
        assert upstream.connections == 1


async def test_tokens_are_passed_on_as_they_come(adapters: Adapters) -> None:
    seen = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.begin()
        for _ in range(3):
            seen.clear()
            await peer.chunk(DELTA)
            # The next token is not generated before the client saw this one.
            await seen.wait()
        await peer.chunk(BILL + DONE)
        await peer.end()

    async with Upstream(script) as upstream:
        sink = Sink(lambda event: seen.set() if isinstance(event, Chunk) else None)
        outcome = await adapters.perform(model_call(upstream.url), sink)
        assert outcome.usage == USED


async def test_a_whole_answer(adapters: Adapters) -> None:
    async with Upstream(answering(200, WHOLE)) as upstream:
        sink = Sink()
        outcome = await adapters.perform(model_call(upstream.url), sink)
        assert not sink.head.stream and sink.body == WHOLE == outcome.output
        assert outcome.status is OutcomeStatus.OK
        assert outcome.usage.model_tokens == 120
        assert outcome.usage.cost_microusd == price(MODEL, prompt=100, cached=40, completion=20)


async def test_without_a_credential(adapters: Adapters) -> None:
    async with Upstream(answering(200, WHOLE)) as upstream:
        await adapters.perform(model_call(upstream.url, secret=None), Sink())
        assert "authorization" not in upstream.requests[0].headers


async def test_a_bill_above_the_bound_is_told_as_it_is(adapters: Adapters) -> None:
    bill = b'data: {"choices":[],"usage":{"prompt_tokens":90000,"completion_tokens":9}}\n\n'
    async with Upstream(streaming(DELTA, bill, DONE)) as upstream:
        outcome = await adapters.perform(model_call(upstream.url), Sink())
        assert outcome.usage.model_tokens == 90_009 > BOUND.model_tokens


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (streaming(DELTA, DONE), OutcomeStatus.OK),
        (answering(200, b'{"choices":[]}'), OutcomeStatus.OK),
        (
            answering(200, b'{"choices":[],"usage":{"prompt_tokens":-5,"completion_tokens":1}}'),
            OutcomeStatus.OK,
        ),
        (answering(200, b'{"choices":[],"usage":"lots"}'), OutcomeStatus.OK),
        (streaming(DELTA), OutcomeStatus.CUT),
        (streaming(), OutcomeStatus.CUT),
        (streaming(DELTA, b'data: {"error":{"message":"x"}}\n\n'), OutcomeStatus.CUT),
        (streaming(DELTA, ends=False), OutcomeStatus.CUT),
        (answering(200, WHOLE[:50]), OutcomeStatus.UNKNOWN),
        (answering(200, WHOLE[:50] + b"\x00}}"), OutcomeStatus.UNKNOWN),
        (answering(200, b""), OutcomeStatus.UNKNOWN),
        (answering(204, b""), OutcomeStatus.UNKNOWN),
        (answering(200, b"null"), OutcomeStatus.UNKNOWN),
        (answering(200, b"[]"), OutcomeStatus.UNKNOWN),
        (answering(200, b"<html>", "text/html"), OutcomeStatus.UNKNOWN),
        (answering(200, b"[" * 100_000), OutcomeStatus.UNKNOWN),
        (answering(200, WHOLE, Content_Encoding="br"), OutcomeStatus.UNKNOWN),
        (answering(200, WHOLE, Content_Encoding="gzip"), OutcomeStatus.UNKNOWN),
    ],
)
async def test_where_no_bill_came_the_bound_stands(
    adapters: Adapters, script: Script, status: OutcomeStatus
) -> None:
    async with Upstream(script) as upstream:
        sink = Sink()
        outcome = await adapters.perform(model_call(upstream.url), sink)
        assert outcome.status is status
        assert outcome.usage == BOUND
        assert outcome.detail
        # What is not known is not half answered.
        assert bool(sink.events) == (status is not OutcomeStatus.UNKNOWN)


RAW: dict[str, bytes] = {
    "closed": b"",
    "not http": b"SSH-2.0-x\r\n",
    "half a status line": b"HTTP/1.1 2",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n"
    + WHOLE,
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a broken chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
    "a huge header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 100_000 + b"\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
}


@pytest.mark.parametrize("name", RAW)
async def test_what_is_not_an_answer(adapters: Adapters, name: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(RAW[name])

    async with Upstream(script) as upstream:
        sink = Sink()
        outcome = await adapters.perform(model_call(upstream.url), sink)
        assert outcome.status is OutcomeStatus.UNKNOWN and outcome.usage == BOUND
        assert SECRET not in (outcome.detail or "")
        assert not sink.events
        assert len(upstream.requests) == 1


async def test_a_reset_in_the_middle_of_a_stream(adapters: Adapters) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.begin()
        await peer.chunk(DELTA)
        await passed.wait()
        peer.reset()

    passed = asyncio.Event()
    async with Upstream(script) as upstream:
        sink = Sink(lambda event: passed.set() if isinstance(event, Chunk) else None)
        outcome = await adapters.perform(model_call(upstream.url), sink)
        assert outcome.status is OutcomeStatus.CUT and outcome.usage == BOUND
        assert outcome.output == DELTA == sink.body


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (400, b'{"error":{"message":"bad"}}', {}),
        (401, b'{"error":{"message":"Incorrect API key: ' + SECRET.encode() + b'"}}', {}),
        (404, b"", {}),
        (413, b"<html>", {}),
        (429, b'{"error":{"message":"slow down"}}', {"Retry_After": "7", "Retry_After_Ms": "6500"}),
        (500, b'{"error":{}}', {"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        (503, b'{"error":{}}', {"Retry_After": "2"}),
        (302, b"", {"Location": "http://127.0.0.1:1/"}),
    ],
)
async def test_a_refusal_costs_nothing_and_is_passed_on(
    adapters: Adapters, status: int, body: bytes, headers: dict[str, str]
) -> None:
    async with Upstream(answering(status, body, **headers, X_Ratelimit_Remaining="3")) as upstream:
        sink = Sink()
        outcome = await adapters.perform(model_call(upstream.url), sink)
        assert outcome.status is OutcomeStatus.FAILED
        assert outcome.http_status == status
        assert (outcome.usage.model_tokens, outcome.usage.cost_microusd) == (0, 0)
        assert sink.head.status == (status if status >= 400 else 502)
        assert isinstance(msgspec.json.decode(sink.body)["error"], dict)
        assert SECRET.encode() not in sink.body and outcome.output == sink.body
        numbers = {n.lower().replace("_", "-"): v for n, v in headers.items() if v.isdigit()}
        assert dict(sink.head.headers) == numbers
        assert len(upstream.requests) == 1


async def test_silence_before_the_first_byte_and_between_tokens(adapters: Adapters) -> None:
    async def silent(peer: Peer) -> None:
        await peer.read_request()
        await peer.until_closed()

    async def stalls(peer: Peer) -> None:
        await peer.read_request()
        await peer.begin()
        await peer.chunk(DELTA)
        await peer.until_closed()

    for script, status in ((silent, OutcomeStatus.UNKNOWN), (stalls, OutcomeStatus.CUT)):
        for silence_ms, seconds in ((80, 5.0), (5_000, 0.08)):
            async with Upstream(script) as upstream:
                call = model_call(
                    upstream.url,
                    seconds=seconds,
                    first_byte_timeout_ms=silence_ms,
                    idle_timeout_ms=silence_ms,
                )
                outcome = await adapters.perform(call, Sink())
                assert outcome.status is status and outcome.usage == BOUND
                assert ("silent" in (outcome.detail or "")) == (silence_ms == 80)
                await upstream.closed.wait()


async def test_a_stream_slower_than_the_first_byte_but_never_silent(adapters: Adapters) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.begin()
        for _ in range(8):
            await peer.chunk(DELTA)
            await asyncio.sleep(0.03)
        await peer.chunk(BILL + DONE)
        await peer.end()

    async with Upstream(script) as upstream:
        call = model_call(upstream.url, first_byte_timeout_ms=100, idle_timeout_ms=100)
        outcome = await adapters.perform(call, Sink())
        assert outcome.status is OutcomeStatus.OK and outcome.usage == USED


async def test_a_slow_client_is_not_the_providers_silence(adapters: Adapters) -> None:
    async def slow(event: Event) -> None:
        if isinstance(event, Chunk) and event.data == DELTA:
            await asyncio.sleep(0.25)

    async with Upstream(streaming(DELTA, BILL, DONE)) as upstream:
        outcome = await adapters.perform(model_call(upstream.url, idle_timeout_ms=50), Sink(slow))
        assert outcome.status is OutcomeStatus.OK


async def test_when_the_client_is_gone_the_stream_is_read_to_its_bill(adapters: Adapters) -> None:
    async with Upstream(streaming(*[DELTA] * 200, BILL, DONE)) as upstream:

        async def gone(_event: Event, /) -> None:
            return None

        outcome = await adapters.perform(model_call(upstream.url), gone)
        assert outcome.usage == USED


async def test_a_long_stream_is_passed_on_and_not_recorded(adapters: Adapters) -> None:
    piece = DELTA * 1_000
    async with Upstream(streaming(*[piece] * 20, BILL, DONE)) as upstream:
        sink = Sink()
        outcome = await adapters.perform(model_call(upstream.url), sink)
        assert len(sink.body) > module.STREAM_RECORD_BYTES_MAX
        assert outcome.output is None and outcome.usage == USED and outcome.status is OutcomeStatus.OK


async def test_a_gzipped_stream_and_answer_are_read(adapters: Adapters) -> None:
    text = DELTA + BILL + DONE

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.begin(Content_Encoding="gzip")
        for byte in gzip.compress(text):
            await peer.chunk(bytes([byte]))
        await peer.end()
        await peer.read_request()
        await peer.reply(200, gzip.compress(WHOLE[:30]) + gzip.compress(WHOLE[30:]), Content_Encoding="gzip")

    async with Upstream(script) as upstream:
        sink = Sink()
        outcome = await adapters.perform(model_call(upstream.url), sink)
        assert sink.body == text and outcome.usage == USED
        sink = Sink()
        await adapters.perform(model_call(upstream.url), sink)
        assert sink.body == WHOLE


@pytest.mark.parametrize("kind", ["stream", "one event", "whole", "gzip whole", "gzip stream", "refusal"])
async def test_memory_stays_bounded(adapters: Adapters, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that would send a gigabyte is cut at the cap, and never held."""
    monkeypatch.setattr(module, "STREAM_BYTES_MAX", 24 * 1024 * 1024)
    bomb = gzip.compress(DELTA * 8_000) * 500 if "gzip" in kind else b""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        content_type = "text/event-stream" if "stream" in kind or kind == "one event" else "application/json"
        encoding = "gzip" if "gzip" in kind else "identity"
        await peer.begin(content_type, 500 if kind == "refusal" else 200, Content_Encoding=encoding)
        if bomb:
            await peer.chunk(bomb)
        piece = DELTA * 800 if kind == "stream" else b"x" * 65_000
        for _ in range(16_000):
            await peer.chunk(piece)

    async with Upstream(script) as upstream:
        received = 0

        async def count(event: Event, /) -> None:
            nonlocal received
            received += len(event.data) if isinstance(event, Chunk) else 0

        tracemalloc.start()
        outcome = await adapters.perform(model_call(upstream.url, seconds=20), count)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        expected = {
            "stream": OutcomeStatus.CUT,
            "one event": OutcomeStatus.CUT,
            "gzip stream": OutcomeStatus.CUT,
            "refusal": OutcomeStatus.FAILED,
        }
        assert outcome.status is expected.get(kind, OutcomeStatus.UNKNOWN)
        assert received <= 24 * 1024 * 1024
        assert peak < 40 * 1024 * 1024


@pytest.mark.invariant(8)
async def test_an_echo_of_the_credential_is_redacted(adapters: Adapters) -> None:
    echo = b'data: {"choices":[{"delta":{"content":"' + SECRET.encode() + b'"}}]}\n\n'
    async with Upstream(streaming(echo[:50], echo[50:], BILL, DONE)) as upstream:
        sink = Sink()
        outcome = await adapters.perform(model_call(upstream.url), sink)
        assert SECRET.encode() not in sink.body and SECRET.encode() not in (outcome.output or b"")
        assert outcome.usage == USED
    async with Upstream(answering(200, b'{"x":"' + SECRET.encode() + b'"}')) as upstream:
        sink = Sink()
        outcome = await adapters.perform(model_call(upstream.url), sink)
        assert SECRET.encode() not in sink.body and SECRET.encode() not in (outcome.output or b"")


async def test_a_failing_provider_opens_its_breaker_for_that_tenant_alone() -> None:
    adapters = Adapters(CLOCK, AdapterSettings(breaker=BreakerSettings(failures=3, cool_down_ms=60_000)))
    async with Upstream(answering(503)) as upstream:
        for _ in range(3):
            await adapters.perform(model_call(upstream.url), Sink())
        with pytest.raises(ProviderDegradedError) as degraded:
            await adapters.perform(model_call(upstream.url), Sink())
        assert degraded.value.provider == "acme" and degraded.value.retry_after_ms > 1_000
        assert len(upstream.requests) == 3
        await adapters.perform(model_call(upstream.url, pool_key="dunes/acme"), Sink())
        assert len(upstream.requests) == 4
    await adapters.close()


async def test_refusals_of_bad_requests_do_not_open_it() -> None:
    adapters = Adapters(CLOCK, AdapterSettings(breaker=BreakerSettings(failures=2)))
    async with Upstream(answering(400)) as upstream:
        for _ in range(5):
            await adapters.perform(model_call(upstream.url), Sink())
        assert len(upstream.requests) == 5
    await adapters.close()


async def test_many_at_once_share_connections_within_the_limit(adapters: Adapters) -> None:
    async with Upstream(streaming(*[DELTA] * 5, BILL, DONE)) as upstream:
        outcomes: list[Outcome] = await asyncio.gather(
            *(adapters.perform(model_call(upstream.url, connections_max=16), Sink()) for _ in range(32))
        )
        assert all(outcome.usage == USED for outcome in outcomes)
        assert upstream.connections <= 16 and len(upstream.requests) == 32


async def test_a_credential_that_no_header_can_carry(adapters: Adapters) -> None:
    async with Upstream(answering(200, WHOLE)) as upstream:
        with pytest.raises(UpstreamError) as fault:
            await adapters.perform(model_call(upstream.url, secret="a\r\nX-Evil: 1"), Sink())
        assert not fault.value.sent and "Evil" not in str(fault.value)
        assert upstream.connections == 0

"""The chat completions door as the real SDK and raw clients see it, over a gate that says what it is told to."""

from __future__ import annotations

import asyncio
import datetime as dt
import struct
from typing import Any

import msgspec
import openai
import pytest
from tests.support.fake_gate import TIMINGS, Performer, settled
from tests.support.gateway import TOKEN, LiveGateway, RawAnswer, read_answer, running_gateway

from tenantry.core.action import Action, Outcome, OutcomeStatus
from tenantry.core.errors import KeyReuseError, LeaseLapsedError, StorageUnavailableError
from tenantry.core.event import Chunk, Head
from tenantry.core.ids import PolicyId, SwitchId
from tenantry.core.quota import Meter, MeterName, Usage
from tenantry.core.verdict import (
    Allowed,
    BudgetExceeded,
    Denied,
    ProviderDegraded,
    Suspended,
    Throttled,
    UnknownOutcome,
    Verdict,
)
from tenantry.gate.context import ActionResult, RunContext
from tenantry.gate.ports import Emit
from tenantry.gateway.limits import DoorLimits

MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
METER = Meter("tenant", "acme", MeterName.MODEL_TOKENS_DAY)
COMPLETION = msgspec.json.encode(
    {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "small",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
)


def event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def delta(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return event({"id": "c1", "object": "chat.completion.chunk", "choices": [choice], "usage": None})


BILL = event({"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 4}})
DONE = b"data: [DONE]\n\n"
OK = Outcome(OutcomeStatus.OK, None, Usage(), content_type="text/event-stream", http_status=200)


def refusing(*verdicts: Verdict) -> Performer:
    left = list(verdicts)

    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        if not left:
            return await whole(context, action, emit)
        return ActionResult(left.pop(0), None, action.action_id, TIMINGS)

    return perform


async def whole(context: RunContext, action: Action, emit: Emit) -> ActionResult:
    del context
    await emit(Head(200, "application/json", stream=False))
    await emit(Chunk(COMPLETION))
    return settled(action, Outcome(OutcomeStatus.OK, COMPLETION, Usage(), http_status=200))


def streaming(*parts: bytes, outcome: Outcome = OK) -> Performer:
    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context
        await emit(Head(200, "text/event-stream", stream=True))
        for part in parts:
            await emit(Chunk(part))
        return settled(action, outcome)

    return perform


def client(gateway: LiveGateway, retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=TOKEN, max_retries=retries, timeout=20)


async def chat(gateway: LiveGateway, value: object, headers: dict[str, str] | None = None) -> RawAnswer:
    return await gateway.request("POST", CHAT, msgspec.json.encode(value), headers)


async def test_a_whole_completion_by_the_sdk(gateway: LiveGateway) -> None:
    gateway.gate.perform = whole
    async with client(gateway) as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(model="small", messages=MESSAGES)
    completion = raw.parse()
    assert completion.choices[0].message.content == "hi"
    assert raw.headers["tenantry-verdict"] == "allowed"
    assert raw.headers["server-timing"].startswith("queue;dur=0.000, policy;dur=0.250, gate;dur=1.500")
    assert len(raw.headers["tenantry-request-id"]) == 36
    [action] = gateway.gate.actions
    sent = msgspec.json.decode(action.input)
    assert sent["model"] == "example-small-2"
    assert sent["max_completion_tokens"] == 512
    assert (action.model, action.destination, action.kind) == ("small", "models.example.com", "model")
    assert action.estimate.model_inflight == 1
    assert action.estimate.model_tokens >= len(action.input) + 512


async def test_a_stream_by_the_sdk_without_the_bill_that_nobody_asked_for(gateway: LiveGateway) -> None:
    gateway.gate.perform = streaming(delta("a"), delta("b"), BILL, DONE)
    async with client(gateway) as sdk:
        stream = await sdk.chat.completions.create(model="small", messages=MESSAGES, stream=True)
        chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["a", "b"]
    sent = msgspec.json.decode(gateway.gate.actions[0].input)
    assert sent["stream_options"] == {"include_usage": True}


async def test_a_stream_by_the_sdk_with_the_bill_it_asked_for(gateway: LiveGateway) -> None:
    gateway.gate.perform = streaming(delta("a"), BILL, DONE)
    async with client(gateway) as sdk:
        stream = await sdk.chat.completions.create(
            model="small", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 4


async def test_events_are_not_held_back(gateway: LiveGateway) -> None:
    goes_on = asyncio.Event()

    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context
        await emit(Head(200, "text/event-stream", stream=True))
        await emit(Chunk(delta("a")))
        await goes_on.wait()
        await emit(Chunk(DONE))
        return settled(action, OK)

    gateway.gate.perform = perform
    async with client(gateway) as sdk:
        stream = await sdk.chat.completions.create(model="small", messages=MESSAGES, stream=True)
        first = await anext(aiter(stream))
        assert first.choices[0].delta.content == "a"
        goes_on.set()
        assert [chunk async for chunk in stream] == []


async def test_nothing_ends_a_stream_before_the_action_is_settled(gateway: LiveGateway) -> None:
    settles = asyncio.Event()

    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context
        await emit(Head(200, "text/event-stream", stream=True))
        await emit(Chunk(DONE))
        await settles.wait()
        return settled(action, OK)

    gateway.gate.perform = perform
    body = msgspec.json.encode({"model": "small", "messages": [], "stream": True})
    reader, writer = await gateway.connect()
    writer.write(gateway.head("POST", CHAT, body) + body)
    await reader.readuntil(b"[DONE]\n\n\r\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await reader.read(1)
    settles.set()
    assert await reader.readexactly(5) == b"0\r\n\r\n"
    writer.close()


@pytest.mark.parametrize("status", [OutcomeStatus.CUT, OutcomeStatus.UNKNOWN, OutcomeStatus.FAILED])
async def test_a_broken_stream_ends_in_an_error_event(gateway: LiveGateway, status: OutcomeStatus) -> None:
    outcome = Outcome(status, None, Usage(), detail="example: it broke off")
    gateway.gate.perform = streaming(delta("a"), outcome=outcome)
    async with client(gateway) as sdk:
        stream = await sdk.chat.completions.create(model="small", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            _ = [chunk async for chunk in stream]
    answer = await chat(gateway, {"model": "small", "messages": [], "stream": True})
    assert b"[DONE]" not in answer.body
    assert b'"code":"stream_broken"' in answer.body


async def test_a_kill_in_mid_stream_names_the_switch(gateway: LiveGateway) -> None:
    killed = Suspended(SwitchId("swt_1"), "killed", "tenant", "opr_1", None)

    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context
        await emit(Head(200, "text/event-stream", stream=True))
        await emit(Chunk(delta("a")))
        return ActionResult(killed, None, action.action_id, TIMINGS)

    gateway.gate.perform = perform
    answer = await chat(gateway, {"model": "small", "messages": [], "stream": True})
    last = msgspec.json.decode(answer.body.strip().rpartition(b"data: ")[2])
    assert last["error"]["code"] == "suspended"
    assert last["switch_id"] == "swt_1"
    assert b"[DONE]" not in answer.body


async def test_an_error_after_the_head_is_told_in_the_stream(gateway: LiveGateway) -> None:
    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context, action
        await emit(Head(200, "text/event-stream", stream=True))
        raise StorageUnavailableError("away")

    gateway.gate.perform = perform
    answer = await chat(gateway, {"model": "small", "messages": [], "stream": True})
    assert b'"code":"storage_unavailable"' in answer.body


@pytest.mark.parametrize(
    ("verdict", "error", "status"),
    [
        (Denied((PolicyId("tenant/no_models@3"),)), openai.PermissionDeniedError, 403),
        (Throttled(METER, 1), openai.RateLimitError, 429),
        (BudgetExceeded(METER, 10, 9, 1, 5, None), openai.RateLimitError, 429),
        (Suspended(None, "killed", "tenant", "opr_1", None), openai.APIStatusError, 423),
        (ProviderDegraded("example", 10), openai.InternalServerError, 503),
    ],
)
async def test_refusals_by_the_sdk(
    gateway: LiveGateway, verdict: Verdict, error: type[openai.APIStatusError], status: int
) -> None:
    gateway.gate.perform = refusing(verdict)
    async with client(gateway) as sdk:
        with pytest.raises(error) as caught:
            await sdk.chat.completions.create(model="small", messages=MESSAGES, stream=status == 403)
    assert caught.value.status_code == status
    word = caught.value.response.headers["tenantry-verdict"]
    assert caught.value.code == word
    assert caught.value.response.json()["verdict"] == word


async def test_the_sdk_does_not_repeat_what_it_is_told_not_to(gateway: LiveGateway) -> None:
    for verdict in (
        BudgetExceeded(METER, 10, 9, 1, 5, dt.datetime(2030, 1, 1, tzinfo=dt.UTC)),
        UnknownOutcome(gateway.gate.new_action_id()),
    ):
        gateway.gate.actions.clear()
        gateway.gate.perform = refusing(verdict, verdict, verdict)
        async with client(gateway, retries=2) as sdk:
            with pytest.raises(openai.APIStatusError):
                await sdk.chat.completions.create(model="small", messages=MESSAGES)
        assert len(gateway.gate.actions) == 1


async def test_the_sdk_repeats_after_retry_after(gateway: LiveGateway) -> None:
    gateway.gate.perform = refusing(Throttled(METER, 900))
    began = asyncio.get_running_loop().time()
    async with client(gateway, retries=2) as sdk:
        await sdk.chat.completions.create(model="small", messages=MESSAGES)
    assert len(gateway.gate.actions) == 2
    assert asyncio.get_running_loop().time() - began >= 0.9


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_a_providers_refusal_goes_on_in_its_own_words(gateway: LiveGateway, status: int) -> None:
    body = b'{"error":{"message":"provider says no","type":"t","code":"c","param":null}}'

    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context
        extra = (("retry-after", "7"), ("x-ratelimit-remaining", "9"))
        await emit(Head(status, "application/json", stream=False, headers=extra))
        await emit(Chunk(body))
        return settled(action, Outcome(OutcomeStatus.FAILED, body, Usage(), http_status=status))

    gateway.gate.perform = perform
    answer = await chat(gateway, {"model": "small", "messages": []})
    assert (answer.status, answer.body) == (status, body)
    assert answer.headers["retry-after"] == "7"
    assert "x-ratelimit-remaining" not in answer.headers


@pytest.mark.parametrize("status", [401, 403, 407])
async def test_a_credential_that_the_provider_refuses_is_not_the_clients(
    gateway: LiveGateway, status: int
) -> None:
    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context
        await emit(Head(status, "application/json", stream=False))
        await emit(Chunk(b'{"error":{"message":"Incorrect API key provided: sk-ab"}}'))
        return settled(action, Outcome(OutcomeStatus.FAILED, b"{}", Usage(), http_status=status))

    gateway.gate.perform = perform
    answer = await chat(gateway, {"model": "small", "messages": []})
    assert answer.status == 502
    assert b"sk-ab" not in answer.body


async def test_hostile_answer_headers_do_not_reach_the_client(gateway: LiveGateway) -> None:
    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context
        headers = (("retry-after", "1\r\nset-cookie: a=b"), ("set-cookie", "a=b"))
        await emit(Head(200, "text/html\r\nx-evil: 1", stream=False, headers=headers))
        await emit(Chunk(b"{}"))
        return settled(action, OK)

    gateway.gate.perform = perform
    answer = await chat(gateway, {"model": "small", "messages": []})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert not {"set-cookie", "x-evil", "retry-after"} & set(answer.headers)


async def test_an_unknown_outcome_replaces_what_was_held(gateway: LiveGateway) -> None:
    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context
        await emit(Head(200, "application/json", stream=False))
        await emit(Chunk(b'{"half":'))
        return ActionResult(UnknownOutcome(action.action_id), None, action.action_id, TIMINGS)

    gateway.gate.perform = perform
    answer = await chat(gateway, {"model": "small", "messages": []})
    assert answer.status == 502
    assert answer.headers["x-should-retry"] == "false"
    assert b"half" not in answer.body


async def test_recorded_answers_are_sent_as_recorded(gateway: LiveGateway) -> None:
    outcomes = [
        Outcome(OutcomeStatus.OK, COMPLETION, Usage(), http_status=200),
        Outcome(OutcomeStatus.OK, delta("a") + BILL + DONE, Usage(), content_type="text/event-stream"),
        Outcome(OutcomeStatus.OK, None, Usage(), http_status=200),
        Outcome(OutcomeStatus.VOID, None, Usage(), detail="no connection"),
    ]

    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context, emit
        outcome = outcomes.pop(0)
        verdict = Allowed(action.action_id, position=1, recorded=outcome)
        return ActionResult(verdict, outcome, action.action_id, TIMINGS)

    gateway.gate.perform = perform
    assert (await chat(gateway, {"model": "small", "messages": []})).body == COMPLETION
    stream = await chat(gateway, {"model": "small", "messages": [], "stream": True})
    assert stream.body == delta("a") + DONE
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert (await chat(gateway, {"model": "small", "messages": []})).status == 410
    void = await chat(gateway, {"model": "small", "messages": []})
    assert (void.status, void.json()["detail"]) == (502, "no connection")


async def test_faults_of_the_gate(gateway: LiveGateway) -> None:
    faults = [KeyReuseError("x"), StorageUnavailableError("x"), LeaseLapsedError("x")]

    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context, action, emit
        raise faults.pop(0)

    gateway.gate.perform = perform
    answers = [await chat(gateway, {"model": "small", "messages": []}) for _ in range(3)]
    assert [answer.status for answer in answers] == [422, 503, 503]
    assert answers[1].headers["retry-after"] == "1"
    assert "server-timing" in answers[1].headers


async def test_a_fault_nobody_foresaw_says_nothing(gateway: LiveGateway) -> None:
    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context, action, emit
        raise RuntimeError("a secret of the inside")

    gateway.gate.perform = perform
    answer = await chat(gateway, {"model": "small", "messages": []})
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert [str(error) for error in gateway.faults] == ["a secret of the inside"]
    gateway.faults.clear()


async def test_models(gateway: LiveGateway) -> None:
    async with client(gateway) as sdk:
        assert [model.id async for model in sdk.models.list()] == ["small", "unpriced"]
        assert (await sdk.models.retrieve("small")).owned_by == "example"
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("nothing")
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.chat.completions.create(model="nothing", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert gateway.gate.actions == []


async def _endless(gateway: LiveGateway, *, read_first: int, reset: bool) -> None:
    """Open a stream, read a little, and go."""
    body = msgspec.json.encode({"model": "small", "messages": [], "stream": True})
    reader, writer = await gateway.connect()
    writer.write(gateway.head("POST", CHAT, body) + body)
    await reader.readexactly(read_first)
    if reset:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(1, 13, struct.pack("ii", 1, 0))
    writer.close()


@pytest.mark.parametrize("reset", [False, True])
async def test_when_the_client_goes_the_upstream_is_read_to_its_end(
    gateway: LiveGateway, reset: bool
) -> None:
    goes_on, taken = asyncio.Event(), []

    async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
        del context
        await emit(Head(200, "text/event-stream", stream=True))
        for index in range(400):
            await emit(Chunk(delta("x" * 4000)))
            taken.append(index)
            if index == 5:
                await goes_on.wait()
        return settled(action, OK)

    gateway.gate.perform = perform
    await _endless(gateway, read_first=600, reset=reset)
    goes_on.set()
    async with asyncio.timeout(10):
        await gateway.gate.settled.wait()
    assert len(taken) == 400
    assert gateway.entrance.shed.inflight(gateway.gate.facts["acme"].tenant_id) == 0


async def test_a_client_that_takes_nothing_is_dropped_and_the_upstream_read_to_its_end() -> None:
    async with running_gateway(DoorLimits(client_stall_ms=150)) as gateway:
        parts = [delta("x" * 60_000)] * 400
        gateway.gate.perform = streaming(*parts)
        body = msgspec.json.encode({"model": "small", "messages": [], "stream": True})
        _, writer = await gateway.connect()
        writer.write(gateway.head("POST", CHAT, body) + body)
        # The reader's own buffer is bounded, so the client stops taking.
        async with asyncio.timeout(10):
            await gateway.gate.settled.wait()
        writer.transport.abort()
        assert gateway.faults == []


async def test_one_connection_serves_many_requests(gateway: LiveGateway) -> None:
    gateway.gate.perform = whole
    body = msgspec.json.encode({"model": "small", "messages": []})
    reader, writer = await gateway.connect()
    writer.write((gateway.head("POST", CHAT, body) + body) * 5)
    answers = [await read_answer(reader) for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 5
    assert len({answer.headers["tenantry-request-id"] for answer in answers}) == 5
    writer.close()


async def test_the_idempotency_key_goes_along_and_is_checked(gateway: LiveGateway) -> None:
    ask = {"model": "small", "messages": []}
    assert (await chat(gateway, ask, {"Idempotency-Key": "k-1"})).status == 200
    assert gateway.gate.actions[0].idempotency_key == "k-1"
    for bad in ("", "a b", "x" * 201, "ké"):
        answer = await chat(gateway, ask, {"Idempotency-Key": bad})
        assert (answer.status, answer.json()["path"]) == (400, "header idempotency-key")
    assert len(gateway.gate.actions) == 1

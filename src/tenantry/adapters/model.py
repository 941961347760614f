"""Model calls to a provider that speaks OpenAI's chat completions (DESIGN §11).

connect -> (guard) -> send -> head -> stream | whole | refusal -> outcome.

- A *stream* is emitted as it arrives, event by event; an event with a ``usage`` object is a `Chunk` of its
  own, so that the door can keep it from a client that did not ask for it.
- A *whole* answer or a *refusal* is emitted once it is complete and read, so that an outcome which is not
  known is never preceded by half an answer.

The bill is what the provider reports, even above the bound; where it reports nothing, breaks off or is cut,
the bound (the action's estimate) stands: ledger >= bill. When the client goes away, `emit` returns at once
and reading goes on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from tenantry.adapters.breaker import Breakers, Ticket
from tenantry.adapters.connector import Pools, PoolSpec
from tenantry.adapters.egress import Homes
from tenantry.adapters.exchange import Exchange, OutRequest, header_value
from tenantry.adapters.pricing import ReportedUsage, UsageBlock, price
from tenantry.adapters.redact import Redactor
from tenantry.adapters.sse import StreamReader
from tenantry.adapters.watch import SilenceWatch
from tenantry.core.action import ACTION_OUTPUT_BYTES_MAX, Outcome, OutcomeStatus
from tenantry.core.errors import EgressDeniedError, UpstreamError
from tenantry.core.event import Chunk, Head
from tenantry.core.quota import Usage

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from tenantry.core.clock import Clock
    from tenantry.gate.ports import AdapterCall, Emit
    from tenantry.registry.specs import ModelSpec, ProviderSpec

STREAM_BYTES_MAX: Final = 64 * 1024 * 1024
STREAM_RECORD_BYTES_MAX: Final = 1024 * 1024
REFUSAL_BYTES_MAX: Final = 256 * 1024
_EVENT_STREAM: Final = "text/event-stream"
_PASSED_HEADERS: Final = ("Retry-After", "Retry-After-Ms")


class _Completion(msgspec.Struct):
    usage: UsageBlock | None = None


_COMPLETION: Final = msgspec.json.Decoder(_Completion)


class ModelAdapter:
    """Performs actions of kind ``model``; ``input`` is the request's body, ready to send."""

    def __init__(self, pools: Pools, breakers: Breakers, clock: Clock) -> None:
        self._pools = pools
        self._breakers = breakers
        self._clock = clock
        self._homes = Homes()

    async def perform(self, call: AdapterCall, emit: Emit, /) -> Outcome:
        """One call to the provider of the action's model; raises and returns as `Adapter` says."""
        name, provider, model = _declared(call)
        base, rules = self._homes.read(provider.base_url, allow_private=provider.allow_private)
        url = msgspec.structs.replace(base, path=base.path.rstrip("/") + "/chat/completions", query=None)
        secret = call.credential.value.reveal() if call.credential is not None else None
        request = OutRequest("POST", url, _headers(secret), call.action.input)
        spec = PoolSpec(call.pool_key, rules, provider.connections_max)
        conversation = _Conversation(name, provider, model, call, emit, Redactor(secret or ""))
        with (
            self._breakers.admit(call.pool_key, name, 2 * max(1, provider.connections_max)) as ticket,
            self._pools.use(spec) as pool,
        ):
            limit = asyncio.timeout(call.deadline - self._clock.monotonic())
            watch = SilenceWatch(limit)
            exchange = Exchange(
                pool,
                name,
                call.guard,
                connect_s=provider.connect_timeout_ms / 1000,
                on_sent=lambda: watch.arm(provider.first_byte_timeout_ms / 1000),
            )
            try:
                async with limit:
                    try:
                        return await conversation.hold(exchange, request, watch, ticket)
                    finally:
                        watch.stop()
                        exchange.close()
            except TimeoutError:
                ticket.fail()
                if not exchange.sent:
                    raise UpstreamError(f"{name}: no connection came about in time", sent=False) from None
                silent = "it was silent for too long" if watch.has_tripped else "the deadline passed"
                return conversation.cut(f"{name}: {silent}")
            except EgressDeniedError:
                raise
            except UpstreamError as fault:
                ticket.fail()
                if not exchange.sent:
                    raise
                return conversation.cut(str(fault))


class _Conversation:
    """What is known of one call while its answer arrives."""

    def __init__(
        self,
        name: str,
        provider: ProviderSpec,
        model: ModelSpec,
        call: AdapterCall,
        emit: Emit,
        redact: Redactor,
    ) -> None:
        self._name = name
        self._provider = provider
        self._model = model
        self._bound = call.action.estimate
        self._emit = emit
        self._redact = redact
        self._status: int | None = None
        self._is_streaming = False
        self._record = bytearray()
        self._has_overflowed = False

    async def hold(
        self, exchange: Exchange, request: OutRequest, watch: SilenceWatch, ticket: Ticket
    ) -> Outcome:
        """Send, read to the end, and say what came of it.

        Raises `UpstreamError` where the answer breaks off.
        """
        response = await exchange.open(request)
        watch.arm(self._provider.idle_timeout_ms / 1000)
        self._status = status = response.status
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if not 200 <= status < 300:
            return await self._refuse(exchange, response, ticket)
        if content_type == _EVENT_STREAM:
            outcome = await self._stream(exchange, watch)
        else:
            outcome = await self._whole(exchange)
        ticket.succeed()
        return outcome

    async def _stream(self, exchange: Exchange, watch: SilenceWatch) -> Outcome:
        assert self._status is not None
        self._is_streaming = True
        watch.pause()
        await self._emit(Head(self._status, _EVENT_STREAM, stream=True))
        watch.beat()
        reader = StreamReader()
        received = 0
        while data := await exchange.read_some():
            received += len(data)
            if received > STREAM_BYTES_MAX:
                raise UpstreamError(
                    f"{self._name}: its stream is larger than {STREAM_BYTES_MAX} bytes", sent=True
                )
            watch.pause()
            await self._pass_on(reader.feed(data))
            watch.beat()
        watch.pause()
        await self._pass_on(reader.finish())
        if not reader.is_complete:
            raise UpstreamError(f"{self._name}: its stream ended before it was complete", sent=True)
        detail = None
        if self._has_overflowed:
            detail = f"a stream above {STREAM_RECORD_BYTES_MAX} bytes is not recorded"
        return self._answered(reader.usage, self._recorded(), _EVENT_STREAM, detail)

    async def _pass_on(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            clean = self._redact(piece)
            if len(self._record) + len(clean) > STREAM_RECORD_BYTES_MAX:
                self._has_overflowed = True
                self._record.clear()
            elif not self._has_overflowed:
                self._record += clean
            await self._emit(Chunk(clean))

    async def _whole(self, exchange: Exchange) -> Outcome:
        assert self._status is not None
        body = self._redact(await exchange.read_all(ACTION_OUTPUT_BYTES_MAX))
        try:
            usage = _COMPLETION.decode(body).usage
        except msgspec.ValidationError:
            # A bill in a shape that nobody knows is no bill; the answer around it is one.
            usage = None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamError(f"{self._name}: its answer is not JSON", sent=True) from None
        if body.lstrip()[:1] != b"{":
            raise UpstreamError(f"{self._name}: its answer is not a completion", sent=True)
        await self._emit(Head(self._status, "application/json", stream=False))
        await self._emit(Chunk(body))
        return self._answered(usage.reported() if usage else None, body, "application/json", None)

    async def _refuse(self, exchange: Exchange, response: ClientResponse, ticket: Ticket) -> Outcome:
        """An error status: the provider bills nothing for it.

        Its words go on to the client, and when to come again.
        """
        status = response.status
        headers = {name: response.headers[name] for name in _PASSED_HEADERS if name in response.headers}
        if status == 429 or status >= 500:
            ticket.fail(_retry_after_ms(headers))
        else:
            ticket.succeed()
        content_type = "application/json"
        if status < 400:
            status, body = 502, _error(f"{self._name} answered with a redirect, which is not followed")
        else:
            try:
                body = self._redact(await exchange.read_all(REFUSAL_BYTES_MAX))
                msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            except (UpstreamError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                body = _error(f"{self._name} answered with status {status} and nothing that can be read")
        passed = tuple((name.lower(), value) for name, value in headers.items() if value.isdigit())
        await self._emit(Head(status, content_type, stream=False, headers=passed))
        await self._emit(Chunk(body))
        return Outcome(
            OutcomeStatus.FAILED,
            body,
            msgspec.structs.replace(self._bound, model_tokens=0, cost_microusd=0),
            http_status=response.status,
            detail=f"{self._name} answered with status {response.status}",
        )

    def _answered(
        self, usage: ReportedUsage | None, output: bytes | None, content_type: str, detail: str | None
    ) -> Outcome:
        if usage is None:
            billed = self._bound
            detail = f"{self._name} reported no usage; the bound stands"
        else:
            billed = self._billed(usage)
        return Outcome(
            OutcomeStatus.OK,
            output,
            billed,
            content_type=content_type,
            http_status=self._status,
            detail=detail,
        )

    def _billed(self, usage: ReportedUsage) -> Usage:
        cost = price(self._model, prompt=usage.prompt, cached=usage.cached, completion=usage.completion)
        tokens = usage.prompt + usage.completion
        return msgspec.structs.replace(self._bound, model_tokens=tokens, cost_microusd=cost)

    def cut(self, detail: str) -> Outcome:
        """The outcome of a call that was sent and has no end: what was streamed, and the bound."""
        return Outcome(
            OutcomeStatus.CUT if self._is_streaming else OutcomeStatus.UNKNOWN,
            self._recorded() if self._is_streaming else None,
            self._bound,
            content_type=_EVENT_STREAM if self._is_streaming else "application/json",
            http_status=self._status,
            detail=detail,
        )

    def _recorded(self) -> bytes | None:
        return None if self._has_overflowed else bytes(self._record)


def _declared(call: AdapterCall) -> tuple[str, ProviderSpec, ModelSpec]:
    model = call.facts.models.get(call.action.model or "")
    provider = call.facts.providers.get(model.provider) if model is not None else None
    if model is None or provider is None:
        raise UpstreamError(f"the model {call.action.model!r} has no provider", sent=False)
    return model.provider, provider, model


def _headers(secret: str | None) -> tuple[tuple[str, str], ...]:
    headers = (("Content-Type", "application/json"), ("Accept", "application/json, text/event-stream"))
    if secret is None:
        return headers
    return (*headers, ("Authorization", f"Bearer {header_value(secret, 'Authorization')}"))


def _retry_after_ms(headers: dict[str, str]) -> int | None:
    for name, unit_ms in (("Retry-After-Ms", 1), ("Retry-After", 1000)):
        value = headers.get(name, "")
        if value.isascii() and value.isdigit() and len(value) <= 9:
            return int(value) * unit_ms
    return None


def _error(message: str) -> bytes:
    error = {"message": message, "type": "upstream_error", "param": None, "code": None}
    return msgspec.json.encode({"error": error})

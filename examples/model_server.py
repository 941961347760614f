"""A model provider in one file that speaks OpenAI's chat completions and bills as a provider does.

    python examples/model_server.py --port 0 --books books.jsonl --key sk-example-borealis-000001

Prompts cost ``ceil(bytes of all contents / 4)`` tokens and 4 a message; each streamed chunk is one token.
The books bill what was generated until the server *noticed* that its client had gone, which is what makes a
gateway's ledger worth comparing with them. Behaviours (`ModelBehaviour`) come from ``POST /control``, from
the model's name (``example-small!fail=500``) and from the last user message (``!tokens=50 !delay_ms=20``),
in rising order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from serving import (
    HANG_S_MAX,
    BodyError,
    Books,
    Control,
    Exchange,
    Facts,
    argument_parser,
    credential_of,
    open_books,
    serve,
    suffix,
)

DEFAULT_TOKENS = {"example-small": 24, "example-large": 96}
TOKENS_MAX = 100_000
RETRY_AFTER_MS = 1000
SSE = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
BARE = {
    "reset": "-1",
    "cut": "-1",
    "stream_error": "-1",
    "hang": "0",
    "malformed": "true",
    "no_usage": "true",
}
ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}

Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=600_000)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]
FaultKind = Literal["reset", "cut", "stream_error", "hang"]
After = Annotated[int, msgspec.Meta(ge=-1, le=TOKENS_MAX)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]


class ModelBehaviour(msgspec.Struct, frozen=True):
    """How one request is answered.

    ``reset`` (TCP reset), ``cut`` (a clean end without the rest), ``stream_error`` (an error event) and
    ``hang`` happen after so many tokens; -1 is half of the answer. Without streaming, ``reset`` breaks off
    half a body. ``overbill`` adds tokens that nobody asked for, above any bound. ``retry_after_ms`` goes
    with ``fail``.
    """

    tokens: Tokens | None = None
    cached: Tokens = 0
    overbill: Tokens = 0
    delay_ms: Milliseconds = 0
    slow_ms: Milliseconds = 0
    fail: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    retry_after_ms: Milliseconds | None = None
    reset: After | None = None
    cut: After | None = None
    stream_error: After | None = None
    hang: After | None = None
    malformed: bool = False
    no_usage: bool = False


class StreamOptions(msgspec.Struct, frozen=True):
    """OpenAI's ``stream_options``."""

    include_usage: bool = False


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of the prompt; of parts, the text counts, and other parts count as their JSON."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(_part_text(part) for part in self.content)
        return self.content or ""


class ChatRequest(msgspec.Struct, frozen=True):
    """The fields of a chat completion that this provider acts upon; others are ignored."""

    model: str
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None

    def last_user_text(self) -> str:
        """What the user said last."""
        return next((m.text() for m in reversed(self.messages) if m.role == "user"), "")

    def prompt_tokens(self) -> int:
        """What the prompt costs, in tokens."""
        content_bytes = sum(len(message.text().encode()) for message in self.messages)
        return -(-content_bytes // 4) + 4 * len(self.messages)


class Fault(NamedTuple):
    """A break in the answer after a number of tokens."""

    kind: FaultKind
    after: int


class Generation:
    """One answer in the making: its tokens, and what has been generated so far for all choices."""

    def __init__(
        self, request: ChatRequest, behaviour: ModelBehaviour, request_id: str, answer: list[str]
    ) -> None:
        bounds = [limit for limit in (request.max_tokens, request.max_completion_tokens) if limit is not None]
        self.request = request
        self.behaviour = behaviour
        self.choices = request.n or 1
        self.tokens: Sequence[str] = answer[: min(bounds)] if bounds else answer
        self.finish_reason = "length" if len(self.tokens) < len(answer) else "stop"
        self.prompt_tokens = request.prompt_tokens()
        self.generated = 0
        self.outcome = "aborted"
        self.left_early = False
        self.head: Facts = {
            "id": f"chatcmpl-{request_id}",
            "created": int(time.time()),
            "model": request.model.partition("!")[0],
            "system_fingerprint": "fp_example",
        }

    def fault(self) -> Fault | None:
        """Where this answer breaks off, if it does."""
        kinds: tuple[FaultKind, ...] = ("reset", "cut", "stream_error", "hang")
        for kind in kinds:
            after: int | None = getattr(self.behaviour, kind)
            if after is not None:
                length = len(self.tokens)
                return Fault(kind, length // 2 if after < 0 else min(after, length))
        return None

    def usage(self) -> Facts:
        """The usage block of what has been generated so far."""
        completion_tokens = self.generated + self.behaviour.overbill
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": min(self.behaviour.cached, self.prompt_tokens)},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def bill(self) -> Facts:
        """What the books charge: everything that was generated, whoever received it; refusals are free."""
        is_free = self.behaviour.fail is not None
        usage = self.usage()
        return {
            "outcome": self.outcome,
            "left_early": self.left_early,
            "prompt_tokens": 0 if is_free else usage["prompt_tokens"],
            "cached_tokens": 0 if is_free else usage["prompt_tokens_details"]["cached_tokens"],
            "completion_tokens": 0 if is_free else usage["completion_tokens"],
        }


class ModelProvider:
    """The provider's endpoints. Without keys any bearer key will do; without models it has two."""

    def __init__(self, books: Books, keys: Iterable[str], models: Iterable[str]) -> None:
        self.books = books
        self.control = Control(ModelBehaviour, BARE)
        self._keys = frozenset(keys)
        self._models = tuple(models) or tuple(DEFAULT_TOKENS)

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request of the provider's API."""
        scheme, key = credential_of(exchange)
        if scheme != "bearer" or (self._keys and key not in self._keys):
            await self._refuse(exchange, 401, "this API key is not one of ours", code="invalid_api_key")
        elif exchange.path == "/v1/models" and exchange.method == "GET":
            models = [
                {"id": name, "object": "model", "created": 0, "owned_by": "example"} for name in self._models
            ]
            await exchange.reply_json(200, {"object": "list", "data": models})
        elif exchange.path == "/v1/chat/completions" and exchange.method == "POST":
            await self._complete(exchange, key)
        else:
            await self._refuse(exchange, 404, f"nothing answers {exchange.method} {exchange.path}")

    async def _complete(self, exchange: Exchange, key: str) -> None:
        try:
            request = msgspec.json.decode(await exchange.read_body(), type=ChatRequest)
            facts = {
                "model": request.model.partition("!")[0],
                "key_suffix": suffix(key),
                "user": request.user or "",
            }
            behaviour = self.control.behaviour(facts, request.model, request.last_user_text())
        except BodyError as fault:
            await self._refuse(exchange, fault.status, str(fault))
            return
        except msgspec.MsgspecError as fault:
            await self._refuse(exchange, 400, str(fault))
            return
        if facts["model"] not in self._models:
            await self._refuse(exchange, 404, "no such model", code="model_not_found", param="model")
            return
        entry = self.books.start(
            exchange, {**facts, "stream": request.stream, "n": request.n or 1, "metadata": request.metadata}
        )
        generation = Generation(
            request, behaviour, entry["request_id"], self._answer_tokens(request, behaviour)
        )
        try:
            await self._perform(exchange, generation)
        finally:
            self.books.end(entry, "billed", generation.bill())

    async def _perform(self, exchange: Exchange, generation: Generation) -> None:
        behaviour = generation.behaviour
        if behaviour.slow_ms and await exchange.gone_within(behaviour.slow_ms / 1000):
            generation.outcome, generation.left_early = "left", True
        elif behaviour.fail is not None:
            generation.outcome = "failed"
            await _fail(exchange, behaviour.fail, behaviour.retry_after_ms)
        elif generation.request.stream:
            await _stream(exchange, generation)
        else:
            await _answer_whole(exchange, generation)

    def _answer_tokens(self, request: ChatRequest, behaviour: ModelBehaviour) -> list[str]:
        """``ok`` so many times when a number is given; else a summary that quotes the user's first words."""
        if behaviour.tokens is not None:
            return ["ok "] * behaviour.tokens
        words = self.control.strip(request.last_user_text()).split()
        limit = DEFAULT_TOKENS.get(request.model.partition("!")[0], DEFAULT_TOKENS["example-small"])
        return [word + " " for word in ["In", "short:", *words][:limit]]

    async def _refuse(
        self,
        exchange: Exchange,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        """Refuse a request that never reached a model; it stands in the books, and costs nothing."""
        entry = self.books.start(
            exchange, {"path": exchange.path, "key_suffix": suffix(credential_of(exchange)[1])}
        )
        try:
            await exchange.reply_json(status, _error(status, message, code=code, param=param))
        finally:
            self.books.end(entry, "billed", {"outcome": "refused", "status": status})


def _part_text(part: dict[str, Any]) -> str:
    text = part.get("text")
    return text if isinstance(text, str) else msgspec.json.encode(part).decode()


def _error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Facts:
    kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def _fail(exchange: Exchange, status: int, retry_after_ms: int | None) -> None:
    headers = {}
    if retry_after_ms is not None or status in {429, 503}:
        wait_ms = RETRY_AFTER_MS if retry_after_ms is None else retry_after_ms
        headers = {"retry-after": str(-(-wait_ms // 1000)), "retry-after-ms": str(wait_ms)}
    await exchange.reply_json(status, _error(status, f"this request was told to fail with {status}"), headers)


async def _answer_whole(exchange: Exchange, generation: Generation) -> None:
    """Generate all tokens, then answer at once."""
    behaviour, fault = generation.behaviour, generation.fault()
    started = time.monotonic()
    steps = fault.after if fault and fault.kind == "hang" else len(generation.tokens)
    if behaviour.delay_ms and await exchange.gone_within(steps * behaviour.delay_ms / 1000):
        steps = min(steps, int((time.monotonic() - started) * 1000 / behaviour.delay_ms))
        generation.outcome, generation.left_early = "left", True
    generation.generated = steps * generation.choices
    if generation.left_early:
        return
    body = msgspec.json.encode(_completion(generation))
    if behaviour.malformed:
        body = body[: len(body) // 2] + b"\x00}}"
    if fault is None:
        await exchange.reply(200, body)
        generation.left_early = exchange.client_left()
        generation.outcome = "left" if generation.left_early else "completed"
    elif fault.kind == "stream_error":
        generation.outcome = fault.kind
        await exchange.reply_json(500, _error(500, "the model broke off"))
    else:
        if fault.kind != "hang":
            await exchange.start(200, {"content-type": "application/json", "content-length": str(len(body))})
            await exchange.send(body[: len(body) // 2])
        await _break_off(exchange, generation, fault)


def _completion(generation: Generation) -> Facts:
    content = "".join(generation.tokens).rstrip(" ")
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": None,
            "finish_reason": generation.finish_reason,
        }
        for index in range(generation.choices)
    ]
    body = {**generation.head, "object": "chat.completion", "choices": choices}
    return body if generation.behaviour.no_usage else {**body, "usage": generation.usage()}


async def _stream(exchange: Exchange, generation: Generation) -> None:
    """Send a chunk a token and choice, as long as the client is there."""
    behaviour, fault = generation.behaviour, generation.fault()
    frames = _Frames(generation)
    choices = range(generation.choices)
    await exchange.start(200, SSE)
    for index in choices:
        await exchange.send(frames.delta(index, {"role": "assistant", "content": ""}))
    for step, token in enumerate(generation.tokens):
        if fault is not None and fault.after == step:
            await _break_off(exchange, generation, fault)
            return
        if await exchange.gone_within(behaviour.delay_ms / 1000):
            generation.outcome, generation.left_early = "left", True
            return
        generation.generated += generation.choices
        for index in choices:
            await exchange.send(frames.token(index, token))
        if behaviour.malformed and step == len(generation.tokens) // 2:
            await exchange.send(b'data: {"id": "chatcmpl-\x00", "choices": [}\n\n')
    if fault is not None:
        await _break_off(exchange, generation, fault)
        return
    for index in choices:
        await exchange.send(frames.delta(index, {}, generation.finish_reason))
    await exchange.send(frames.usage() + b"data: [DONE]\n\n", more=False)
    generation.left_early = exchange.client_left()
    generation.outcome = "left" if generation.left_early else "completed"


async def _break_off(exchange: Exchange, generation: Generation, fault: Fault) -> None:
    generation.outcome = fault.kind
    if fault.kind == "hang":
        generation.left_early = await exchange.gone_within(HANG_S_MAX)
    if fault.kind == "stream_error":
        event = msgspec.json.encode(_error(500, "the model broke off"))
        await exchange.send(b"data: " + event + b"\n\n", more=False)
    elif fault.kind == "cut" and generation.request.stream:
        await exchange.send(b"", more=False)
    else:
        # What was sent so far must have left this process before the reset throws the socket's buffer away.
        await asyncio.sleep(0.02)
        await exchange.reset()


class _Frames:
    """The server-sent events of one stream; everything but the token is encoded once."""

    def __init__(self, generation: Generation) -> None:
        options = generation.request.stream_options
        self._generation = generation
        self._with_usage = bool(options and options.include_usage) and not generation.behaviour.no_usage
        self._head = {**generation.head, "object": "chat.completion.chunk"}
        if self._with_usage:
            self._head["usage"] = None
        before, _, after = self.delta(0, {"content": "@"}).partition(b'"@"')
        self._after = after
        self._before = [before.replace(b'"index":0', b'"index":%d' % i, 1) for i in range(generation.choices)]

    def delta(self, index: int, delta: Facts, finish_reason: str | None = None) -> bytes:
        """The event of any change of a choice."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event({**self._head, "choices": [choice]})

    def token(self, index: int, token: str) -> bytes:
        """The event of one more token of a choice."""
        return self._before[index] + msgspec.json.encode(token) + self._after

    def usage(self) -> bytes:
        """The last event, or nothing where none was asked for."""
        if not self._with_usage:
            return b""
        return _event({**self._head, "choices": [], "usage": self._generation.usage()})


def _event(value: Facts) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def main() -> None:
    """Run the provider until it is told to stop."""
    parser = argument_parser("an example model provider that speaks OpenAI's chat completions")
    parser.add_argument(
        "--key", action="append", default=[], help="an API key that is accepted; may be repeated"
    )
    parser.add_argument(
        "--model", action="append", default=[], help="a model that is served; may be repeated"
    )
    options = parser.parse_args()
    books = open_books(parser, options, "prompt_tokens", "cached_tokens", "completion_tokens")
    serve(ModelProvider(books, options.key, options.model), options, base_path="/v1")


if __name__ == "__main__":
    main()

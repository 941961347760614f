"""From the bytes of a chat completion to the request that is sent, and the sound bound of what it may use.

Everything that is not ours to decide passes as it came: only ``model``, the output limits and, for streams,
``stream_options.include_usage`` are set. The bound (DESIGN §3 'Budgets') holds because

- a token is at least one byte of what the provider reads, and what it reads is either in the request or
  counted as the whole context window: images, audio, files, stored prompts and conversations, hosted tools;
- the output limit is always set, at most the model's, in the field that the client used;
- what would make an answer dearer than its tokens and price say is refused (`_UNBOUNDED`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tenantry.adapters.pricing import bound_usage
from tenantry.core.action import ACTION_INPUT_BYTES_MAX
from tenantry.core.errors import InvalidInputError
from tenantry.web.json_input import decode_strictly

if TYPE_CHECKING:
    from tenantry.core.quota import Usage
    from tenantry.registry.specs import ModelSpec

# Recorded beside an answer's tokens: ids, usage, the frame. A token's text is seldom above 16 bytes of JSON;
# in a stream each comes in an event of its own. What turns out larger than reserved is answered but not
# recorded.
ANSWER_FRAME_BYTES: Final = 16 * 1024
TOKEN_BYTES: Final = 16
STREAM_TOKEN_BYTES: Final = 320
ANSWER_BYTES_MAX: Final = 1024 * 1024
_SERVICE_TIERS: Final = frozenset({None, "auto", "default", "flex"})
# Rejected guesses, discarded candidates and other models' answers are billed beside what the limits bound.
_UNBOUNDED: Final = ("prediction", "best_of", "use_beam_search", "models", "fallbacks")
_HIDING: Final = ("previous_response_id", "conversation", "prompt", "web_search_options")
_SHOWN_PARTS: Final = frozenset({"text", "refusal"})
_SHOWN_TOOLS: Final = frozenset({"function", "custom"})
_NULL: Final = b"null"
_ABSENT: Final = msgspec.Raw(_NULL)


class _Message(msgspec.Struct):
    content: msgspec.Raw = _ABSENT
    audio: msgspec.Raw = _ABSENT


class _Typed(msgspec.Struct):
    type: str = ""


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[_Typed] | None = None
    service_tier: str | None = None


_CHAT: Final = msgspec.json.Decoder(_Chat)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_PARTS: Final = msgspec.json.Decoder(list[_Typed])
_ENCODER: Final = msgspec.json.Encoder(order="sorted")
_TRUE: Final = msgspec.Raw(b"true")


class ChatRequest:
    """One parsed request. ``wants_usage`` says whether the client itself asked for usage in its stream."""

    __slots__ = ("_chat", "_fields", "is_stream", "model_name", "n", "wants_usage")

    def __init__(self, chat: _Chat, fields: dict[str, msgspec.Raw], choices_max: int) -> None:
        self._chat = chat
        self._fields = fields
        self.model_name = chat.model
        self.is_stream = chat.stream is True
        self.n = 1 if chat.n is None else chat.n
        self.wants_usage = False
        if not 1 <= self.n <= choices_max:
            raise InvalidInputError(f"n is between 1 and {choices_max}", path="$.n")
        if chat.service_tier not in _SERVICE_TIERS:
            raise InvalidInputError("this tier has prices of its own; leave it out", path="$.service_tier")
        for name in _UNBOUNDED:
            if _is_set(fields.get(name)):
                raise InvalidInputError("what it may cost cannot be bounded; leave it out", path=f"$.{name}")

    def prepare(self, model: ModelSpec, model_name: str) -> tuple[bytes, Usage]:
        """The canonical request for the model, and what to reserve for it; journal bytes included.

        Raises `InvalidInputError` for limits that are none, or a request that is too large.
        """
        fields = self._fields
        fields["model"] = msgspec.Raw(_ENCODER.encode(model.upstream_name or model_name))
        output_limit = self._limit_output(model)
        if self.is_stream:
            self._include_usage()
        body = _ENCODER.encode(fields)
        if len(body) > ACTION_INPUT_BYTES_MAX:
            raise InvalidInputError(f"the request is larger than {ACTION_INPUT_BYTES_MAX} bytes")
        bound = bound_usage(
            model,
            request_bytes=model.context_window if self._hides_content() else len(body),
            messages=len(self._chat.messages),
            output_limit=output_limit,
            n=self.n,
        )
        token_bytes = STREAM_TOKEN_BYTES if self.is_stream else TOKEN_BYTES
        answer_bytes = min(ANSWER_BYTES_MAX, ANSWER_FRAME_BYTES + token_bytes * self.n * output_limit)
        return body, msgspec.structs.replace(bound, journal_bytes=len(body) + answer_bytes)

    def _limit_output(self, model: ModelSpec) -> int:
        """Clamp the limits that the client set, or set one; the greater of two is what may be used."""
        limits: list[int] = []
        chat = self._chat
        for name, given in (
            ("max_tokens", chat.max_tokens),
            ("max_completion_tokens", chat.max_completion_tokens),
        ):
            if given is None:
                continue
            if given < 1:
                raise InvalidInputError("the limit is at least 1", path=f"$.{name}")
            limit = min(given, model.max_output_tokens)
            if limit != given:
                self._fields[name] = msgspec.Raw(b"%d" % limit)
            limits.append(limit)
        if limits:
            return max(limits)
        self._fields["max_completion_tokens"] = msgspec.Raw(b"%d" % model.max_output_tokens)
        return model.max_output_tokens

    def _include_usage(self) -> None:
        given = self._fields.get("stream_options")
        options: dict[str, msgspec.Raw] = {}
        if given is not None and _is_set(given):
            try:
                options = _FIELDS.decode(given)
            except msgspec.ValidationError:
                raise InvalidInputError("stream_options is an object", path="$.stream_options") from None
        self.wants_usage = bytes(options.get("include_usage", b"")) == b"true"
        options["include_usage"] = _TRUE
        self._fields["stream_options"] = msgspec.Raw(_ENCODER.encode(options))

    def _hides_content(self) -> bool:
        """Whether the provider may read more than the request shows."""
        fields = self._fields
        if any(_is_set(fields.get(name)) for name in _HIDING):
            return True
        if self._chat.tools and any(tool.type not in _SHOWN_TOOLS for tool in self._chat.tools):
            return True
        for message in self._chat.messages:
            opening = bytes(memoryview(message.content)[:1])
            if opening == b"[":
                if any(part.type not in _SHOWN_PARTS for part in _parts_of(message.content)):
                    return True
            elif opening == b"{":
                return True
            if message.audio is not _ABSENT and _is_set(message.audio):
                return True
        return False


def parse_chat(body: bytes, choices_max: int) -> ChatRequest:
    """Read a request.

    Raises `InvalidInputError` that names the bad field. Cost: two passes over the bytes.
    """
    chat = decode_strictly(body, _CHAT)
    return ChatRequest(chat, _FIELDS.decode(body), choices_max)


def _is_set(value: msgspec.Raw | None) -> bool:
    """Present and not null."""
    return value is not None and bytes(value) != _NULL


def _parts_of(content: msgspec.Raw) -> list[_Typed]:
    try:
        return _PARTS.decode(content)
    except msgspec.ValidationError:
        raise InvalidInputError(
            "content is a string or a list of parts", path="$.messages[...].content"
        ) from None

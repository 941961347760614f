from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from tenantry.core.errors import InvalidInputError
from tenantry.core.quota import Usage
from tenantry.gateway.answer import is_bill
from tenantry.gateway.openai_request import ANSWER_BYTES_MAX, parse_chat
from tenantry.registry.specs import ModelSpec

MODEL = ModelSpec(
    provider="p",
    context_window=1_000,
    max_output_tokens=100,
    input_microusd_per_mtok=1_000_000,
    output_microusd_per_mtok=3_000_000,
)
TEXT: list[Any] = [{"role": "user", "content": "hello"}]


def prepared(value: dict[str, Any]) -> tuple[dict[str, Any], Usage, bool]:
    chat = parse_chat(msgspec.json.encode({"model": "m", "messages": TEXT, **value}), 8)
    body, bound = chat.prepare(MODEL, "m")
    return msgspec.json.decode(body), bound, chat.wants_usage


def test_what_is_not_ours_passes_as_it_came() -> None:
    given = {
        "temperature": 0.30000000000000004,
        "seed": 2**70,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2}}}],
        "vendor": {"x": [1, {"y": None}]},
        "max_tokens": 7,
    }
    sent, _, _ = prepared(given)
    assert sent == {"model": "m", "messages": TEXT, **given}


@pytest.mark.parametrize(
    ("given", "sent", "limit"),
    [
        ({}, {"max_completion_tokens": 100}, 100),
        ({"max_tokens": None}, {"max_tokens": None, "max_completion_tokens": 100}, 100),
        ({"max_tokens": 5}, {"max_tokens": 5}, 5),
        ({"max_tokens": 500}, {"max_tokens": 100}, 100),
        ({"max_tokens": 10**30}, {"max_tokens": 100}, 100),
        ({"max_completion_tokens": 50}, {"max_completion_tokens": 50}, 50),
        (
            {"max_completion_tokens": 5, "max_tokens": 50},
            {"max_completion_tokens": 5, "max_tokens": 50},
            50,
        ),
    ],
)
def test_output_limits_are_set_and_bound(given: dict[str, Any], sent: dict[str, int], limit: int) -> None:
    told, bound, _ = prepared(given)
    assert {key: value for key, value in told.items() if key.startswith("max_")} == sent
    prompt = bound.model_tokens - limit
    assert prompt >= len(msgspec.json.encode(told))
    assert bound.cost_microusd == prompt + 3 * limit


def test_n_multiplies_the_bound() -> None:
    _, one, _ = prepared({"max_tokens": 10, "n": 1})
    _, eight, _ = prepared({"max_tokens": 10, "n": 8})
    assert eight.model_tokens - one.model_tokens == 70


HIDING: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "file", "file": {}}]}
        ]
    },
    {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
    {"messages": [{"role": "user", "content": [{"text": "no type"}]}]},
    {"messages": [{"role": "user", "content": {"type": "image_url"}}]},
    {"messages": [{"role": "assistant", "audio": {"id": "a1"}}]},
    {"previous_response_id": "r"},
    {"conversation": "c"},
    {"prompt": {"id": "p"}},
    {"web_search_options": {}},
    {"tools": [{"type": "web_search"}]},
    {"tools": [{}]},
]


@pytest.mark.parametrize("value", HIDING)
def test_what_is_not_shown_reserves_the_window(value: dict[str, Any]) -> None:
    _, bound, _ = prepared(value)
    assert bound.model_tokens == MODEL.context_window + MODEL.max_output_tokens


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        {"messages": [{"role": "assistant", "content": None, "audio": None, "tool_calls": []}]},
        {"tools": None, "prompt": None, "previous_response_id": None},
        {"tools": [{"type": "custom"}]},
    ],
)
def test_what_is_shown_does_not(value: dict[str, Any]) -> None:
    _, bound, _ = prepared(value)
    assert bound.model_tokens < 500


@pytest.mark.parametrize(
    ("given", "wants"),
    [
        ({}, False),
        ({"stream_options": None}, False),
        ({"stream_options": {}}, False),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": {"include_usage": True, "include_obfuscation": False}}, True),
    ],
)
def test_usage_is_always_asked_for_in_streams(given: dict[str, Any], wants: bool) -> None:
    sent, bound, wants_usage = prepared({"stream": True, **given})
    assert sent["stream_options"] == {**(given.get("stream_options") or {}), "include_usage": True}
    assert wants_usage is wants
    assert bound.journal_bytes <= ANSWER_BYTES_MAX + 4_096
    assert "stream_options" not in prepared({"stream": False})[0]


def test_doubled_keys_are_passed_on_once_as_they_were_understood() -> None:
    body = b'{"model":"x","messages":[],"n":9,"n":2,"max_tokens":999999,"model":"m","max_tokens":3}'
    sent, bound = parse_chat(body, 8).prepare(MODEL, "m")
    assert msgspec.json.decode(sent) == {"model": "m", "messages": [], "n": 2, "max_tokens": 3}
    assert sent.count(b"model") == sent.count(b"max_tokens") == 1
    assert bound.model_tokens < 200


def test_equal_requests_have_equal_bytes() -> None:
    fields = {"model": "m", "messages": TEXT, "n": 1, "user": "u"}
    bodies = {
        parse_chat(msgspec.json.encode(dict(order)), 8).prepare(MODEL, "m")[0]
        for order in itertools.permutations(fields.items())
    }
    assert len(bodies) == 1


@pytest.mark.parametrize("field", ["prediction", "best_of", "use_beam_search", "models", "fallbacks"])
def test_what_cannot_be_bounded_is_refused(field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        prepared({field: ["x"]})
    assert caught.value.path == f"$.{field}"
    prepared({field: None})


def test_the_bill_is_known_from_what_only_speaks_of_it() -> None:
    assert is_bill(b'data: {"choices":[],"usage":{"total_tokens":1}}\n\n')
    assert is_bill(b'data: {"usage" : {"total_tokens":1}, "choices" : [ ]}\n\n')
    assert not is_bill(b'data: {"choices":[],"usage":null}\n\n')
    assert not is_bill(b'data: {"choices":[{"delta":{}}],"usage":{"total_tokens":1}}\n\n')
    text = msgspec.json.encode({"choices": [{"delta": {"content": '"choices":[],"usage":{'}}]})
    assert not is_bill(b"data: " + text + b"\n\n")

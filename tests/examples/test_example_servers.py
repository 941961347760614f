"""The model server against the real SDK: what it answers, what it bills, and how it misbehaves."""

from __future__ import annotations

import json
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk, ChatCompletionUserMessageParam
from tests.examples.servers import Server, running

KEY = "sk-example-borealis-000001"
RunServer = Callable[..., Server]


@pytest.fixture(scope="module")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    books = tmp_path_factory.mktemp("books") / "model.jsonl"
    with running("model_server.py", books, "--key", KEY) as server:
        yield server


@pytest.fixture
def model(model_server: Server) -> Server:
    model_server.rules()
    return model_server


@pytest.fixture
def client(model: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=model.url, api_key=KEY, timeout=20, max_retries=0) as client:
        yield client


def said(text: str) -> list[ChatCompletionUserMessageParam]:
    return [{"role": "user", "content": text}]


def billed(entry: dict[str, Any]) -> tuple[int, int]:
    return entry["prompt_tokens"], entry["completion_tokens"]


def used(usage: CompletionUsage | None) -> tuple[int, int]:
    assert usage is not None
    return usage.prompt_tokens, usage.completion_tokens


class TestModelAnswers:
    def test_whole_answer_reports_what_the_books_bill(self, client: OpenAI, model: Server) -> None:
        text = "!tokens=7 !cached=3 hej åäö"
        answer = client.chat.completions.create(
            model="example-small", messages=said(text), user="u-1", metadata={"run": "r-1"}
        )
        assert answer.choices[0].message.content == "ok ok ok ok ok ok ok"
        assert answer.choices[0].finish_reason == "stop"
        assert used(answer.usage) == (-(-len(text.encode()) // 4) + 4, 7)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 3
        entry = model.last()
        assert billed(entry) == used(answer.usage)
        assert (entry["key_suffix"], entry["user"], entry["metadata"]) == ("000001", "u-1", {"run": "r-1"})
        assert answer.id.endswith(entry["request_id"])

    def test_stream_is_a_chunk_a_token_and_usage_only_when_asked(self, client: OpenAI, model: Server) -> None:
        chunks = list(
            client.chat.completions.create(
                model="example-large",
                messages=said("!tokens=50"),
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        tokens = [c for c in chunks if c.choices and c.choices[0].delta.content]
        assert len(tokens) == 50
        assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].choices == []
        assert used(chunks[-1].usage) == billed(model.last()) == (7, 50)
        plain = list(
            client.chat.completions.create(model="example-small", messages=said("!tokens=2"), stream=True)
        )
        assert all(chunk.usage is None for chunk in plain)
        assert plain[-1].choices[0].finish_reason == "stop"

    @pytest.mark.parametrize("stream", [False, True])
    def test_bounds_and_choices_multiply(self, client: OpenAI, model: Server, stream: bool) -> None:
        answer = client.chat.completions.create(
            model="example-small", messages=said("!tokens=50"), max_completion_tokens=5, n=3, stream=stream
        )
        if isinstance(answer, openai.Stream):
            chunks: list[ChatCompletionChunk] = list(answer)
            finished = {c.choices[0].index for c in chunks if c.choices[0].finish_reason == "length"}
            assert finished == {0, 1, 2}
        else:
            assert [c.finish_reason for c in answer.choices] == ["length"] * 3
        assert model.last()["completion_tokens"] == 15

    def test_plain_text_is_quoted_and_deterministic(self, client: OpenAI) -> None:
        answers = {
            client.chat.completions.create(
                model="example-small", messages=said("Charged twice! Help")
            ).model_dump_json(include={"choices", "usage"})
            for _ in range(2)
        }
        assert len(answers) == 1
        assert "In short: Charged twice! Help" in answers.pop()

    def test_models_are_listed(self, client: OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["example-small", "example-large"]


class TestModelRefusals:
    def test_wrong_key(self, model: Server) -> None:
        with (
            OpenAI(base_url=model.url, api_key="sk-somebody-elses-key", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError) as refusal,
        ):
            stranger.chat.completions.create(model="example-small", messages=said("hello"))
        assert refusal.value.code == "invalid_api_key"
        entry = model.last()
        assert (entry["outcome"], entry["key_suffix"]) == ("refused", "es-key")
        assert KEY not in model.books_file.read_text()

    def test_unknown_model(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as refusal:
            client.chat.completions.create(model="gpt-nobody", messages=said("hello"))
        assert refusal.value.code == "model_not_found"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"\x00",
            b"\xff\xfe",
            b'{"model": "example-small", "messages": []}',
            b'{"model": "example-small", "messages": [{"role": "user", "content": "\\ud800"}]}',
            b'{"model": "example-small", "messages": [{"role": "user"}], "n": 0}',
            b'{"model": "example-small", "messages": [{"role": "user"}], "max_tokens": -1}',
            b'{"model": "example-small", "messages": [{"role": "user", "content": "!tokens=many"}]}',
            b'{"model": "example-small", "messages": [{"role": "user", "content": "!tokens=999999999"}]}',
            b'{"model": "example-small", "messages": [{"role": "user", "content": "!tokens"}]}',
            b"[" * 100_000,
        ],
    )
    def test_bad_bodies_are_400_in_the_providers_shape(self, model: Server, body: bytes) -> None:
        answer = model.call("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {KEY}"})
        assert answer.status == 400, answer.body
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert model.last()["outcome"] == "refused"

    def test_a_body_too_large_is_413(self, model: Server) -> None:
        body = b" " * (32 * 1024 * 1024 + 1)
        answer = model.call("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {KEY}"})
        assert answer.status == 413

    @pytest.mark.parametrize(
        "rule",
        [
            {"behaviour": {"fail": 200}},
            {"behaviour": {"explode": True}},
            {"behaviour": {}, "times": 0},
            {"behaviour": {}, "when": "ever"},
        ],
    )
    def test_bad_rules_change_nothing(self, model: Server, rule: dict[str, Any]) -> None:
        model.rules({"behaviour": {"tokens": 3}})
        assert model.call("POST", "/control", {"rules": [rule]}).status == 400
        assert model.call("GET", "/control").json()["rules"][0]["behaviour"] == {"tokens": 3}


class TestModelFaults:
    def test_the_sdk_retries_what_the_rules_fail_twice(self, client: OpenAI, model: Server) -> None:
        before = model.books()["totals"]["requests"]
        model.rules({"behaviour": {"fail": 429, "retry_after_ms": 10}, "times": 2})
        client.with_options(max_retries=4).chat.completions.create(
            model="example-small", messages=said("!tokens=1")
        )
        entries = model.books()["entries"][before:]
        assert [entry["outcome"] for entry in entries] == ["failed", "failed", "completed"]
        assert [entry["headers"]["x-stainless-retry-count"] for entry in entries] == ["0", "1", "2"]
        assert [entry["completion_tokens"] for entry in entries] == [0, 0, 1]

    def test_rules_match_one_key_or_model_only(self, client: OpenAI, model: Server) -> None:
        model.rules({"behaviour": {"fail": 503}, "match": {"model": "example-large"}})
        client.chat.completions.create(model="example-small", messages=said("!tokens=1"))
        with pytest.raises(openai.InternalServerError) as refusal:
            client.chat.completions.create(model="example-large", messages=said("!tokens=1"))
        assert refusal.value.response.headers["retry-after"] == "1"

    def test_the_models_name_may_carry_words(self, client: OpenAI) -> None:
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="example-small!fail=429", messages=said("hello"))

    @pytest.mark.parametrize("word", ["reset", "cut", "stream_error"])
    def test_a_stream_that_breaks_off_is_billed_for_what_it_made(
        self, client: OpenAI, model: Server, word: str
    ) -> None:
        stream = client.chat.completions.create(
            model="example-small", messages=said(f"!tokens=10 !{word}=4"), stream=True
        )
        ending: dict[str, AbstractContextManager[object]] = {
            "reset": pytest.raises(openai.APIConnectionError),
            "stream_error": pytest.raises(openai.APIError, match="broke off"),
        }
        got: list[ChatCompletionChunk] = []
        with ending.get(word, nullcontext()):
            got.extend(stream)
        assert not any(choice.finish_reason for chunk in got for choice in chunk.choices)
        entry = model.last()
        assert (entry["completion_tokens"], entry["left_early"]) == (4, False)

    def test_reset_is_a_reset_after_what_was_sent(self, model: Server) -> None:
        body = {"model": "example-small", "messages": said("!tokens=10 !reset=4"), "stream": True}
        with raw_request(model, body) as peer:
            pieces: list[bytes] = []
            with pytest.raises(ConnectionResetError):
                pieces.extend(iter(partial(peer.recv, 65536), b""))
            received = b"".join(pieces)
        assert received.count(b'"content":"ok "') == 4

    def test_whole_answers_fail_to_arrive_too(self, client: OpenAI, model: Server) -> None:
        with pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(model="example-small", messages=said("!tokens=10 !reset"))
        assert model.last()["completion_tokens"] == 10
        with pytest.raises(json.JSONDecodeError):
            client.chat.completions.create(model="example-small", messages=said("!tokens=10 !malformed"))
        answer = client.chat.completions.create(model="example-small", messages=said("!tokens=2 !no_usage"))
        assert answer.usage is None

    def test_overbilling_is_above_the_bound_in_usage_and_books(self, client: OpenAI, model: Server) -> None:
        answer = client.chat.completions.create(
            model="example-small", messages=said("!tokens=5 !overbill=100"), max_tokens=5
        )
        assert used(answer.usage) == billed(model.last())
        assert model.last()["completion_tokens"] == 105

    def test_a_hang_ends_when_the_client_leaves(self, client: OpenAI, model: Server) -> None:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).chat.completions.create(
                model="example-small", messages=said("!hang")
            )
        entry = model.last()
        assert (entry["outcome"], entry["left_early"], entry["completion_tokens"]) == ("hang", True, 0)
        assert entry["prompt_tokens"] > 0

    def test_malformed_stream(self, client: OpenAI) -> None:
        stream = client.chat.completions.create(
            model="example-small", messages=said("!tokens=4 !malformed"), stream=True
        )
        with pytest.raises(json.JSONDecodeError), stream:
            list(stream)


class TestModelDisconnects:
    def test_a_stream_left_early_is_billed_to_the_moment_it_was_noticed(
        self, client: OpenAI, model: Server
    ) -> None:
        with client.chat.completions.create(
            model="example-small", messages=said("!tokens=2000 !delay_ms=10"), stream=True
        ) as stream:
            for count, _ in enumerate(stream):
                if count == 5:
                    break
        entry = model.last()
        assert (entry["outcome"], entry["left_early"]) == ("left", True)
        assert 5 <= entry["completion_tokens"] < 500

    @pytest.mark.parametrize("stream", [False, True])
    def test_many_hasty_clients_leave_nothing_open(self, model: Server, stream: bool) -> None:
        before = model.books()["totals"]

        def leave(number: int) -> None:
            words = f"!tokens=500 !delay_ms={number % 3}"
            body = {"model": "example-small", "messages": said(words), "stream": stream}
            with raw_request(model, body) as peer:
                if number % 2 and stream:
                    peer.recv(100)
                if number % 4 == 0:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(leave, range(40)))
        deadline = time.monotonic() + 10
        while (books := model.books())["totals"]["requests"] < before["requests"] + 40:
            assert time.monotonic() < deadline
        entries = books["entries"][before["requests"] :]
        assert all(0 <= entry["completion_tokens"] <= 500 for entry in entries)
        added = sum(entry["completion_tokens"] for entry in entries)
        assert books["totals"]["completion_tokens"] - before["completion_tokens"] == added

    def test_the_first_byte_may_be_waited_for_in_vain(self, client: OpenAI, model: Server) -> None:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.2).chat.completions.create(
                model="example-small", messages=said("!slow_ms=60000"), stream=True
            )
        assert model.last()["left_early"] is True


class TestBooks:
    def test_lines_outlive_a_kill(self, run_server: RunServer) -> None:
        server = run_server("model_server.py")
        with OpenAI(base_url=server.url, api_key="any key will do") as client:
            client.chat.completions.create(model="example-small", messages=said("!tokens=3"))
            stream = client.chat.completions.create(
                model="example-small", messages=said("!tokens=9 !hang=2"), stream=True
            )
            next(iter(stream))
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(10)
            stream.close()
        events = [(line["event"], line.get("completion_tokens")) for line in server.lines()]
        assert events == [("started", None), ("billed", 3), ("started", None)]

    def test_since_leaves_out_what_was_read(self, model: Server, client: OpenAI) -> None:
        seen = model.books()["totals"]["requests"]
        client.chat.completions.create(model="example-small", messages=said("!tokens=1"))
        newer = model.call("GET", f"/books?since={seen}").json()["entries"]
        assert [entry["seq"] for entry in newer] == [seen + 1]
        assert model.call("GET", "/books?since=x").status == 200

    @pytest.mark.parametrize("how", ["sigterm", "stdin"])
    def test_a_server_stops_when_asked_even_with_a_hanging_client(
        self, run_server: RunServer, how: str
    ) -> None:
        server = run_server("model_server.py")
        with raw_request(
            server, {"model": "example-small", "messages": said("!hang=1"), "stream": True}
        ) as peer:
            peer.recv(100)
            if how == "sigterm":
                server.process.terminate()
            else:
                assert server.process.stdin is not None
                server.process.stdin.close()
            assert server.process.wait(10) == 0
        assert server.lines()[-1]["event"] == "billed"


def raw_request(server: Server, body: dict[str, Any]) -> socket.socket:
    """A chat completion on a bare socket; the caller reads, or does not."""
    data = json.dumps(body).encode()
    peer = socket.create_connection(server.address, timeout=10)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    peer.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return peer

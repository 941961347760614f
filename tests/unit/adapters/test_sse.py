"""The stream reader: bytes untouched whatever the split, the bill found whatever the framing."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.adapters.pricing import ReportedUsage
from tenantry.adapters.sse import EVENT_BYTES_MAX, StreamReader
from tenantry.core.errors import UpstreamError

USAGE = b'{"id":"x","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18,'
USAGE += b'"prompt_tokens_details":{"cached_tokens":3}}}'
DELTA = (
    b'{"choices":[{"delta":{"content":"say \\"usage\\": {now} [DONE]"},"finish_reason":null}],"usage":null}'
)
REPORTED = ReportedUsage(11, 3, 7)


def stream(end: bytes = b"\n") -> bytes:
    lines = [b": hello", b"", b"event: message", b"data: " + DELTA, b"", b"data:" + DELTA, b"", b""]
    head, tail = USAGE[:40], USAGE[40:]
    comma = head.rindex(b",") + 1
    lines += [
        b"id: 1",
        b"data: " + USAGE[:comma],
        b"data: " + USAGE[comma:40] + tail,
        b"",
        b"data: [DONE]",
        b"",
        b"",
    ]
    return end.join(lines)


def read(pieces: list[bytes]) -> tuple[StreamReader, list[bytes]]:
    reader = StreamReader()
    passed = [out for piece in pieces for out in reader.feed(piece)]
    return reader, passed + reader.finish()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_split_at_every_byte(end: bytes) -> None:
    data = stream(end)
    for cut in range(len(data) + 1):
        reader, passed = read([data[:cut], data[cut:]])
        assert b"".join(passed) == data
        assert reader.usage == REPORTED
        assert reader.is_complete
        bills = [piece for piece in passed if b'"usage":{' in piece]
        assert len(bills) == 1
        assert b"[DONE]" not in bills[0] and b"delta" not in bills[0]
    reader, passed = read([data[i : i + 1] for i in range(len(data))])
    assert b"".join(passed) == data and reader.usage == REPORTED and reader.is_complete


@given(st.data(), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_split_anywhere(data: st.DataObject, end: bytes) -> None:
    text = stream(end)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = [0, *cuts, len(text)]
    reader, passed = read([text[a:b] for a, b in itertools.pairwise(bounds)])
    assert b"".join(passed) == text
    assert reader.usage == REPORTED and reader.is_complete


@given(
    st.lists(
        st.binary(max_size=20) | st.sampled_from([b"\n\n", b"\r", b"\n", b'data: {"usage": {', b"[DONE]"])
    )
)
def test_no_bytes_are_lost_or_made_up(pieces: list[bytes]) -> None:
    _, passed = read(pieces)
    assert b"".join(passed) == b"".join(pieces)
    assert all(passed)


def test_whole_events_pass_at_once() -> None:
    reader = StreamReader()
    assert reader.feed(b"data: 1\n\ndata: 2\n\n") == [b"data: 1\n\ndata: 2\n\n"]
    assert reader.feed(b"data: 3\n") == []
    assert reader.feed(b"\ndata: 4") == [b"data: 3\n\n"]
    assert reader.finish() == [b"data: 4"]
    assert not reader.is_complete


def test_a_bill_without_its_blank_line_counts() -> None:
    reader, _ = read([b"data: " + USAGE + b"\n\ndata: [DONE]"])
    assert reader.usage == REPORTED and reader.is_complete
    reader, _ = read([b"data: " + USAGE])
    assert reader.usage == REPORTED and reader.is_complete


def test_a_running_bill_is_not_the_end() -> None:
    running = b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":11,"completion_tokens":2}}\n\n'
    reader, _ = read([running])
    assert reader.usage == ReportedUsage(11, 0, 2) and not reader.is_complete
    last = (
        b'data: {"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":5}}\n\n'
    )
    reader, _ = read([running, last])
    assert reader.usage == ReportedUsage(11, 0, 5) and reader.is_complete


@pytest.mark.parametrize(
    "usage",
    [
        b'{"prompt_tokens":-1,"completion_tokens":1}',
        b'{"prompt_tokens":"11","completion_tokens":1}',
        b'{"prompt_tokens":1.5,"completion_tokens":1}',
        b'{"prompt_tokens":1,"completion_tokens":99999999999999999999999999}',
        b'{"prompt_tokens":18014398509481984,"completion_tokens":1}',
        b'{"completion_tokens":1}',
        b'{"prompt_tokens":1,"completion_tokens":null}',
        b"{}",
        b'{"prompt_tokens":1',
        b'{"prompt_tokens":1}\xff',
        b"[" * 2000,
        b'{"x":' * 2000,
    ],
)
def test_a_bill_that_cannot_be_true_is_none(usage: bytes) -> None:
    reader, passed = read([b'data: {"choices":[],"usage":' + usage + b"}\n\ndata: [DONE]\n\n"])
    assert reader.usage is None
    assert reader.is_complete
    assert b"".join(passed).endswith(b"[DONE]\n\n")


def test_hidden_reasoning_in_the_total_is_billed() -> None:
    block = msgspec.json.encode(
        {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}}
    )
    reader, _ = read([b"data: " + block + b"\n\n"])
    assert reader.usage == ReportedUsage(10, 0, 30)


def test_an_endless_event_is_cut() -> None:
    reader = StreamReader()
    for _ in range(EVENT_BYTES_MAX // 65536):
        assert reader.feed(b"data: " + b"x" * 65530) == []
    with pytest.raises(UpstreamError) as cut:
        reader.feed(b"x")
    assert cut.value.sent

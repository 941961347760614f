"""A program's result: the last JSON value on stdout, else its text; whatever it printed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.cli.agent_output import KEPT_BYTES_MAX, Tail, result_of

CASES: list[tuple[bytes, Any]] = [
    (b"", None),
    (b"\n\n", None),
    (b"all done\n", "all done"),
    (b'working\n{"a": 1}\n', {"a": 1}),
    (b'{"a": 1}\n{"b": 2}\nbye\n', {"b": 2}),
    (b'{\n  "a": [\n    {"b": 1}\n  ]\n}\n', {"a": [{"b": 1}]}),
    (b"  42  ", 42),
    (b"2026-01-01 started\n", "2026-01-01 started"),
    (b'{"a": 1} trailing\n', '{"a": 1} trailing'),
    (b"{broken\n[1, 2]\n", [1, 2]),
    (b"NaN\n", "NaN"),
    (b'{"a": NaN}\n', '{"a": NaN}'),
    (b'"\\ud800"\n', '"\\ud800"'),
    (b'{"a": "\\u0000"}\n', '{"a": "\\u0000"}'),
    (b"a\x00b\xff", "a\ufffdb\ufffd"),
    (b"null\n", None),
]


@pytest.mark.parametrize(("printed", "result"), CASES)
def test_the_result_of_a_program(printed: bytes, result: object) -> None:
    assert result_of(printed) == result


@pytest.mark.parametrize("printed", [b"[" * 500_000, b"[\n" * 200_000, b'{"a":' * 100_000, b"1\n" * 200_000])
def test_hostile_output_costs_little(printed: bytes) -> None:
    assert result_of(printed) is not None


@given(st.binary(max_size=2000))
def test_any_output_has_a_result_that_can_be_sent(printed: bytes) -> None:
    json.dumps(result_of(printed), ensure_ascii=False, allow_nan=False).encode()


def test_only_the_end_of_a_flood_is_kept() -> None:
    tail = Tail()
    for _ in range(40):
        tail.add(b"x" * 100_000 + b"\n")
    tail.add(b'{"last": true}\n')
    assert tail.result() == {"last": True}
    assert tail.total_bytes > 4_000_000
    assert len(tail._kept) <= 2 * KEPT_BYTES_MAX

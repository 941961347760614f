"""API key tokens: one shape, never stored, refused cheaply."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.core.clock import SystemClock
from tenantry.identity.key_format import new_key, parse_key

GOOD = "tnk_0123456789AB_" + "a" * 43


def test_a_new_key_parses_and_two_differ() -> None:
    one, two = new_key(SystemClock()), new_key(SystemClock())
    assert one != two
    parsed = parse_key(one)
    assert parsed is not None
    assert parsed.key_sha256 == hashlib.sha256(one.encode()).digest()
    assert one.startswith(f"{parsed.prefix}_")
    assert one[17:] not in repr(parsed)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "tnk_",
        GOOD[:-1],
        GOOD + "a",
        GOOD + "\n",
        GOOD[:-1] + "\n",
        GOOD[:-1] + "\0",
        GOOD[:-1] + "\ud800",
        GOOD[:-1] + "\u0430",
        GOOD[:-1] + "=",
        GOOD.upper(),
        GOOD.replace("0", "O"),
        GOOD.replace("0", "\u0660"),
        "\0" * 60,
        "tnk_" * 15,
        "A" * 1_000_000,
        "'; drop table api_keys; --".ljust(60),
    ],
)
def test_other_shapes_are_none(token: str) -> None:
    assert parse_key(GOOD) is not None
    assert parse_key(token) is None


@given(st.text(max_size=80))
def test_any_text_is_none_and_raises_nothing(text: str) -> None:
    assert parse_key(text) is None

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.core.errors import InvalidInputError
from tenantry.web.json_input import DEPTH_MAX, VALUES_MAX, check_values, decode_strictly, find_bad_text

ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), inner, max_size=4
        )
    ),
    max_leaves=20,
)


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    a: int
    b: list[dict[str, int]] = []


STRICT = msgspec.json.Decoder(Strict)


@given(VALUES, st.booleans())
def test_good_json_is_read_as_it_is(value: object, ascii_only: bool) -> None:
    decoded = decode_strictly(json.dumps(value, ensure_ascii=ascii_only).encode(), ANY)
    check_values(decoded)
    assert decoded == value


@given(st.text(st.sampled_from(["\\", "u", "0", '"', "a", "\0"])))
def test_a_nul_is_found_however_it_is_written_and_nothing_else_is_taken_for_one(text: str) -> None:
    body = json.dumps({"x": text}).encode()
    if "\0" in text:
        with pytest.raises(InvalidInputError) as caught:
            decode_strictly(body, ANY)
        assert caught.value.path == "$.x"
    else:
        assert decode_strictly(body, ANY) == {"x": text}


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        decode_strictly(body, ANY)
    except InvalidInputError as error:
        assert error.path.startswith("$")  # noqa: PT017 - either way is right


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"a":"x"}', "$.a"),
        (b'{"b":[]}', "$.a"),
        (b'{"a":1,"c":2}', "$.c"),
        (b'{"a":1,"x y":2}', '$["x y"]'),
        (b'{"a":1,"b":[{"k":1},{"k":"v"}]}', "$.b[1][...]"),
        (b'{"a":1,"b":["\\ud800"]}', "$.b[0]"),
        (b'{"a":1,"\\ud800":1}', "$"),
    ],
)
def test_faults_name_their_place(body: bytes, path: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        decode_strictly(body, STRICT)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": {"b c": [1, 2**63]}}, '$.a["b c"][1]'),
        ([-(2**63) - 1], "$[0]"),
        ({"a": float("inf")}, "$.a"),
        ([[]] * (VALUES_MAX + 1), "$"),
    ],
)
def test_values_that_choke_others(value: object, path: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_values(value)
    assert caught.value.path == path


def test_depth() -> None:
    value: object = 1
    for _ in range(DEPTH_MAX):
        value = [value]
    check_values(value)
    with pytest.raises(InvalidInputError, match="deeper"):
        check_values({"a": value})


def test_bad_text_is_looked_for_in_the_order_of_the_text() -> None:
    assert find_bad_text(b'{"a":["x",{"b":"\\u0000"}],"c":"\\ud800"}') == "$.a[1].b"
    assert find_bad_text(b'{"a":1}') is None
    assert find_bad_text(b"[" * 200_000) is None

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.api.endpoints import PageQuery, encode_cursor, limit_of, make_page, read_cursor
from tenantry.api.openapi import openapi_document
from tenantry.api.routes import ENDPOINTS
from tenantry.core.errors import InvalidInputError


@given(st.tuples(st.text(max_size=50), st.text(max_size=50), st.integers(0, 2**31)))
def test_a_cursor_reads_back(place: tuple[str, str, int]) -> None:
    assert read_cursor(encode_cursor(place), tuple[str, str, int], ("", "", 0)) == place


@given(st.text(max_size=200))
def test_any_text_is_a_cursor_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(InvalidInputError):
        assert isinstance(read_cursor(text, str, ""), str)


def test_a_cursor_of_another_list_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        read_cursor(encode_cursor(5), str, "")


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_a_page_has_bounds(limit: int) -> None:
    with pytest.raises(InvalidInputError):
        limit_of(PageQuery(limit=limit))


def test_the_last_page_has_no_cursor() -> None:
    query = PageQuery(limit=2)
    assert make_page([1, 2], query, str).next == encode_cursor("2")
    assert make_page([1], query, str).next is None
    assert make_page([], query, str).next is None


def test_every_operation_is_named_once_and_described() -> None:
    names = [endpoint.operation for endpoint in ENDPOINTS]
    assert len(names) == len(set(names))
    assert all(endpoint.summary.endswith(".") for endpoint in ENDPOINTS)
    assert len({(e.method, e.path) for e in ENDPOINTS}) == len(ENDPOINTS)


def test_every_reference_in_the_document_leads_somewhere() -> None:
    document = msgspec.json.decode(openapi_document(ENDPOINTS, version="1"))
    schemas = document["components"]["schemas"]

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(references(member) for member in value.values()))
        if isinstance(value, list):
            return set().union(*(references(member) for member in value))
        return set()

    wanted = {reference.rpartition("/")[2] for reference in references(document)}
    assert wanted <= set(schemas)
    assert set(schemas) <= wanted

"""From declaration and input to the request, and what cannot become one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.calls import action, credential_headers_of

from tenantry.adapters.egress import Homes
from tenantry.adapters.http_request import Plan, credential_headers, plan_request, secrets_of
from tenantry.core.errors import EgressDeniedError, UpstreamError
from tenantry.registry.specs import AuthSpec, HttpActionSpec

BASE = "https://api.example.com/v2/"


def plan(
    spec: HttpActionSpec,
    body: bytes = b"{}",
    *,
    allowed_hosts: tuple[str, ...] = (),
    record_id: str = "zd_99102",
    key: str | None = None,
    destination: str | None = None,
) -> Plan:
    made = action("tool", "ticket", body, record_id=record_id, key=key, destination=destination)
    home, rules = Homes().read(BASE, allowed_hosts=allowed_hosts)
    return plan_request(home, rules, spec, made)


def test_a_post_carries_its_input_as_it_is() -> None:
    spec = HttpActionSpec(
        risk="write", path="/tickets/{record_id}/comments", idempotency_header="Idempotency-Key"
    )
    made = plan(spec, b'{"b":1,"a":[1,2]}', record_id="zd 9/9?#%", key="k-1").request
    assert made.method == "POST"
    assert made.url.text == "https://api.example.com/v2/tickets/zd%209%2F9%3F%23%25/comments"
    assert made.body == b'{"b":1,"a":[1,2]}'
    assert ("Idempotency-Key", "k-1") in made.headers
    assert ("Content-Type", "application/json") in made.headers
    assert "k-1" not in repr(made)
    # Without the caller's key the action's own id makes a repeat recognisable.
    assert ("Idempotency-Key", "act_1") in plan(spec).request.headers


def test_a_get_carries_its_input_as_query() -> None:
    spec = HttpActionSpec(risk="read", method="GET", path="tickets?page=2")
    made = plan(
        spec, msgspec.json.encode({"q": "a&b=ü", "n": 3, "on": True, "no": None, "ids": ["x", 1]})
    ).request
    assert (
        made.url.text == "https://api.example.com/v2/tickets?page=2&q=a%26b%3D%C3%BC&n=3&on=true&ids=x&ids=1"
    )
    assert made.body is None
    assert (
        plan(HttpActionSpec(risk="read", method="GET", path=""), b"").request.url.text
        == "https://api.example.com/v2"
    )


@pytest.mark.parametrize(
    "record_id",
    [
        "",
        ".",
        "..",
        "../x",
        "a/../b",
        "a\\..\\b",
        "%2e%2e",
        "..%2fx",
        "%2e%2e%2fx",
        "%252e%252e",
        "a\x00b",
        "a\nb",
        "\ud800",
        "a%00b",
        "a%0d%0ab",
    ],
)
def test_record_ids_that_climb_or_split(record_id: str) -> None:
    spec = HttpActionSpec(risk="read", method="GET", path="/tickets/{record_id}")
    with pytest.raises(UpstreamError) as refused:
        plan(spec, record_id=record_id)
    assert not refused.value.sent


@given(st.text(min_size=1, max_size=30))
def test_a_record_id_is_one_segment_or_refused(record_id: str) -> None:
    try:
        made = plan(HttpActionSpec(risk="read", method="GET", path="/t/{record_id}/x"), record_id=record_id)
    except UpstreamError:
        return
    assert made.request.url.host == "api.example.com"
    assert made.request.url.path.count("/") == 4
    assert made.request.url.query is None


@pytest.mark.parametrize(
    "body", [b"[1]", b'"x"', b"{", b"nul", b"\xff", b"[" * 3000, b'{"a":{"b":1}}', b'{"a":[[1]]}']
)
def test_input_that_no_query_can_carry(body: bytes) -> None:
    with pytest.raises(UpstreamError) as refused:
        plan(HttpActionSpec(risk="read", method="GET", path="/t"), body)
    assert not refused.value.sent


def test_a_fetch_goes_where_policy_decided() -> None:
    spec = HttpActionSpec(risk="read", method="GET", url_from_input="url")
    fetch = b'{"url":"https://docs.example.org/a?b=1","x":1}'
    made = plan(spec, fetch, allowed_hosts=("*.example.org",), destination="docs.example.org")
    assert made.request.url.text == "https://docs.example.org/a?b=1"
    assert made.request.body is None
    with pytest.raises(EgressDeniedError, match="policy"):
        plan(spec, fetch, allowed_hosts=("*.example.org",), destination="other.example.org")
    with pytest.raises(EgressDeniedError, match="not among"):
        plan(spec, fetch)
    for bad in (b"{}", b'{"url":1}', b'{"url":null}', b'{"url":""}', b'{"url":"file:///etc/passwd"}'):
        with pytest.raises(EgressDeniedError):
            plan(spec, bad)
    post = HttpActionSpec(risk="read", method="POST", url_from_input="url")
    made = plan(post, fetch, allowed_hosts=("docs.example.org",))
    assert made.request.body == b'{"x":1}'


def test_a_credential_goes_home_only() -> None:
    assert credential_headers(None, "x") == ()
    assert credential_headers(AuthSpec(secret="s"), "abc") == (("Authorization", "Bearer abc"),)
    assert credential_headers(AuthSpec(secret="s", scheme="basic"), "u:p") == (
        ("Authorization", "Basic dTpw"),
    )
    assert credential_headers(AuthSpec(secret="s", scheme="header", header="X-Key"), "abc") == (
        ("X-Key", "abc"),
    )
    for value in ("a\r\nX: y", "a\nb", "ü", " a", "a\x00"):
        with pytest.raises(UpstreamError) as refused:
            credential_headers(AuthSpec(secret="s"), value)
        assert value not in str(refused.value)
    with pytest.raises(UpstreamError, match="'s' is needed"):
        credential_headers(AuthSpec(secret="s"), None)
    assert secrets_of(AuthSpec(secret="s", scheme="basic"), "user:password") == ("user:password", "password")
    spec = HttpActionSpec(risk="read", method="GET", url_from_input="url")
    away = plan(spec, b'{"url":"https://docs.example.org/"}', allowed_hosts=("docs.example.org",))
    assert credential_headers_of(away) == ()
    home = plan(spec, b'{"url":"https://api.example.com/other"}')
    assert credential_headers_of(home) == (("Authorization", "Bearer abc"),)


def test_an_idempotency_key_that_would_split_the_head() -> None:
    spec = HttpActionSpec(risk="write", path="/t", idempotency_header="Idempotency-Key")
    with pytest.raises(UpstreamError) as refused:
        plan(spec, key="a\r\nX-Admin: 1")
    assert not refused.value.sent and "X-Admin" not in str(refused.value)

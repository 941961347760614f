"""HTTP actions: what an answer means, what its loss means, where redirects may lead."""

from __future__ import annotations

import asyncio
import base64
import gzip
import tracemalloc
from typing import Any, Literal

import msgspec
import pytest
from tests.support.calls import SECRET, TOOL_BOUND, Shut, Sink, shown, tool_call
from tests.support.upstreams import Peer, Script, Upstream, answering

from tenantry.adapters.registry import Adapters
from tenantry.core.action import Outcome, OutcomeStatus
from tenantry.core.errors import EgressDeniedError, UpstreamError
from tenantry.core.labels import UNTRUSTED
from tenantry.registry.specs import AuthSpec, HttpActionSpec

OK, FAILED, UNKNOWN = OutcomeStatus.OK, OutcomeStatus.FAILED, OutcomeStatus.UNKNOWN
READ = HttpActionSpec(risk="read", method="GET", path="/tickets/{record_id}", data_classes=("pii",))
WRITE = HttpActionSpec(
    risk="write", method="PUT", path="/tickets/{record_id}", idempotency_header="Idempotency-Key"
)
METHODS: tuple[Literal["GET", "POST", "PUT", "DELETE"], ...] = ("GET", "POST", "PUT", "DELETE")
FETCH = HttpActionSpec(risk="read", method="GET", url_from_input="url")


def read(outcome: Outcome) -> dict[str, Any]:
    return msgspec.json.decode(outcome.output or b"", type=dict[str, Any])


async def test_a_write_with_the_tenants_own_credential(adapters: Adapters) -> None:
    async with Upstream(answering(200, b'{"z":1,"a":{"c":2,"b":1}}')) as upstream:
        sink = Sink()
        call = tool_call(upstream.url + "/api", WRITE, b'{"status":"open"}', key="k-1")
        outcome = await adapters.perform(call, sink)
        assert outcome.output == b'{"body":{"a":{"b":1,"c":2},"z":1},"status":200}'
        assert outcome.status is OK and outcome.http_status == 200 and outcome.usage == TOOL_BOUND
        assert not sink.events
        request = upstream.requests[0]
        assert (request.method, request.target) == ("PUT", "/api/tickets/zd_99102")
        assert request.body == b'{"status":"open"}'
        assert request.headers["authorization"] == f"Bearer {SECRET}"
        assert request.headers["idempotency-key"] == "k-1"
        assert request.headers["host"] == f"127.0.0.1:{upstream.port}"


@pytest.mark.parametrize(
    ("auth", "secret", "header", "value"),
    [
        (AuthSpec(secret="s", scheme="basic"), "a:b", "authorization", "Basic YTpi"),
        (AuthSpec(secret="s", scheme="header", header="X-Api-Key"), "abcd", "x-api-key", "abcd"),
        (AuthSpec(secret="s", header="X-Auth"), "abcd", "x-auth", "Bearer abcd"),
        (None, None, "authorization", None),
    ],
)
async def test_schemes(
    adapters: Adapters, auth: AuthSpec | None, secret: str | None, header: str, value: str | None
) -> None:
    async with Upstream(answering(200)) as upstream:
        await adapters.perform(tool_call(upstream.url, READ, auth=auth, secret=secret), Sink())
        assert upstream.requests[0].headers.get(header) == value


@pytest.mark.parametrize(
    ("status", "of_a_read", "of_a_write"),
    [
        (200, OK, OK),
        (201, OK, OK),
        (204, OK, OK),
        (300, FAILED, FAILED),
        (301, FAILED, FAILED),
        (302, FAILED, UNKNOWN),
        (303, FAILED, OK),
        (304, FAILED, FAILED),
        (307, FAILED, FAILED),
        (400, FAILED, FAILED),
        (404, FAILED, FAILED),
        (409, FAILED, FAILED),
        (422, FAILED, FAILED),
        (429, FAILED, FAILED),
        (500, FAILED, UNKNOWN),
        (502, FAILED, UNKNOWN),
        (503, FAILED, UNKNOWN),
    ],
)
async def test_what_a_status_means(
    adapters: Adapters, status: int, of_a_read: OutcomeStatus, of_a_write: OutcomeStatus
) -> None:
    async with Upstream(answering(status, b"" if status in {204, 304} else b'{"m":1}')) as upstream:
        for spec, expected in ((READ, of_a_read), (WRITE, of_a_write)):
            outcome = await adapters.perform(tool_call(upstream.url, spec), Sink())
            assert outcome.status is expected
            assert outcome.http_status == status and read(outcome)["status"] == status
            assert outcome.usage == TOOL_BOUND


def raw(data: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(data)

    return script


LOST: dict[str, Script] = {
    "closed": raw(b""),
    "not http": raw(b"SSH-2.0-x\r\n"),
    "half a head": raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "half a body": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
    "a broken chunk": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "not gzip": answering(200, b"plain", Content_Encoding="gzip"),
    "half a gzip": answering(200, gzip.compress(b"a" * 5_000)[:20], Content_Encoding="gzip"),
    "an unknown encoding": answering(200, b"x", Content_Encoding="br"),
    "too large": answering(200, b'"' + b"a" * 2_000_000 + b'"'),
}


@pytest.mark.parametrize("name", LOST)
async def test_a_lost_answer_fails_a_read_and_leaves_a_write_unknown(adapters: Adapters, name: str) -> None:
    async with Upstream(LOST[name]) as upstream:
        for spec, expected in ((READ, FAILED), (WRITE, UNKNOWN)):
            outcome = await adapters.perform(tool_call(upstream.url, spec), Sink())
            assert outcome.status is expected
            assert outcome.detail and read(outcome)["body"] is None
            assert outcome.usage == TOOL_BOUND
        assert len(upstream.requests) == 2


async def test_a_refusal_stands_though_its_text_is_lost(adapters: Adapters) -> None:
    async with Upstream(raw(b"HTTP/1.1 409 no\r\nContent-Length: 9\r\n\r\n{")) as upstream:
        outcome = await adapters.perform(tool_call(upstream.url, WRITE), Sink())
        assert outcome.status is FAILED and outcome.http_status == 409


async def test_deadlines(adapters: Adapters) -> None:
    async def silent(peer: Peer) -> None:
        await peer.read_request()
        await peer.until_closed()

    async def drips(peer: Peer) -> None:
        await peer.read_request()
        await peer.begin("application/json")
        while not peer.writer.is_closing():
            await peer.chunk(b" ")
            await asyncio.sleep(0.01)

    for script in (silent, drips):
        async with Upstream(script) as upstream:
            for spec, expected in ((READ, FAILED), (WRITE, UNKNOWN)):
                short = msgspec.structs.replace(spec, deadline_ms=100)
                for declared, seconds in ((short, 5.0), (spec, 0.1)):
                    call = tool_call(upstream.url, declared, seconds=seconds)
                    outcome = await adapters.perform(call, Sink())
                    assert outcome.status is expected and "deadline" in (outcome.detail or "")
    with pytest.raises(UpstreamError) as fault:
        await adapters.perform(tool_call("http://127.0.0.1:1", WRITE, seconds=-1), Sink())
    assert not fault.value.sent


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b"hello", "text/plain", {"status": 200, "body": "hello"}),
        (b'{"a":1}', "application/problem+json; charset=utf-8", {"status": 200, "body": {"a": 1}}),
        (b'{"a":1}', "text/plain", {"status": 200, "body": '{"a":1}'}),
        (b"", "application/json", {"status": 200, "body": None}),
        (b"{nope", "application/json", {"status": 200, "body": "{nope"}),
        (b"[" * 9_000, "application/json", {"status": 200, "body": "[" * 9_000}),
        (b'"\\ud800"', "application/json", {"status": 200, "body": '"\\ud800"'}),
        (b'"a\\u0000b"', "application/json", {"status": 200, "body": "a\x00b"}),
        (b"12345678901234567890123", "application/json", {"status": 200, "body": 12345678901234567890123}),
        (
            b"\x89PNG\x00\xff",
            "image/png",
            {"status": 200, "body_base64": base64.b64encode(b"\x89PNG\x00\xff").decode()},
        ),
    ],
)
async def test_outputs(adapters: Adapters, body: bytes, content_type: str, expected: dict[str, Any]) -> None:
    async with Upstream(answering(200, body, content_type)) as upstream:
        outcome = await adapters.perform(tool_call(upstream.url, READ), Sink())
        assert outcome.status is OK and read(outcome) == expected


async def test_an_answer_in_gzip_that_was_not_asked_for(adapters: Adapters) -> None:
    async with Upstream(answering(200, gzip.compress(b'{"a":1}'), Content_Encoding="gzip")) as upstream:
        outcome = await adapters.perform(tool_call(upstream.url, READ), Sink())
        assert read(outcome)["body"] == {"a": 1}
        assert upstream.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("kind", ["endless", "gzip"])
async def test_memory_stays_bounded(adapters: Adapters, kind: str) -> None:
    bomb = gzip.compress(bytes(16 * 1024 * 1024)) * 16 if kind == "gzip" else b""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.begin("application/json", Content_Encoding="gzip" if bomb else "identity")
        if bomb:
            await peer.chunk(bomb)
            await peer.end()
        while not bomb:
            await peer.chunk(b" " * 65_000)

    async with Upstream(script) as upstream:
        tracemalloc.start()
        outcome = await adapters.perform(tool_call(upstream.url, WRITE, seconds=20), Sink())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert outcome.status is UNKNOWN and "larger" in (outcome.detail or "")
        assert peak < 10 * 1024 * 1024


@pytest.mark.invariant(8)
async def test_an_echo_of_the_credential_is_redacted(adapters: Adapters) -> None:
    user, password = "agent@example.com", "p4ss/w0rd+xyz"
    secret = f"{user}:{password}"
    encoded = base64.b64encode(secret.encode()).decode()
    escaped = "".join(f"\\u{ord(char):04x}" for char in secret)
    echoes = [
        (f'{{"authorization":"Basic {encoded}"}}'.encode(), "application/json"),
        (f'{{"x":"{escaped}"}}'.encode(), "application/json"),
        (f"your password is {password}".encode(), "text/plain"),
        (secret.encode().hex().encode(), "text/plain"),
        (b"\xff\xfe" + secret.encode() + b"\xff", "application/octet-stream"),
    ]
    for body, content_type in echoes:
        for status in (200, 400):
            async with Upstream(answering(status, body, content_type)) as upstream:
                auth = AuthSpec(secret="s", scheme="basic")
                outcome = await adapters.perform(
                    tool_call(upstream.url, READ, auth=auth, secret=secret), Sink()
                )
                text = shown(outcome)
                assert "redacted" in text or b"redacted" in base64.b64decode(read(outcome)["body_base64"])
                for hidden in (password, encoded, secret.encode().hex()):
                    assert hidden not in text


async def test_labels(adapters: Adapters) -> None:
    async with Upstream(answering(200)) as upstream:
        assert (await adapters.perform(tool_call(upstream.url, READ), Sink())).labels == {"pii"}
        fetch = tool_call(upstream.url, FETCH, f'{{"url":"{upstream.url}/"}}'.encode())
        assert (await adapters.perform(fetch, Sink())).labels == {UNTRUSTED}


# -------------------------------------------------------------------------------------------- redirects


def redirecting(location: str, status: int = 302) -> Script:
    return answering(status, b"", Location=location)


async def test_a_read_follows_within_the_allow_list_and_leaves_its_credential_behind(
    adapters: Adapters,
) -> None:
    async with (
        Upstream(answering(200, b'{"there":true}')) as target,
        Upstream(redirecting(f"{target.url}/moved?x=1")) as origin,
    ):
        call = tool_call(origin.url, READ, allowed_hosts=(f"127.0.0.1:{target.port}",))
        outcome = await adapters.perform(call, Sink())
        assert outcome.status is OK and read(outcome)["body"] == {"there": True}
        assert origin.requests[0].headers["authorization"]
        assert "authorization" not in target.requests[0].headers
        assert target.requests[0].target == "/moved?x=1"


async def test_within_one_origin_the_credential_goes_along(adapters: Adapters) -> None:
    async def script(peer: Peer) -> None:
        while (request := await peer.read_request()) is not None:
            if request.target == "/end":
                await peer.reply(200)
            else:
                await peer.reply(308, b"", Location="/end")

    async with Upstream(script) as upstream:
        assert (await adapters.perform(tool_call(upstream.url, READ), Sink())).status is OK
        assert [bool(r.headers.get("authorization")) for r in upstream.requests] == [True, True]


async def test_a_credential_that_was_left_behind_stays_so(adapters: Adapters) -> None:
    """Back at the first origin by way of another, the request is the other's."""

    async def script(peer: Peer) -> None:
        while (request := await peer.read_request()) is not None:
            if request.target == "/back":
                await peer.reply(200)
            else:
                await peer.reply(302, b"", Location=away)

    async with Upstream(script) as origin, Upstream(redirecting(f"{origin.url}/back")) as other:
        away = other.url + "/"
        call = tool_call(origin.url, READ, allowed_hosts=(f"127.0.0.1:{other.port}",))
        assert (await adapters.perform(call, Sink())).status is OK
        assert "authorization" not in origin.requests[1].headers


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:1/",
        "http://2130706433/",
        "http://[::ffff:127.0.0.1]:1/",
        "http://localhost/",
        "file:///etc/passwd",
        "//evil.example/",
        "http://user@127.0.0.1/",
        "http://127.0.0.1\\@evil.example/",
        "gopher://127.0.0.1:6379/_x",
    ],
)
async def test_a_redirect_out_of_the_list_is_not_followed(adapters: Adapters, location: str) -> None:
    async with Upstream(redirecting(location)) as upstream:
        outcome = await adapters.perform(tool_call(upstream.url, READ), Sink())
        assert outcome.status is FAILED and outcome.http_status == 302 and outcome.detail
        assert len(upstream.requests) == 1


async def test_redirects_are_counted(adapters: Adapters) -> None:
    async with Upstream(redirecting("/again")) as upstream:
        outcome = await adapters.perform(tool_call(upstream.url, READ, redirects_max=2), Sink())
        assert outcome.status is FAILED and "redirects" in (outcome.detail or "")
        assert len(upstream.requests) == 3


async def test_a_mutation_never_follows(adapters: Adapters) -> None:
    for status in (301, 302, 303, 307, 308):
        for spec in (HttpActionSpec(risk="write", method=method, path="/x") for method in METHODS):
            async with Upstream(redirecting("/again", status)) as upstream:
                await adapters.perform(tool_call(upstream.url, spec), Sink())
                assert len(upstream.requests) == 1


async def test_a_destination_that_policy_decided_on_is_not_redirected_away_from(adapters: Adapters) -> None:
    async with (
        Upstream(answering(200)) as target,
        Upstream(redirecting(f"http://localhost:{target.port}/")) as origin,
    ):
        call = tool_call(
            origin.url,
            FETCH,
            f'{{"url":"{origin.url}/"}}'.encode(),
            destination="127.0.0.1",
            allowed_hosts=(f"localhost:{target.port}",),
        )
        outcome = await adapters.perform(call, Sink())
        assert outcome.status is FAILED and "ask for that URL" in (outcome.detail or "")
        assert target.connections == 0


@pytest.mark.invariant(4)
async def test_a_switch_between_two_hops_stops_the_second(adapters: Adapters) -> None:
    async with Upstream(redirecting("/again")) as upstream:
        outcome = await adapters.perform(tool_call(upstream.url, READ, guard=Shut(after=1)), Sink())
        assert outcome.status is FAILED and "lapsed" in (outcome.detail or "")
        assert len(upstream.requests) == 1


async def test_a_fetch_carries_no_credential_away_from_home(adapters: Adapters) -> None:
    async with Upstream(answering(200)) as home, Upstream(answering(200)) as away:
        for url in (home.url, away.url):
            body = f'{{"url":"{url}/page"}}'.encode()
            call = tool_call(home.url, FETCH, body, allowed_hosts=(f"127.0.0.1:{away.port}",))
            assert (await adapters.perform(call, Sink())).status is OK
        assert "authorization" in home.requests[0].headers
        assert "authorization" not in away.requests[0].headers


async def test_private_addresses_are_the_operators_to_grant(adapters: Adapters) -> None:
    async with Upstream(answering(200)) as upstream:
        for url in (
            upstream.url,
            f"http://localhost:{upstream.port}",
            f"http://[::ffff:7f00:1]:{upstream.port}",
        ):
            with pytest.raises(EgressDeniedError):
                await adapters.perform(tool_call(url, READ, allow_private=False), Sink())
        assert upstream.connections == 0

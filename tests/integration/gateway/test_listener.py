"""What anybody can send to the listener: foreign hosts, huge, slow and broken requests, and wrong ids."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from tests.support.fake_gate import ADMIN_KEY, settled
from tests.support.gateway import LiveGateway, read_answer, running_gateway, until, until_refused

from tenantry.core.action import Action, Outcome, OutcomeStatus
from tenantry.core.ids import TenantId
from tenantry.core.quota import Usage
from tenantry.gate.context import ActionResult, RunContext
from tenantry.gate.ports import Emit
from tenantry.gateway.limits import DoorLimits

CHAT = "/v1/chat/completions"
ACTIONS = "/api/v1/actions"
MEBIBYTE = 1024 * 1024
OK = Outcome(OutcomeStatus.OK, b"{}", Usage(), http_status=200)


async def test_health_readiness_and_keys(gateway: LiveGateway) -> None:
    assert (await gateway.request("GET", "/healthz", token=None)).status == 200
    assert (await gateway.request("GET", "/readyz", token=None)).status == 200
    gateway.is_ready = False
    assert (await gateway.request("GET", "/readyz", token=None)).status == 503
    keys = await gateway.request("GET", "/.well-known/jwks.json", token=None)
    assert keys.json() == {"keys": [{"kty": "OKP"}]}


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "",
        "127.0.0.1",
        "127.0.0.1:1",
        "gateway.test.evil.test",
        "gateway.test:",
        "gateway.test:x",
    ],
)
async def test_foreign_hosts_are_refused(gateway: LiveGateway, host: str) -> None:
    for path in ("/healthz", CHAT, "/api/v1/tenants", "/nothing"):
        answer = await gateway.request("GET", path, headers={"Host": host})
        assert answer.status == 421
    assert gateway.gate.identified == 0


async def test_a_host_without_a_port_in_the_list_is_answered_at_any(gateway: LiveGateway) -> None:
    for host in ("gateway.test", "GATEWAY.test:443", "gateway.test:8080"):
        assert (await gateway.request("GET", "/healthz", headers={"Host": host})).status == 200


async def test_foreign_origins_are_refused(gateway: LiveGateway) -> None:
    for origin in ("http://evil.test", "null", f"{gateway.url}", ""):
        answer = await gateway.request("GET", "/healthz", headers={"Origin": origin})
        assert answer.status == 403
    ours = await gateway.request("GET", "/healthz", headers={"Origin": "http://console.test"})
    assert ours.status == 200


@pytest.mark.parametrize("name", ["Host", "Authorization", "Idempotency-Key", "Origin"])
async def test_a_header_that_counts_stands_once(gateway: LiveGateway, name: str) -> None:
    head = gateway.head("GET", "/v1/models").decode()
    value = f"127.0.0.1:{gateway.port}" if name == "Host" else "Bearer run_acme_1"
    head = head.replace("\r\n\r\n", f"\r\n{name}: {value}\r\n{name}: {value}\r\n\r\n")
    reader, writer = await gateway.connect()
    writer.write(head.encode())
    assert (await read_answer(reader)).status == 400
    writer.close()


async def test_paths_and_methods(gateway: LiveGateway) -> None:
    for path in (
        "/",
        "/v1",
        "/v1/embeddings",
        "/v1/chat/completions/",
        "/mcp",
        "/api/v2",
        "/api/v1x",
        "/%2e%2e/x",
    ):
        assert (await gateway.request("GET", path)).status == 404
    wrong = await gateway.request("GET", CHAT)
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert (await gateway.request("DELETE", "/v1/models/x")).status == 405
    head = await gateway.request("GET", "/healthz", headers={"X": "a" * 60_000})
    assert head.status == 200


async def test_wrong_and_foreign_ids_are_told_in_the_same_bytes(gateway: LiveGateway) -> None:
    body = b'{"state":"succeeded"}'
    answers = [
        await gateway.request("POST", f"/api/v1/runs/{run}/finish", body)
        for run in ("run_2", "run_other_1", "x" * 64, "x" * 65, "..", "%00", "a%20b", "%C3%A9")
    ]
    assert {answer.status for answer in answers} == {404}
    assert len({answer.body for answer in answers}) == 1
    assert {len(answer.headers["tenantry-request-id"]) for answer in answers} == {36}
    assert {tuple(sorted(answer.headers)) for answer in answers} == {tuple(sorted(answers[0].headers))}


@pytest.mark.parametrize("path", [CHAT, ACTIONS, "/api/v1/runs", "/api/v1/runs/run_1/finish"])
@pytest.mark.parametrize(
    "token", [None, "", "x", "run_nobody_1", "é", "a" * 20_000, "tnk_000000000009_" + "k" * 43]
)
async def test_bad_credentials_are_told_alike(gateway: LiveGateway, path: str, token: str | None) -> None:
    answer = await gateway.request("POST", path, b"{}", token=token)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    members = answer.json()
    assert (members["type"], members["title"]) == (
        "urn:tenantry:problem:unauthenticated",
        "no valid credential",
    )


async def test_an_address_that_guesses_waits(gateway: LiveGateway) -> None:
    statuses = [(await gateway.request("GET", "/v1/models", token="x")).status for _ in range(30)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    identified = gateway.gate.identified
    answer = await gateway.request("GET", "/v1/models", token="y")
    assert int(answer.headers["retry-after"]) >= 1
    assert gateway.gate.identified == identified


async def test_100_mib_are_refused_at_their_head(gateway: LiveGateway) -> None:
    for path, token in ((CHAT, "run_acme_1"), (ACTIONS, "run_acme_1"), ("/api/v1/runs", ADMIN_KEY)):
        reader, writer = await gateway.connect()
        head = gateway.head("POST", path, b"", {"Content-Length": str(100 * MEBIBYTE)}, token=token)
        writer.write(head)
        answer = await read_answer(reader)
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
        writer.close()
    assert gateway.gate.actions == []


async def test_a_client_that_sends_100_mib_all_the_same_learns_why(gateway: LiveGateway) -> None:
    reader, writer = await gateway.connect()
    writer.write(gateway.head("POST", CHAT, b"", {"Content-Length": str(100 * MEBIBYTE)}))
    sent = 0

    async def send() -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            for _ in range(100):
                writer.write(b"x" * MEBIBYTE)
                await writer.drain()
                sent += 1

    sender = asyncio.create_task(send())
    answer = await read_answer(reader)
    assert answer.status == 413
    await sender
    assert sent < 50
    writer.close()


async def test_chunks_beyond_the_cap_are_refused_as_they_come() -> None:
    async with running_gateway(DoorLimits(model_body_bytes_max=100_000)) as gateway:
        reader, writer = await gateway.connect()
        head = gateway.head("POST", CHAT, None, {"Transfer-Encoding": "chunked"})
        writer.write(head + (b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 5)
        assert (await read_answer(reader)).status == 413
        writer.close()
        assert gateway.entrance.bodies.held(TenantId("acme")) == 0


async def test_a_body_of_exactly_the_cap_is_read() -> None:
    async with running_gateway(DoorLimits(model_body_bytes_max=300_000)) as gateway:
        opening, ending = b'{"model":"small","messages":[],"user":"', b'"}'
        body = opening + b"x" * (300_000 - len(opening) - len(ending)) + ending
        assert (await gateway.request("POST", CHAT, body)).status == 200
        assert (await gateway.request("POST", CHAT, body + b" ")).status == 413
        chunked = gateway.head("POST", CHAT, None, {"Transfer-Encoding": "chunked"})
        reader, writer = await gateway.connect()
        writer.write(chunked + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
        assert (await read_answer(reader)).status == 200
        writer.close()


async def test_slow_bodies_are_cut() -> None:
    async with running_gateway(DoorLimits(body_idle_ms=100, body_deadline_ms=300)) as gateway:
        reader, writer = await gateway.connect()
        writer.write(gateway.head("POST", CHAT, b"x" * 1000) + b"{")
        assert (await read_answer(reader)).status == 408
        writer.close()
        reader, writer = await gateway.connect()
        writer.write(gateway.head("POST", CHAT, b"x" * 1000))

        async def drip() -> None:
            with contextlib.suppress(OSError):
                for _ in range(100):
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert (await read_answer(reader)).status == 408
        writer.close()
        await dripping
        assert gateway.entrance.shed.inflight(TenantId("acme")) == 0


async def test_a_client_that_goes_in_mid_body_leaves_nothing_behind(gateway: LiveGateway) -> None:
    _, writer = await gateway.connect()
    writer.write(gateway.head("POST", CHAT, b"x" * 200_000) + b"{" * 1000)
    tenant = TenantId("acme")
    await until(lambda: gateway.entrance.bodies.held(tenant) > 0)
    writer.transport.abort()
    await until(
        lambda: not gateway.entrance.bodies.held(tenant) and not gateway.entrance.shed.inflight(tenant)
    )
    assert gateway.gate.actions == []


async def test_expect_100_continue(gateway: LiveGateway) -> None:
    reader, writer = await gateway.connect()
    body = b'{"model":"small","messages":[]}'
    writer.write(gateway.head("POST", CHAT, body, {"Expect": "100-continue"}))
    assert (await reader.readline()).startswith(b"HTTP/1.1 100")
    await reader.readline()
    writer.write(body)
    assert (await read_answer(reader)).status == 200
    writer.close()
    reader, writer = await gateway.connect()
    large = {"Expect": "100-continue", "Content-Length": str(100 * MEBIBYTE)}
    writer.write(gateway.head("POST", CHAT, b"", large))
    assert (await read_answer(reader)).status == 413
    writer.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /healthz HTTP/1.1\r\nHost: gateway.test\r\nX: a\x00b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: gateway.test\r\nX : a\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST /v1/models HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /v1/models HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: gateway.test\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 60_000,
        b"GET /" + b"a" * 400_000 + b" HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: gateway.test\r\nX: " + b"a" * 400_000,
    ],
    ids=range(11),
)
async def test_broken_http_is_refused_and_closed(gateway: LiveGateway, raw: bytes) -> None:
    reader, writer = await gateway.connect()
    for begin in range(0, len(raw), 20_000):
        writer.write(raw[begin : begin + 20_000])
        with contextlib.suppress(OSError):
            await writer.drain()
    async with asyncio.timeout(10):
        with contextlib.suppress(OSError):
            assert (await reader.read()).startswith(b"HTTP/1.1 4")
    writer.close()
    assert (await gateway.request("GET", "/healthz")).status == 200


async def test_endless_trailers_and_chunk_extensions_are_cut(gateway: LiveGateway) -> None:
    for filler in (b"0\r\n" + b"x: y\r\n" * 200_000, b"1;" + b"e=f;" * 200_000):
        reader, writer = await gateway.connect()
        writer.write(gateway.head("POST", CHAT, None, {"Transfer-Encoding": "chunked"}))
        with contextlib.suppress(OSError):
            for begin in range(0, len(filler), 60_000):
                writer.write(filler[begin : begin + 60_000])
                await writer.drain()
        async with asyncio.timeout(10):
            with contextlib.suppress(OSError):
                await reader.read()
        writer.close()
    assert gateway.gate.actions == []


async def test_a_flood_of_pipelined_requests_is_cut(gateway: LiveGateway) -> None:
    reader, writer = await gateway.connect()
    with contextlib.suppress(OSError):
        writer.write(gateway.head("GET", "/healthz", token=None) * 2000)
        await writer.drain()
    async with asyncio.timeout(10):
        with contextlib.suppress(OSError):
            assert len(await reader.read()) < MEBIBYTE
    writer.close()


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"", "$"),
        (b"[]", "$"),
        (b"{", "$"),
        (b'{"model":"small","messages":[{"content":"a\\u0000"}]}', "$.messages[0].content"),
        (b'{"model":"small","messages":[{"content":"a\\ud800"}]}', "$.messages[0].content"),
        (b'{"model":"small","messages":[],"user":"\\udc00x"}', "$.user"),
        (b'{"model":"small","messages":[],"x":{"a\\u0000":1}}', "$.x"),
        (b'{"model":"small","messages":[],"x":"\xff"}', "$"),
        (b'{"model":"small","messages":[],"x":"\xed\xa0\x80"}', "$"),
        (b'{"model":"small","messages":[],"x":"\x00"}', "$"),
        (b'{"model":"small","messages":[],"x":NaN}', "$"),
        (b'{"model":"small","messages":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "$"),
        (b'{"model":7,"messages":[]}', "$.model"),
        (b'{"messages":[]}', "$.model"),
        (b'{"model":"small"}', "$.messages"),
        (b'{"model":"small","messages":["x"]}', "$.messages[0]"),
        (b'{"model":"small","messages":[],"n":0}', "$.n"),
        (b'{"model":"small","messages":[],"n":9}', "$.n"),
        (b'{"model":"small","messages":[],"n":1e400}', "$.n"),
        (b'{"model":"small","messages":[],"max_tokens":0}', "$.max_tokens"),
        (b'{"model":"small","messages":[],"max_tokens":1.5}', "$.max_tokens"),
        (b'{"model":"small","messages":[],"prediction":{}}', "$.prediction"),
        (b'{"model":"small","messages":[],"service_tier":"priority"}', "$.service_tier"),
        (b'{"model":"small","messages":[],"stream":true,"stream_options":7}', "$.stream_options"),
    ],
)
async def test_bad_input_names_its_place(gateway: LiveGateway, body: bytes, path: str) -> None:
    answer = await gateway.request("POST", CHAT, body)
    assert answer.status == 400
    value = json.loads(answer.body)
    assert value["path"] == path
    assert value["error"]["type"] == "invalid_request_error"
    assert gateway.gate.actions == []


async def test_other_media_are_refused(gateway: LiveGateway) -> None:
    for headers in ({"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}):
        for path in (CHAT, ACTIONS):
            assert (await gateway.request("POST", path, b"{}", headers)).status == 415
    fine = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert (await gateway.request("POST", CHAT, b'{"model":"small","messages":[]}', fine)).status == 200


async def test_what_is_over_the_cap_is_shed_and_counted() -> None:
    async with running_gateway(DoorLimits(tenant_inflight_max=2)) as gateway:
        go_on = asyncio.Event()

        async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
            del context, emit
            await go_on.wait()
            return settled(action, OK)

        gateway.gate.perform = perform
        body = b'{"requested_action":"ticket.update","target":{"system":"zendesk","record_id":"1"}}'
        held = [asyncio.create_task(gateway.request("POST", ACTIONS, body)) for _ in range(2)]
        await until(lambda: gateway.gate.running >= 2)
        refused = await gateway.request("POST", ACTIONS, body)
        assert (refused.status, refused.headers["tenantry-verdict"]) == (429, "throttled")
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["meter"] == {"level": "tenant", "subject_id": "acme", "name": "requests"}
        assert gateway.gate.shed == ["acme"]
        other = asyncio.create_task(gateway.request("POST", ACTIONS, body, token="run_other_1"))
        await until(lambda: gateway.gate.running >= 3)
        go_on.set()
        await asyncio.gather(*held, other)


async def test_slow_uploads_of_one_tenant_do_not_stand_before_another() -> None:
    limits = DoorLimits(bodies_bytes_max=200_000, tenant_bodies_bytes_max=150_000, body_wait_ms=100)
    async with running_gateway(limits) as gateway:
        _, writer = await gateway.connect()
        writer.write(gateway.head("POST", CHAT, b"x" * 150_000))
        await until(lambda: gateway.entrance.bodies.held(TenantId("acme")) > 0)
        opening = b'{"model":"small","messages":[],"user":"'
        small, large = opening + b'"}', opening + b"x" * 100_000 + b'"}'
        assert (await gateway.request("POST", CHAT, small, token="run_other_1")).status == 200
        assert (await gateway.request("POST", CHAT, large, token="run_other_1")).status == 429
        assert (await gateway.request("POST", CHAT, small)).status == 429
        writer.transport.abort()


async def test_a_stop_lets_what_is_open_finish() -> None:
    async with running_gateway() as gateway:
        began, go_on = asyncio.Event(), asyncio.Event()

        async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
            del context, emit
            began.set()
            await go_on.wait()
            return settled(action, OK)

        gateway.gate.perform = perform
        body = b'{"requested_action":"ticket.update","target":{"system":"zendesk","record_id":"1"}}'
        open_request = asyncio.create_task(gateway.request("POST", ACTIONS, body))
        await began.wait()
        gateway.stop.set()
        await until(lambda: gateway.app.draining)
        await until_refused(gateway)
        go_on.set()
        assert (await open_request).status == 200


async def test_heads_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenantry.gateway.connection.HEAD_S", 0.1)
    async with running_gateway() as gateway:
        for opening in (
            b"",
            b"GET /healthz HTTP/1.1\r\nHost: gat",
            gateway.head("GET", "/healthz") + b"GET /h",
        ):
            reader, writer = await gateway.connect()
            writer.write(opening)
            async with asyncio.timeout(8):
                await reader.read()
            writer.close()
        go_on = asyncio.Event()

        async def perform(context: RunContext, action: Action, emit: Emit) -> ActionResult:
            del context, emit
            await go_on.wait()
            return settled(action, OK)

        # A request that is being served is not a head that is late.
        gateway.gate.perform = perform
        body = b'{"requested_action":"ticket.update","target":{"system":"zendesk","record_id":"1"}}'
        asked = asyncio.create_task(gateway.request("POST", ACTIONS, body))
        await until(lambda: gateway.gate.running == 1)
        asyncio.get_running_loop().call_later(0.3, go_on.set)
        assert (await asked).status == 200

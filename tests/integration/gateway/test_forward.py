"""What the gateway forwards to control, over a real socket to a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from tests.support.gateway import LiveGateway, read_answer, running_gateway

from tenantry.gateway.limits import DoorLimits


class Control:
    """Echoes requests, streams events until its client leaves, and breaks off."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/events"):
            return await self._events(request)
        if request.path.endswith("/broken"):
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b"half")
            assert request.transport is not None
            request.transport.close()
            return response
        body = await request.read()
        told = {
            "method": request.method,
            "target": request.raw_path,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "bytes": len(body),
        }
        headers = {"Connection": "x-hop", "X-Hop": "1", "X-End": "2", "Set-Cookie": "a=b"}
        return web.json_response(told, status=207, headers=headers)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.left.set()
            raise
        return response


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
async def gateway(control: Control, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_route("*", "/{tail:.*}", control.answer)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    path = str(tmp_path / "control.sock")
    await web.UnixSite(runner, path).start()
    limits = DoorLimits(forward_body_bytes_max=1_000_000, forwards_max=2)
    async with running_gateway(limits, control_socket=path) as live:
        yield live
        assert live.faults == []
    await runner.cleanup()


async def test_requests_go_on_as_they_came(gateway: LiveGateway) -> None:
    target = "/api/v1/tenants/a%2Fb/..%2f/x?q=%20+%41&q=2"
    headers = {"X-One": "1", "Connection": "x-gone", "X-Gone": "1", "Tenantry-Peer": "6.6.6.6"}
    answer = await gateway.request("PATCH", target, b"{}", headers)
    told = json.loads(answer.body)
    assert (answer.status, told["method"], told["target"], told["bytes"]) == (207, "PATCH", target, 2)
    seen = told["headers"]
    assert (seen["x-one"], seen["authorization"]) == ("1", "Bearer run_acme_1")
    assert seen["host"] == f"127.0.0.1:{gateway.port}"
    assert seen["tenantry-peer"] == "127.0.0.1"
    assert not {"x-gone", "user-agent", "accept-encoding"} & set(seen)
    assert answer.headers["x-end"] == "2"
    assert not {"x-hop", "connection"} & set(answer.headers)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics"),
        ("GET", "/api/openapi.json"),
        ("GET", "/console"),
        ("GET", "/console/"),
        ("GET", "/api/v1/runs"),
        ("GET", "/api/v1/actions"),
        ("GET", "/api/v1/runs/run_1/finish"),
        ("POST", "/api/v1/tenants/acme/kill"),
        ("OPTIONS", "/api/v1/x"),
    ],
)
async def test_what_is_forwarded(gateway: LiveGateway, method: str, path: str) -> None:
    assert (await gateway.request(method, path, token=None)).status == 207
    assert gateway.gate.identified == 0


async def test_an_escaped_door_is_still_a_door(gateway: LiveGateway) -> None:
    assert (await gateway.request("POST", "/api/v1/%61ctions", b"{}", token=None)).status == 401


async def test_bodies_are_streamed_and_bounded(gateway: LiveGateway) -> None:
    answer = await gateway.request("POST", "/api/v1/fleet", b"x" * 900_000)
    assert json.loads(answer.body)["bytes"] == 900_000
    assert (await gateway.request("POST", "/api/v1/fleet", b"x" * 1_000_001)).status == 413
    reader, writer = await gateway.connect()
    chunk = b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
    writer.write(gateway.head("POST", "/api/v1/fleet", None, {"Transfer-Encoding": "chunked"}))
    with contextlib.suppress(OSError):
        for _ in range(11):
            writer.write(chunk)
            await writer.drain()
    assert (await read_answer(reader)).status == 413
    writer.close()


async def test_events_come_at_once_and_end_with_their_client(gateway: LiveGateway, control: Control) -> None:
    reader, writer = await gateway.connect()
    writer.write(gateway.head("GET", "/api/v1/events"))
    async with asyncio.timeout(5):
        await reader.readuntil(b"data: 1\n\n")
        writer.transport.abort()
        await control.left.wait()


async def test_as_many_as_may_be_forwarded(gateway: LiveGateway) -> None:
    held = []
    for _ in range(2):
        reader, writer = await gateway.connect()
        writer.write(gateway.head("GET", "/api/v1/events"))
        await reader.readuntil(b"data: 1\n\n")
        held.append(writer)
    answer = await gateway.request("GET", "/metrics")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert (await gateway.request("GET", "/v1/models")).status == 200
    for writer in held:
        writer.transport.abort()


async def test_half_an_answer_is_not_made_to_look_whole(gateway: LiveGateway) -> None:
    reader, writer = await gateway.connect()
    writer.write(gateway.head("GET", "/api/v1/broken"))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await read_answer(reader)
    writer.close()


async def test_control_away() -> None:
    async with running_gateway() as gateway:
        answer = await gateway.request("GET", "/api/v1/tenants")
        assert answer.status == 503
        assert answer.json()["type"] == "urn:tenantry:problem:control_away"
        assert (await gateway.request("POST", "/api/v1/tenants", b"{}")).status == 503

"""A served control plane and a client that sends what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from tests.integration.control.support import VALUES, fleet_file
from tests.support.tenants import ROOT_KEY

from tenantry.api.app import ControlApp
from tenantry.api.idempotency import Answers
from tenantry.api.metrics import Metrics
from tenantry.api.serve import serve
from tenantry.control.services import Services
from tenantry.core.clock import SystemClock
from tenantry.identity.operator_keys import ensure_operator_key
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import PoolSizes, Shard
from tenantry.storage.directory import Directory
from tenantry.storage.scope import Scopes
from tenantry.switches.instance import Instance

CLOCK = SystemClock()


@dataclasses.dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever was answered
        return msgspec.json.decode(self.body)


@dataclasses.dataclass
class Api:
    """`url` is the TCP listener, `sock` the local one; `operator` is the operator's key."""

    url: str
    sock: Path
    operator: str
    tcp: aiohttp.ClientSession
    local: aiohttp.ClientSession
    faults: list[Exception]
    target: DatabaseTarget

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = "operator",
        over: str = "tcp",
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        sent = dict(headers or {})
        if key is not None:
            sent["authorization"] = f"Bearer {self.operator if key == 'operator' else key}"
        data = raw
        if body is not None:
            data = msgspec.json.encode(body)
        if data is not None:
            sent.setdefault("content-type", "application/json")
        session = self.tcp if over == "tcp" else self.local
        base = self.url if over == "tcp" else "http://localhost"
        async with session.request(method, base + path, data=data, headers=sent) as response:
            got = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, got, await response.read())

    async def apply(self) -> None:
        reply = await self.send("POST", "/api/v1/fleet/apply", {"fleet": fleet_file(), "values": VALUES})
        assert reply.status == 200, reply.body

    async def key(self, tenant: str, role: str = "tenant_admin", **fields: object) -> str:
        """A new key of a tenant."""
        reply = await self.send("POST", f"/api/v1/tenants/{tenant}/keys", {"role": role, **fields})
        assert reply.status == 201, reply.body
        token: str = reply.json["token"]
        return token


@contextlib.asynccontextmanager
async def open_api(target: DatabaseTarget, folder: Path) -> AsyncIterator[Api]:
    shard = await Shard.open(target, ROOT_KEY, PoolSizes(gate=0, app=4, platform=2, control=3), CLOCK)
    instance = Instance(await shard.control_connection(), CLOCK, role="control")
    await instance.start()
    platform = Scopes(shard, CLOCK).platform(reason="start", operator="test")
    async with platform:
        await ensure_operator_key(platform, Directory(shard), folder / "operator.key", CLOCK)
    services = await Services.open(shard, CLOCK, instance_id=instance.instance_id)
    faults: list[Exception] = []
    metrics, answers = Metrics(lambda: {"reaper": 0.5}), Answers(CLOCK)
    tcp_listener = socket.create_server(("127.0.0.1", 0))
    port = tcp_listener.getsockname()[1]
    unix_listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = folder / "c.sock"
    unix_listener.bind(str(path))
    unix_listener.listen(16)

    def app(hosts: list[str] | None) -> ControlApp:
        return ControlApp(
            services,
            metrics,
            answers,
            CLOCK,
            hosts=hosts,
            is_ready=lambda: instance.ready,
            on_fault=lambda error, _request_id: faults.append(error),
        )

    stop, started = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(
        serve(
            [(app(["127.0.0.1", "localhost"]), tcp_listener), (app(None), unix_listener)],
            stop,
            started=started,
        )
    )
    await started.wait()
    try:
        async with (
            aiohttp.ClientSession() as tcp,
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as local,
        ):
            operator = (folder / "operator.key").read_text().strip()
            yield Api(f"http://127.0.0.1:{port}", path, operator, tcp, local, faults, target)
    finally:
        stop.set()
        await serving
        await instance.stop()
        await shard.close()
    assert not faults, faults

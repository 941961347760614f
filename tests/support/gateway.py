"""A gateway over a fake gate, on a loopback port in the test's own loop; and raw HTTP to try it with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import msgspec

from tenantry.core.clock import SystemClock
from tenantry.gateway.app import GatewayApp, Site
from tenantry.gateway.body import BodyBudget
from tenantry.gateway.entrance import Entrance
from tenantry.gateway.limits import DoorLimits
from tenantry.gateway.serve import listen, serve
from tenantry.gateway.shed import Shed
from tenantry.identity.limiter import FailedAuthLimiter
from tests.support.fake_gate import FakeGate

TOKEN = "run_acme_1"
DEFAULT_LIMITS = DoorLimits()


class RawAnswer(msgspec.Struct, frozen=True):
    """An answer as it came over the wire; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        value: dict[str, object] = msgspec.json.decode(self.body)
        return value


class LiveGateway:
    """``faults`` are the errors that nobody foresaw; a test that expects none leaves it empty."""

    def __init__(self, port: int, gate: FakeGate, app: GatewayApp, entrance: Entrance) -> None:
        self.port = port
        self.gate = gate
        self.app = app
        self.entrance = entrance
        self.is_ready = True
        self.faults: list[Exception] = []
        self.stop = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        token: str | None = TOKEN,
    ) -> RawAnswer:
        """One request on a connection of its own."""
        reader, writer = await self.connect()
        try:
            writer.write(self.head(method, path, body, headers, token=token) + (body or b""))
            return await read_answer(reader)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def head(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        token: str | None = TOKEN,
    ) -> bytes:
        """The bytes of a request's head."""
        fields = {"Host": f"127.0.0.1:{self.port}"}
        if token is not None:
            fields["Authorization"] = f"Bearer {token}"
        if body is not None:
            fields |= {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        fields |= headers or {}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def read_answer(reader: asyncio.StreamReader) -> RawAnswer:
    """Read one whole answer, by length, by chunks or to the end."""
    async with asyncio.timeout(20):
        status_line = await reader.readline()
        headers: dict[str, str] = {}
        while (line := await reader.readline()) not in {b"\r\n", b""}:
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body = await _read_chunks(reader)
        else:
            body = await reader.read()
        return RawAnswer(int(status_line.split()[1]), headers, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while size := int((await reader.readline()).strip() or b"0", 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


@contextlib.asynccontextmanager
async def running_gateway(
    limits: DoorLimits = DEFAULT_LIMITS, *, control_socket: str = "/nonexistent/control.sock"
) -> AsyncIterator[LiveGateway]:
    """Serve until the block ends."""
    gate = FakeGate()
    clock = SystemClock()
    entrance = Entrance(
        gate=gate,
        keys=gate,
        tokens=gate,
        scopes=gate,
        failures=FailedAuthLimiter(clock),
        shed=Shed(clock, limits),
        bodies=BodyBudget(limits),
        limits=limits,
        clock=clock,
    )
    listener = listen("127.0.0.1", 0)
    port: int = listener.getsockname()[1]
    site = Site(
        hosts=(f"127.0.0.1:{port}", "gateway.test"),
        origins=("http://console.test",),
        public_url=f"http://127.0.0.1:{port}",
        control_socket=control_socket,
    )
    app = GatewayApp(
        entrance,
        site,
        is_ready=lambda: live.is_ready,
        on_fault=lambda error, _: live.faults.append(error),
    )
    live = LiveGateway(port, gate, app, entrance)
    started = asyncio.Event()
    server = asyncio.create_task(serve(app, listener, live.stop, started=started, drain_s=5))
    try:
        async with asyncio.timeout(10):
            await started.wait()
        yield live
    finally:
        live.stop.set()
        await server


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until the condition holds; counters of the doors have no signal to wait on."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def until_refused(gateway: LiveGateway) -> None:
    """Connect until nobody listens any more."""
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await gateway.connect()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                # It stood in the backlog when the listener closed.
                continue
            writer.close()
            await asyncio.sleep(0)

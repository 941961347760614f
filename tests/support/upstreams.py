"""Upstreams on loopback that do exactly what a test says, byte by byte, and count what reached them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Self

import msgspec


class Request(msgspec.Struct):
    """One request as it was read; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Peer:
    """One connection as the upstream sees it."""

    def __init__(
        self, upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.upstream = upstream
        self.reader = reader
        self.writer = writer

    async def read_request(self) -> Request | None:
        """The next request, or None when the client closed."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if isinstance(error, asyncio.IncompleteReadError):
                self.upstream.bytes_received += len(error.partial)
            return None
        self.upstream.bytes_received += len(head)
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        self.upstream.bytes_received += len(body)
        method, target, _ = first.split(" ")
        request = Request(method, target, headers, body)
        self.upstream.requests.append(request)
        self.upstream.arrived.set()
        return request

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(
        self, status: int, body: bytes = b"", content_type: str = "application/json", **headers: str
    ) -> None:
        """A whole answer with its length."""
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", f"Content-Type: {content_type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    async def begin(self, content_type: str = "text/event-stream", status: int = 200, **headers: str) -> None:
        """The head of a chunked answer."""
        lines = [f"HTTP/1.1 {status} X", "Transfer-Encoding: chunked", f"Content-Type: {content_type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def until_closed(self) -> None:
        """Read until the client has closed, whichever way."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        self.upstream.closed_at = asyncio.get_running_loop().time()
        self.upstream.closed.set()

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class Upstream:
    """A server whose connections each run `script`; the connection closes when it returns."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: set[asyncio.WriteTransport] = set()
        self.connections = 0
        self.bytes_received = 0
        self.requests: list[Request] = []
        self.arrived = asyncio.Event()
        self.closed = asyncio.Event()
        self.closed_at = 0.0
        self.faults: list[BaseException] = []

    @property
    def port(self) -> int:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        assert isinstance(port, int)
        return port

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**20, ssl=self._tls)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        assert self._server is not None
        # A connection that is being accepted while its server closes is one that nobody closes.
        for _ in range(5):
            await asyncio.sleep(0)
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for transport in self._transports:
            transport.abort()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not self.faults, self.faults

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._transports.add(writer.transport)
        task = asyncio.get_running_loop().create_task(self._serve(Peer(self, reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, peer: Peer) -> None:
        try:
            await self._script(peer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except BaseException as fault:  # noqa: BLE001 shown by the test that made it
            self.faults.append(fault)
        finally:
            peer.writer.close()
            if peer.writer.transport.get_write_buffer_size() == 0:
                self._transports.discard(peer.writer.transport)


def answering(
    status: int, body: bytes = b"{}", content_type: str = "application/json", **headers: str
) -> Script:
    """A script that answers every request alike, on connections that stay open."""

    async def script(peer: Peer) -> None:
        while await peer.read_request() is not None:
            await peer.reply(status, body, content_type, **headers)

    return script

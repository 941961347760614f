"""One kept connection that speaks just enough HTTP/1.1 to time an answer (RFC 9112): the client must cost nothing."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple, Self


class Timed(NamedTuple):
    """Milliseconds from the request's first byte to the body's first and last."""

    first_ms: float
    whole_ms: float
    body: bytes


class Exchange:
    """Requests one after the other on one connection. Made by `open`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str) -> None:
        self._reader = reader
        self._writer = writer
        self._authority = authority

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        """Connect."""
        reader, writer = await asyncio.open_connection(host, port)
        return cls(reader, writer, f"{host}:{port}")

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def post(self, path: str, bearer: str, body: bytes) -> Timed:
        """Send JSON and read the whole answer. Errors: `AssertionError` for any status but 200."""
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._authority}\r\nauthorization: Bearer {bearer}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        started = time.perf_counter()
        self._writer.write(head.encode("ascii") + body)
        status, _, fields = (await self._reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in fields.split(b"\r\n") if line)
        }
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            first, answer = await self._read_chunks()
        else:
            answer = await self._reader.readexactly(int(headers[b"content-length"]))
            first = time.perf_counter()
        ended = time.perf_counter()
        assert status.split()[1] == b"200", f"{status!r}: {answer[:300]!r}"
        return Timed((first - started) * 1000, (ended - started) * 1000, answer)

    async def _read_chunks(self) -> tuple[float, bytes]:
        parts: list[bytes] = []
        first = 0.0
        while True:
            size = int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16)
            data = await self._reader.readexactly(size + 2)
            if size == 0:
                return first, b"".join(parts)
            first = first or time.perf_counter()
            parts.append(data[:-2])

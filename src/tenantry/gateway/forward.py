"""What comes in at the gateways' port and control answers (CONTRACT 'HTTP').

A plain relay over control's socket, streaming both ways and bounded: in bodies, in time, and in how many at
once, so that people's requests never use up what the doors need. Paths go on as they came; control decides on
them. The client's address goes along in `PEER_HEADER`, which nobody outside can set.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from tenantry.gateway.body import ClientGoneError, declared_size, too_large
from tenantry.web.problems import Problem, ProblemError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tenantry.gateway.exchange import Exchange
    from tenantry.gateway.limits import DoorLimits

PEER_HEADER: Final = b"tenantry-peer"
# RFC 9110 §7.6.1, and what this relay sets itself.
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
        PEER_HEADER,
    }
)
_OWN: Final = frozenset({"Accept", "Accept-Encoding", "Content-Type", "User-Agent"})
_RETRY_SOON: Final = ((b"retry-after", b"1"),)
_HEADER_BYTES_MAX: Final = 64 * 1024


class Forwarder:
    """One for a process; made inside its loop, `close` ends it."""

    def __init__(self, socket_path: str, limits: DoorLimits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.forwards_max)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(socket_path, limit=limits.forwards_max),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_OWN,
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=limits.forward_connect_ms / 1000,
                sock_read=limits.forward_silence_ms / 1000,
            ),
            max_line_size=_HEADER_BYTES_MAX,
            max_field_size=_HEADER_BYTES_MAX,
        )

    async def close(self) -> None:
        """Close the connections to control."""
        await self._session.close()

    async def forward(self, exchange: Exchange) -> None:
        """Relay one request and its answer.

        Raises `ProblemError` (503 where control does not answer), `ClientGoneError` where nobody waits any
        more.
        """
        if self._free.locked():
            raise _busy()
        declared_size(exchange, self._limits.forward_body_bytes_max)
        async with self._free:
            await _Relay(self._session, exchange, self._limits).run()


class _Relay:
    """One request on its way. ``_fault`` is what was wrong with the client's part of it."""

    def __init__(self, session: aiohttp.ClientSession, exchange: Exchange, limits: DoorLimits) -> None:
        self._session = session
        self._exchange = exchange
        self._limits = limits
        self._fault: Exception | None = None
        self._task: asyncio.Task[object] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def run(self) -> None:
        exchange = self._exchange
        url = _target(exchange)
        self._task = asyncio.current_task()
        data = None
        if exchange.is_body_read:
            self._watch()
        else:
            data = self._body()
        try:
            async with self._session.request(
                exchange.method, url, headers=_request_headers(exchange), data=data, allow_redirects=False
            ) as response:
                await self._answer(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if self._fault is not None and not exchange.is_started:
                raise self._fault from None
            if exchange.is_started:
                # Half an answer must not look like a whole one.
                raise ClientGoneError from error
            raise _away() from None
        except asyncio.CancelledError:
            if (
                self._task is not None
                and isinstance(self._fault, ClientGoneError)
                and not self._task.uncancel()
            ):
                raise self._fault from None
            raise
        finally:
            if self._watcher is not None:
                self._watcher.cancel()

    def _watch(self) -> None:
        """End the relay when the client leaves: control may have nothing to say for long, to nobody."""
        self._watcher = asyncio.create_task(self._leave_with_client())

    async def _leave_with_client(self) -> None:
        while (await self._exchange.receive())["type"] == "http.request":
            pass
        self._fault = ClientGoneError()
        if self._task is not None:
            self._task.cancel()

    async def _body(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        received = 0
        more = True
        while more:
            try:
                async with asyncio.timeout(self._limits.body_idle_ms / 1000):
                    message = await exchange.receive()
            except TimeoutError:
                problem = Problem(408, "body_too_slow", "the body did not arrive in time", closes=True)
                self._fault = ProblemError(problem)
                raise self._fault from None
            if message["type"] != "http.request":
                self._fault = ClientGoneError()
                raise self._fault
            body: bytes = message.get("body", b"")
            received += len(body)
            if received > self._limits.forward_body_bytes_max:
                self._fault = too_large(self._limits.forward_body_bytes_max)
                raise self._fault
            more = message.get("more_body", False)
            if body:
                yield body
        exchange.is_body_read = True
        self._watch()

    async def _answer(self, response: aiohttp.ClientResponse) -> None:
        exchange = self._exchange
        headers = _passed(response.raw_headers)
        if not exchange.is_body_read:
            headers.append((b"connection", b"close"))
        exchange.is_started = True
        await exchange.send({"type": "http.response.start", "status": response.status, "headers": headers})
        async for data in response.content.iter_any():
            await exchange.part(data, more=True)
        if self._watcher is not None:
            self._watcher.cancel()
        await exchange.part(b"", more=False)


def _target(exchange: Exchange) -> URL:
    """The same path and query at control, byte for byte."""
    raw_path: bytes = exchange.scope.get("raw_path") or exchange.path.encode()
    query: bytes = exchange.scope.get("query_string", b"")
    target = raw_path + (b"?" + query if query else b"")
    try:
        return URL("http://control" + target.decode("ascii"), encoded=True)
    except (UnicodeDecodeError, ValueError):
        raise ProblemError(Problem(400, "invalid_input", "the path is not valid")) from None


def _passed(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """End-to-end headers: without hop-by-hop ones and those that ``Connection`` names (RFC 9110 §7.6.1)."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {
        option.strip().lower()
        for name, value in pairs
        if name == b"connection"
        for option in value.split(b",")
    }
    # The date is the answering server's own.
    return [(name, value) for name, value in pairs if name not in _HOP_BY_HOP | named and name != b"date"]


def _request_headers(exchange: Exchange) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in _passed(exchange.scope["headers"]):
        headers.add(name.decode("latin-1"), value.decode("latin-1"))
    if exchange.peer is not None:
        headers[PEER_HEADER.decode()] = exchange.peer
    headers["Tenantry-Request-Id"] = exchange.request_id.decode()
    return headers


def _busy() -> ProblemError:
    title = "the gateway forwards as many requests as it may; control's own port stays open"
    return ProblemError(Problem(503, "forwarding_busy", title, "Try again.", headers=_RETRY_SOON))


def _away() -> ProblemError:
    title = "the control process does not answer"
    return ProblemError(Problem(503, "control_away", title, "Try again.", headers=_RETRY_SOON))

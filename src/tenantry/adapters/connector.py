"""Connections: guarded up to the first byte, pinned to checked addresses, pooled by tenant and upstream.

One request is an `Attempt`: waiting -> connected -> [guard] -> sent, or refused.

INVARIANT 4, 'after kill returned, nothing of that scope begins at the upstream', stands on this: the guard's
check and the first byte are one synchronous call. aiohttp returns from `connect` and then, where the
interpreter has no eager tasks (before 3.12), writes a request with a body from a task of its own, a turn of
the loop later; a check in `connect` would leave that turn open. So what `connect` hands to aiohttp is a
transport whose first `write` runs ``guard.check()`` and the real ``write`` back to back, and which then takes
itself out. There is no await between them whatever aiohttp does, headers and body being written by whichever
call comes first. TCP and TLS handshakes come before; they carry nothing of the request.

The same transport makes `Attempt.sent` exact, and an attempt connects once: aiohttp sends requests of
idempotent methods again when a kept connection turns out to be dead, and here the second `connect` refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec
from aiohttp import ClientConnectionError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

from tenantry import __version__
from tenantry.adapters.lookups import Lookups, PinningResolver
from tenantry.core.errors import UpstreamError

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from tenantry.adapters.egress import EgressRules
    from tenantry.core.clock import Clock
    from tenantry.gate.ports import Guard

READ_BUFFER_BYTES: Final = 64 * 1024


class Attempt:
    """One request on its way to its first byte. ``on_sent`` is called as that is written."""

    def __init__(self, guard: Guard, on_sent: Callable[[], None] | None = None) -> None:
        self.guard = guard
        self.on_sent = on_sent
        self.sent = False
        self.refused: BaseException | None = None
        self.transport: asyncio.Transport | None = None
        self._has_connected = False

    def begin(self) -> None:
        """Count the connection; a second one is a request sent again behind our back."""
        if self._has_connected:
            raise ClientConnectionError("a request is sent once")
        self._has_connected = True

    def pass_guard(self) -> None:
        """Let the first byte out, or raise what the guard says, now and at each further try."""
        if self.refused is not None:
            raise self.refused
        try:
            self.guard.check()
        except BaseException as refusal:
            self.refused = refusal
            raise
        self.sent = True
        if self.on_sent is not None:
            self.on_sent()

    def abort(self) -> None:
        """Close the connection now; bytes that still wait to be sent are dropped."""
        if self.transport is not None:
            self.transport.abort()


ATTEMPT: ContextVar[Attempt] = ContextVar("tenantry_attempt")


class GuardedTransport(asyncio.Transport):
    """Stands before a real transport until the first byte; forwards what aiohttp calls before that."""

    def __init__(self, transport: asyncio.Transport, protocol: ResponseHandler, attempt: Attempt) -> None:
        super().__init__()
        self._transport = transport
        self._protocol = protocol
        self._attempt = attempt

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Check, write, step aside: one synchronous call."""
        # INVARIANT 4: no await stands between the guard's check and the first byte.
        self._pass()
        self._transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """The same for several pieces."""
        self._pass()
        self._transport.writelines(list_of_data)

    def _pass(self) -> None:
        try:
            self._attempt.pass_guard()
        except BaseException:
            self._transport.abort()
            raise
        if self._protocol.transport is self:
            self._protocol.transport = self._transport

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 the base class's own type
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()


class GuardedConnector(TCPConnector):
    """A connector whose connections are guarded, pinned, and found dead before they are used again."""

    def __init__(
        self, rules: EgressRules, lookups: Lookups, *, connections_max: int, keepalive_s: float
    ) -> None:
        super().__init__(
            resolver=PinningResolver(lookups, rules),
            use_dns_cache=False,
            limit=connections_max,
            keepalive_timeout=keepalive_s,
        )
        self._rules = rules
        self._used: weakref.WeakSet[ResponseHandler] = weakref.WeakSet()

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: ClientTimeout,  # noqa: ASYNC109 the base class's own name
    ) -> Connection:
        """A connection with its guard before it.

        Ends within the pool's size: each dead one leaves the pool.
        """
        attempt = ATTEMPT.get()
        attempt.begin()
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            assert protocol is not None
            transport = protocol.transport
            is_new = protocol not in self._used
            if transport is not None and (is_new or not _is_stale(transport)):
                break
            connection.close()
            if is_new:
                raise aiohttp.ServerDisconnectedError
        try:
            if is_new:
                self._rules.check_address(str(transport.get_extra_info("peername")[0]))
                self._used.add(protocol)
        except BaseException:
            connection.close()
            raise
        attempt.transport = transport
        protocol.transport = GuardedTransport(transport, protocol, attempt)
        return connection


def _is_stale(transport: asyncio.Transport) -> bool:
    """Whether a kept connection has something to read: its end, or words nobody asked for.

    The loop may not have come round to reading it; asking the kernel narrows the window in which a request is
    written into a connection that the upstream has closed, and its outcome unknown, to the flight of one
    packet.
    """
    descriptor = transport.get_extra_info("socket").fileno()
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class PoolSpec(msgspec.Struct, frozen=True):
    """What one pool is for: ``key`` begins with the tenant. Another declaration is another pool."""

    key: str
    rules: EgressRules
    connections_max: int


class Pool:
    """One session over one connector, and how many actions use it."""

    def __init__(self, spec: PoolSpec, lookups: Lookups, keepalive_s: float) -> None:
        self.spec = spec
        self.users = 0
        self.used_at = 0.0
        self.session = ClientSession(
            connector=GuardedConnector(
                spec.rules, lookups, connections_max=max(1, spec.connections_max), keepalive_s=keepalive_s
            ),
            cookie_jar=DummyCookieJar(),
            headers={"User-Agent": f"tenantry/{__version__}", "Accept-Encoding": "identity"},
            skip_auto_headers=("Content-Type", "Accept"),
            timeout=ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
            auto_decompress=False,
            raise_for_status=False,
            trust_env=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=8190,
            max_field_size=8190,
        )


class Pools:
    """The pools of one process: at most `pools_max`, the one unused for longest closed first.

    Made inside a running loop. `keepalive_s` is short on purpose: an upstream that closes an idle connection
    as we write to it makes an outcome unknown.
    """

    def __init__(
        self,
        lookups: Lookups,
        clock: Clock,
        *,
        pools_max: int = 1_000,
        idle_s: float = 60.0,
        keepalive_s: float = 4.0,
    ) -> None:
        self._lookups = lookups
        self._clock = clock
        self._pools_max = pools_max
        self._idle_s = idle_s
        self._keepalive_s = keepalive_s
        self._pools: OrderedDict[PoolSpec, Pool] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def use(self, spec: PoolSpec) -> Iterator[Pool]:
        """The pool of `spec` for one action.

        Raises `UpstreamError` when every pool is in use and none may be added.
        """
        pool = self._pools.get(spec)
        if pool is None:
            self._make_room()
            pool = self._pools[spec] = Pool(spec, self._lookups, self._keepalive_s)
        self._pools.move_to_end(spec)
        pool.users += 1
        try:
            yield pool
        finally:
            pool.users -= 1
            pool.used_at = self._clock.monotonic()

    def __len__(self) -> int:
        return len(self._pools)

    def _make_room(self) -> None:
        """Close what has been idle for long, the oldest first; one that is not yet where there is no room."""
        now = self._clock.monotonic()
        for spec, pool in list(self._pools.items()):
            is_full = len(self._pools) >= self._pools_max
            if pool.users == 0 and (is_full or now - pool.used_at >= self._idle_s):
                self._discard(spec)
            elif not is_full:
                break
        if len(self._pools) >= self._pools_max:
            raise UpstreamError(f"all {self._pools_max} pools of connections are in use", sent=False)

    def _discard(self, spec: PoolSpec) -> None:
        task = asyncio.ensure_future(self._pools.pop(spec).session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every connection; actions under way see theirs break."""
        for spec in list(self._pools):
            self._discard(spec)
        await asyncio.gather(*self._closing, return_exceptions=True)


def describe(fault: BaseException) -> str:
    """What went wrong, in words that hold neither a header nor an address."""
    match fault:
        case aiohttp.ConnectionTimeoutError():
            return "no connection came about in time"
        case aiohttp.ClientConnectorDNSError():
            return "its name does not resolve"
        case aiohttp.ClientSSLError():
            return "its certificate or TLS could not be accepted"
        case aiohttp.ClientConnectorError():
            return "no connection could be made"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection without an answer"
        case aiohttp.ClientPayloadError():
            return "its answer broke off"
        case aiohttp.ClientResponseError():
            return "its answer is not HTTP"
        case ConnectionError() | aiohttp.ClientConnectionError():
            return "the connection broke"
        case _:
            return f"the exchange failed ({type(fault).__name__})"

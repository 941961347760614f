"""Request bodies: bounded in size and time, and shared fairly between tenants.

A body is only read once its sender is known. Its declared size is drawn from two budgets first, the tenant's
and the process's; where one is used up the request waits its turn, tenants taking turns, bounded. A body that
is too large is refused at its head, or at the first byte beyond the cap, and the rest is never read.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from tenantry.core.quota import Meter, MeterName
from tenantry.core.verdict import Throttled
from tenantry.web.problems import Problem, ProblemError, invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenantry.core.clock import Clock
    from tenantry.core.ids import TenantId
    from tenantry.gateway.exchange import Exchange
    from tenantry.gateway.limits import DoorLimits

_WAIT_RETRY_MS: Final = 1_000
# Slower than this for long is not a slow line but a held connection.
_BYTES_PER_SECOND_MIN: Final = 256 * 1024


class ClientGoneError(Exception):
    """The client closed its connection before its request was complete: nobody is there to answer."""


class BodyBudget:
    """Bytes of bodies held in memory. `acquire` and `release` go in pairs.

    A waiting tenant takes its turn with all other waiting tenants, one body a turn.
    """

    def __init__(self, limits: DoorLimits) -> None:
        self._small = limits.body_small_bytes
        self._total_free = limits.bodies_bytes_max
        self._tenant_max = limits.tenant_bodies_bytes_max
        self._wait_s = limits.body_wait_ms / 1000
        self._used: dict[TenantId, int] = {}
        self._waiting: OrderedDict[TenantId, deque[tuple[int, asyncio.Future[None]]]] = OrderedDict()

    async def acquire(self, tenant_id: TenantId, size: int) -> Throttled | None:
        """Draw `size` bytes; None: drawn. Waits at most ``body_wait_ms``, then says so with a verdict."""
        if tenant_id not in self._waiting and self._fits(tenant_id, size):
            self._draw(tenant_id, size)
            return None
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (size, turn)
        self._waiting.setdefault(tenant_id, deque()).append(place)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except TimeoutError:
            if not turn.cancelled():
                return None
            self._leave_queue(tenant_id, place)
            return Throttled(Meter("tenant", tenant_id, MeterName.REQUESTS), _WAIT_RETRY_MS)
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(tenant_id, size)
            else:
                self._leave_queue(tenant_id, place)
            raise
        return None

    def release(self, tenant_id: TenantId, size: int) -> None:
        """Give `size` bytes back, and wake who fits now."""
        left = self._used[tenant_id] - size
        assert left >= 0
        if left:
            self._used[tenant_id] = left
        else:
            del self._used[tenant_id]
        if size > self._small:
            self._total_free += size
        if self._waiting:
            self._wake()

    def held(self, tenant_id: TenantId) -> int:
        """Bytes that a tenant has drawn."""
        return self._used.get(tenant_id, 0)

    def _fits(self, tenant_id: TenantId, size: int) -> bool:
        used = self._used.get(tenant_id, 0)
        # A body larger than the whole budget passes alone, else it would wait for ever.
        if used and used + size > self._tenant_max:
            return False
        return size <= self._small or size <= self._total_free

    def _draw(self, tenant_id: TenantId, size: int) -> None:
        self._used[tenant_id] = self._used.get(tenant_id, 0) + size
        if size > self._small:
            self._total_free -= size

    def _wake(self) -> None:
        """Let in the first waiting body of each tenant in turn, until a whole round lets nobody in."""
        progressed = True
        while progressed:
            progressed = False
            for tenant_id in list(self._waiting):
                queue = self._waiting[tenant_id]
                size, turn = queue[0]
                if not self._fits(tenant_id, size):
                    continue
                queue.popleft()
                if queue:
                    self._waiting.move_to_end(tenant_id)
                else:
                    del self._waiting[tenant_id]
                if not turn.done():
                    self._draw(tenant_id, size)
                    turn.set_result(None)
                progressed = True

    def _leave_queue(self, tenant_id: TenantId, place: tuple[int, asyncio.Future[None]]) -> None:
        queue = self._waiting.get(tenant_id)
        if queue is None or place not in queue:
            return
        queue.remove(place)
        if not queue:
            del self._waiting[tenant_id]
        # Whoever stood behind this one may fit where it did not.
        self._wake()


def declared_size(exchange: Exchange, bytes_max: int) -> int:
    """The size to draw for a body: as declared, or the cap where it comes in chunks.

    Raises `ProblemError`: 413 above the cap, 415 for a content encoding, 400 for a length that is none.
    """
    encoding = exchange.headers.get(b"content-encoding", b"identity")
    if encoding.lower() != b"identity":
        problem = Problem(415, "unsupported_encoding", "send the body without a content encoding")
        raise ProblemError(problem)
    length = exchange.headers.get(b"content-length")
    if b"transfer-encoding" in exchange.headers:
        return bytes_max
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 18:
        raise invalid("the length is not a number", path="header content-length")
    size = int(length)
    if size > bytes_max:
        raise too_large(bytes_max)
    return size


def require_json(exchange: Exchange) -> None:
    """Refuse a body that is declared as something else than JSON. Raises `ProblemError` (415)."""
    content_type = exchange.headers.get(b"content-type")
    if content_type is None:
        return
    kind = content_type.partition(b";")[0].strip().lower()
    if kind != b"application/json":
        problem = Problem(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
        raise ProblemError(problem)


async def read_body(exchange: Exchange, limits: DoorLimits, clock: Clock, bytes_max: int) -> bytes:
    """The whole body. Cost: where it has arrived already, no timer is set.

    Raises `ProblemError` (413 at the first byte beyond `bytes_max`, 408 for one that is too slow),
    `ClientGoneError`.
    """
    if exchange.connection is not None and exchange.connection.is_body_whole():
        return await _collect(exchange, bytes_max)
    deadline_s = limits.body_deadline_ms / 1000
    started = clock.monotonic()
    try:
        async with asyncio.timeout(limits.body_idle_ms / 1000) as limit:
            loop = asyncio.get_running_loop()

            def arrived(received: int) -> None:
                # Any sender gets the idle time again; only one that keeps a decent rate gets past the
                # deadline.
                left_s = deadline_s + received / _BYTES_PER_SECOND_MIN - (clock.monotonic() - started)
                limit.reschedule(loop.time() + min(limits.body_idle_ms / 1000, left_s))

            return await _collect(exchange, bytes_max, arrived)
    except TimeoutError:
        problem = Problem(408, "body_too_slow", "the body did not arrive in time", closes=True)
        raise ProblemError(problem) from None


async def linger(exchange: Exchange, limits: DoorLimits) -> None:
    """After an answer to a body that was not read: take a little of it, then end answer and connection.

    A client that is still sending would otherwise see its connection reset before it reads why. Bounded in
    bytes and time; nothing is kept.
    """
    left = limits.linger_bytes_max
    try:
        async with asyncio.timeout(limits.linger_ms / 1000):
            while left > 0:
                message = await exchange.receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    break
                left -= len(message.get("body", b""))
    except TimeoutError:
        pass
    await exchange.part(b"", more=False)


def too_large(bytes_max: int) -> ProblemError:
    """413, after which the connection closes."""
    detail = f"At most {bytes_max} bytes."
    return ProblemError(Problem(413, "body_too_large", "the body is too large", detail, closes=True))


async def _collect(exchange: Exchange, bytes_max: int, arrived: Callable[[int], None] | None = None) -> bytes:
    message = await exchange.receive()
    if message["type"] != "http.request":
        raise ClientGoneError
    body: bytes = message.get("body", b"")
    if len(body) > bytes_max:
        raise too_large(bytes_max)
    if not message.get("more_body", False):
        exchange.is_body_read = True
        return body
    parts = [body]
    received = len(body)
    while message.get("more_body", False):
        if arrived is not None:
            arrived(received)
        message = await exchange.receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        part: bytes = message.get("body", b"")
        received += len(part)
        if received > bytes_max:
            raise too_large(bytes_max)
        parts.append(part)
    exchange.is_body_read = True
    return b"".join(parts)

"""The way into every door: credential, shed, body; in this order, each before anything that costs more.

Failed credentials count against their address alone; no tenant's meter is touched before a credential is
good.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Final

from tenantry.adapters.egress import parse_url
from tenantry.core.errors import EgressDeniedError, UnauthenticatedError
from tenantry.gateway.body import declared_size, read_body, require_json
from tenantry.web.problems import ProblemError, invalid, too_many_failures
from tenantry.web.verdicts import describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tenantry.core.clock import Clock
    from tenantry.core.ids import TenantId
    from tenantry.core.principal import Principal
    from tenantry.core.verdict import Throttled
    from tenantry.gate.context import RunContext
    from tenantry.gateway.body import BodyBudget
    from tenantry.gateway.exchange import Exchange
    from tenantry.gateway.limits import DoorLimits
    from tenantry.gateway.ports import Gate, Keys, Scopes, Tokens
    from tenantry.gateway.shed import Shed
    from tenantry.identity.limiter import FailedAuthLimiter

IDEMPOTENCY_KEY_CHARS_MAX: Final = 200
HOSTS_MAX: Final = 1_000


@dataclasses.dataclass(frozen=True, slots=True)
class Entrance:
    """What the doors of one process share."""

    gate: Gate
    keys: Keys
    tokens: Tokens
    scopes: Scopes
    failures: FailedAuthLimiter
    shed: Shed
    bodies: BodyBudget
    limits: DoorLimits
    clock: Clock

    async def identify_run(self, exchange: Exchange) -> RunContext:
        """Whose run this is.

        Raises `UnauthenticatedError`, `ProblemError` (429) for an address that guesses.
        """
        token = bearer_token(exchange)
        if self.tokens.find_cached(token) is None:
            self._hold_back_guessers(exchange)
        try:
            return await self.gate.identify(token)
        except UnauthenticatedError:
            self.failures.note_failure(exchange.peer)
            raise

    async def identify_principal(self, exchange: Exchange) -> Principal:
        """Whose API key this is; raises as `identify_run` does."""
        token = bearer_token(exchange)
        if self.keys.find_cached(token) is None:
            self._hold_back_guessers(exchange)
        try:
            return await self.keys.authenticate(token)
        except UnauthenticatedError:
            self.failures.note_failure(exchange.peer)
            raise

    async def admit(
        self,
        exchange: Exchange,
        tenant_id: TenantId,
        bytes_max: int,
        serve: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Let one request of the tenant in, read its body, and hold its place until `serve` has answered it.

        Raises `ProblemError` for a body that is none (`gateway.body`); answers `throttled` by itself.
        """
        refusal = self.shed.enter(tenant_id)
        if refusal is not None:
            await self._throttle(exchange, tenant_id, refusal)
            return
        try:
            require_json(exchange)
            size = declared_size(exchange, bytes_max)
            refusal = await self.bodies.acquire(tenant_id, size)
            if refusal is not None:
                await self._throttle(exchange, tenant_id, refusal)
                return
            try:
                await serve(await read_body(exchange, self.limits, self.clock, bytes_max))
            finally:
                self.bodies.release(tenant_id, size)
        finally:
            self.shed.leave(tenant_id)

    async def _throttle(self, exchange: Exchange, tenant_id: TenantId, refusal: Throttled) -> None:
        self.gate.note_shed(tenant_id)
        await exchange.answer_verdict(describe(refusal))

    def _hold_back_guessers(self, exchange: Exchange) -> None:
        wait_ms = self.failures.check(exchange.peer)
        if wait_ms > 0:
            raise ProblemError(too_many_failures(wait_ms))


def bearer_token(exchange: Exchange) -> str:
    """The token of ``Authorization: Bearer``. Raises `UnauthenticatedError`."""
    value = exchange.headers.get(b"authorization", b"")
    scheme, _, token = value.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token or not token.isascii():
        raise UnauthenticatedError("no credential was sent")
    return token.decode("ascii")


def idempotency_key(exchange: Exchange) -> str | None:
    """The request's ``Idempotency-Key``.

    Raises `ProblemError` (400) where it is not 1 to 200 visible ASCII characters.
    """
    value = exchange.headers.get(b"idempotency-key")
    if value is None:
        return None
    if not 1 <= len(value) <= IDEMPOTENCY_KEY_CHARS_MAX or not all(0x21 <= byte <= 0x7E for byte in value):
        limit = IDEMPOTENCY_KEY_CHARS_MAX
        raise invalid(
            f"an idempotency key is 1 to {limit} visible ASCII characters", path="header idempotency-key"
        )
    return value.decode("ascii")


def remaining_ms(entrance: Entrance, context: RunContext, most_ms: int) -> int:
    """What is left of the run's deadline, at most `most_ms`, at least 1."""
    left_ms = int(context.claims.expires_at.timestamp() * 1000) - entrance.clock.now_ms()
    return max(1, min(most_ms, left_ms))


def digest(name: str, *parts: bytes) -> bytes:
    """SHA-256 of what an idempotency key stands for.

    The action's name and each part, told apart by their lengths.
    """
    state = hashlib.sha256(name.encode())
    for part in parts:
        state.update(b"\0%d\0" % len(part))
        state.update(part)
    return state.digest()


def find_host(base_url: str) -> str | None:
    """The host of a declared URL; None for one that the adapter refuses, which policy must not see."""
    try:
        return parse_url(base_url).host
    except EgressDeniedError:
        return None

"""The one adapter that the gate is given: it picks by kind, and owns what all of them share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tenantry.adapters.breaker import Breakers, BreakerSettings
from tenantry.adapters.connector import Pools
from tenantry.adapters.http import HttpAdapter
from tenantry.adapters.lookups import Lookup, Lookups, system_lookup
from tenantry.adapters.model import ModelAdapter
from tenantry.core.errors import UpstreamError

if TYPE_CHECKING:
    from tenantry.core.action import Outcome
    from tenantry.core.clock import Clock
    from tenantry.gate.ports import Adapter, AdapterCall, Emit


class AdapterSettings(msgspec.Struct, frozen=True):
    """Bounds of one process.

    ``keepalive_ms`` is how long an unused connection is kept, ``pool_idle_ms`` a pool.
    """

    breaker: BreakerSettings = BreakerSettings()
    pools_max: int = 1_000
    pool_idle_ms: int = 60_000
    keepalive_ms: int = 4_000


class Adapters:
    """Every way out of one process. Made inside its running loop; `close` ends all connections."""

    def __init__(
        self, clock: Clock, settings: AdapterSettings | None = None, lookup: Lookup = system_lookup
    ) -> None:
        settings = settings or AdapterSettings()
        self._lookups = Lookups(lookup)
        self._pools = Pools(
            self._lookups,
            clock,
            pools_max=settings.pools_max,
            idle_s=settings.pool_idle_ms / 1000,
            keepalive_s=settings.keepalive_ms / 1000,
        )
        breakers = Breakers(settings.breaker, clock)
        self._adapters: dict[str, Adapter] = {
            "tool": HttpAdapter(self._pools, breakers, clock),
            "model": ModelAdapter(self._pools, breakers, clock),
        }

    async def perform(self, call: AdapterCall, emit: Emit, /) -> Outcome:
        """Perform by the adapter of the action's kind.

        Raises `UpstreamError` for a kind that has no way out.
        """
        adapter = self._adapters.get(call.action.kind)
        if adapter is None:
            raise UpstreamError(f"no adapter performs actions of kind {call.action.kind!r}", sent=False)
        return await adapter.perform(call, emit)

    async def close(self) -> None:
        """Close connections and take no more look-ups."""
        await self._pools.close()
        self._lookups.close()

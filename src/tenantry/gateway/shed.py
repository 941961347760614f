"""The shed: what a tenant may ask of one gateway before anything is decided (DESIGN §3 'Before authorize').

A refused flood costs policy and a round trip each unless it is stopped here. Each tenant has a cap of
requests in flight and a token bucket (GCRA: one number says when the bucket is full again), both far above
its quotas. Shed requests are `throttled`, and counted by the gate, which journals them as one row a second.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Final

from tenantry.core.quota import Meter, MeterName
from tenantry.core.verdict import Throttled

if TYPE_CHECKING:
    from tenantry.core.clock import Clock
    from tenantry.core.ids import TenantId
    from tenantry.gateway.limits import DoorLimits

TENANTS_MAX: Final = 10_000
_INFLIGHT_RETRY_MS: Final = 250


class _Lane:
    __slots__ = ("full_at", "inflight")

    def __init__(self) -> None:
        self.inflight = 0
        self.full_at = 0.0


class Shed:
    """In memory, for this process; no I/O, ~1 us.

    Memory: one small object a tenant; beyond `TENANTS_MAX` the idle ones that were seen longest ago are
    forgotten, which at worst fills their bucket.
    """

    def __init__(self, clock: Clock, limits: DoorLimits) -> None:
        self._clock = clock
        self._inflight_max = limits.tenant_inflight_max
        self._interval_s = 1 / limits.tenant_requests_per_second
        self._depth_s = limits.tenant_requests_burst / limits.tenant_requests_per_second
        self._lanes: OrderedDict[TenantId, _Lane] = OrderedDict()

    def enter(self, tenant_id: TenantId) -> Throttled | None:
        """None: the request is in, and `leave` must follow. Else what to answer; nothing was counted."""
        lane = self._lanes.get(tenant_id)
        if lane is None:
            lane = self._lanes[tenant_id] = _Lane()
            if len(self._lanes) > TENANTS_MAX:
                self._forget()
        else:
            self._lanes.move_to_end(tenant_id)
        if lane.inflight >= self._inflight_max:
            return _throttled(tenant_id, _INFLIGHT_RETRY_MS)
        now = self._clock.monotonic()
        full_at = max(lane.full_at, now) + self._interval_s
        wait_s = full_at - now - self._depth_s
        if wait_s > 0:
            return _throttled(tenant_id, max(1, int(wait_s * 1000)))
        lane.full_at = full_at
        lane.inflight += 1
        return None

    def leave(self, tenant_id: TenantId) -> None:
        """A request that `enter` let in is over."""
        lane = self._lanes[tenant_id]
        assert lane.inflight > 0
        lane.inflight -= 1

    def inflight(self, tenant_id: TenantId) -> int:
        """Requests that are in."""
        lane = self._lanes.get(tenant_id)
        return lane.inflight if lane is not None else 0

    def _forget(self) -> None:
        """Drop the idle tenants among those seen longest ago, a bounded look."""
        idle = [key for key, lane in islice(self._lanes.items(), 64) if lane.inflight == 0]
        for tenant_id in idle[:8]:
            del self._lanes[tenant_id]


def _throttled(tenant_id: TenantId, retry_after_ms: int) -> Throttled:
    return Throttled(Meter("tenant", tenant_id, MeterName.REQUESTS), retry_after_ms)

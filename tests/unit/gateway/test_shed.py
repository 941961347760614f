from __future__ import annotations

import datetime as dt

import pytest

from tenantry.core.ids import TenantId
from tenantry.core.verdict import Throttled
from tenantry.gateway import shed as shed_module
from tenantry.gateway.limits import DoorLimits
from tenantry.gateway.shed import Shed

ACME, OTHER = TenantId("acme"), TenantId("other")


class Hands:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.s = 100.0

    def now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.s, tz=dt.UTC)

    def now_ms(self) -> int:
        return int(self.s * 1000)

    def monotonic(self) -> float:
        return self.s

    def random_bytes(self, count: int, /) -> bytes:
        return bytes(count)


def made(hands: Hands, *, inflight: int = 1_000, rate: int = 10, burst: int = 5) -> Shed:
    limits = DoorLimits(
        tenant_inflight_max=inflight, tenant_requests_per_second=rate, tenant_requests_burst=burst
    )
    return Shed(hands, limits)


def test_the_bucket_holds_its_burst_and_fills_at_its_rate() -> None:
    hands = Hands()
    shed = made(hands)
    assert [shed.enter(ACME) is None for _ in range(7)] == [True] * 5 + [False] * 2
    refusal = shed.enter(ACME)
    assert isinstance(refusal, Throttled)
    assert 0 < refusal.retry_after_ms <= 100
    assert refusal.meter.subject_id == "acme"
    assert shed.enter(OTHER) is None
    hands.s += 0.101
    assert shed.enter(ACME) is None
    assert shed.enter(ACME) is not None
    hands.s += 60
    assert [shed.enter(ACME) is None for _ in range(6)] == [True] * 5 + [False]


def test_what_is_refused_is_not_counted() -> None:
    hands = Hands()
    shed = made(hands)
    for _ in range(1_000):
        shed.enter(ACME)
    assert shed.inflight(ACME) == 5
    hands.s += 0.5
    assert shed.enter(ACME) is None


def test_the_cap_in_flight() -> None:
    shed = made(Hands(), inflight=2, burst=100)
    assert [shed.enter(ACME) is None for _ in range(3)] == [True, True, False]
    assert shed.enter(OTHER) is None
    shed.leave(ACME)
    assert shed.enter(ACME) is None


def test_memory_is_bounded_and_who_is_in_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shed_module, "TENANTS_MAX", 100)
    shed = made(Hands())
    for index in range(10):
        shed.enter(TenantId(f"busy{index}"))
    for index in range(10_000):
        tenant = TenantId(f"t{index}")
        shed.enter(tenant)
        shed.leave(tenant)
    assert len(shed._lanes) <= 101
    for index in range(10):
        assert shed.inflight(TenantId(f"busy{index}")) == 1
        shed.leave(TenantId(f"busy{index}"))

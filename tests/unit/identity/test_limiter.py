"""The limiter of failed authentication: guessers wait, strangers do not, memory is bounded."""

from __future__ import annotations

import pytest
from tests.unit.identity.manual_clock import ManualClock

from tenantry.identity import limiter as module
from tenantry.identity.limiter import FailedAuthLimiter, FailureRates

RATES = FailureRates(address_per_minute=6, address_burst=3, all_per_minute=60, all_burst=10)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def limiter(clock: ManualClock) -> FailedAuthLimiter:
    return FailedAuthLimiter(clock, RATES)


def fail(limiter: FailedAuthLimiter, address: str | None, count: int) -> None:
    for _ in range(count):
        limiter.note_failure(address)


def test_a_burst_then_one_an_interval(limiter: FailedAuthLimiter, clock: ManualClock) -> None:
    fail(limiter, "192.0.2.1", 2)
    assert limiter.check("192.0.2.1") == 0
    fail(limiter, "192.0.2.1", 1)
    assert limiter.check("192.0.2.1") == 10_000
    clock.advance(10)
    assert limiter.check("192.0.2.1") == 0
    fail(limiter, "192.0.2.1", 1)
    assert limiter.check("192.0.2.1") == 10_000
    clock.advance(1000)
    fail(limiter, "192.0.2.1", 2)
    assert limiter.check("192.0.2.1") == 0


def test_looking_costs_nothing(limiter: FailedAuthLimiter) -> None:
    fail(limiter, "192.0.2.1", 2)
    assert [limiter.check("192.0.2.1") for _ in range(100)] == [0] * 100


def test_a_flood_does_not_lengthen_its_own_wait_for_ever(
    limiter: FailedAuthLimiter, clock: ManualClock
) -> None:
    fail(limiter, "192.0.2.1", 10_000)
    clock.advance(60)
    assert limiter.check("192.0.2.1") == 0


def test_one_address_does_not_slow_another(limiter: FailedAuthLimiter) -> None:
    fail(limiter, "192.0.2.1", 5)
    assert limiter.check("192.0.2.1") > 0
    assert limiter.check("192.0.2.2") == 0


@pytest.mark.invariant(11)
def test_a_crowd_slows_guessers_and_never_a_stranger(limiter: FailedAuthLimiter, clock: ManualClock) -> None:
    for host in range(1, 200):
        limiter.note_failure(f"192.0.2.{host}")
    assert limiter.check("192.0.2.7") > 0
    assert limiter.check("198.51.100.1") == 0
    limiter.note_failure("198.51.100.1")
    assert limiter.check("198.51.100.1") > 0
    clock.advance(12)
    assert limiter.check("198.51.100.1") == 0


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        (None, ""),
        ("not an address", "x" * 1_000_000),
        ("\ud800", "\0"),
        ("fe80::1%" + "z" * 100, None),
    ],
)
def test_addresses_count_by_what_one_customer_holds(
    one: str | None, same: str | None, limiter: FailedAuthLimiter
) -> None:
    fail(limiter, one, 5)
    assert limiter.check(same) > 0
    assert limiter.check("2001:db8:0:2::1") == 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, limiter: FailedAuthLimiter) -> None:
    monkeypatch.setattr(module, "ADDRESSES_MAX", 50)
    for number in range(1000):
        limiter.note_failure(f"10.0.{number // 250}.{number % 250}")
    assert len(limiter._full_at) == 50

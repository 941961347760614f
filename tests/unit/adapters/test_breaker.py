"""The breaker and the bulkhead, on a clock of our own."""

from __future__ import annotations

import datetime as dt

import pytest

from tenantry.adapters import breaker as module
from tenantry.adapters.breaker import Breakers, BreakerSettings
from tenantry.gate.ports import ProviderDegradedError


class HeldClock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> dt.datetime:
        raise NotImplementedError

    def now_ms(self) -> int:
        raise NotImplementedError

    def random_bytes(self, count: int, /) -> bytes:
        raise NotImplementedError


SETTINGS = BreakerSettings(failures=3, cool_down_ms=1_000, cool_down_max_ms=4_000)


def fail(breakers: Breakers, times: int = 1, retry_after_ms: int | None = None) -> None:
    for _ in range(times):
        with breakers.admit("t/acme", "acme", 8) as ticket:
            ticket.fail(retry_after_ms)


def is_open(breakers: Breakers) -> int | None:
    """How long to wait, None when one may pass."""
    try:
        breakers.admit("t/acme", "acme", 8).__exit__(None, None, None)
    except ProviderDegradedError as error:
        return error.retry_after_ms
    return None


def test_opens_after_failures_in_a_row_and_closes_by_a_probe() -> None:
    clock = HeldClock()
    breakers = Breakers(SETTINGS, clock)
    fail(breakers, 2)
    with breakers.admit("t/acme", "acme", 8) as ticket:
        ticket.succeed()
    fail(breakers, 2)
    assert is_open(breakers) is None
    fail(breakers)
    assert 900 <= (is_open(breakers) or 0) <= 1_001
    clock.seconds += 1.1
    with breakers.admit("t/acme", "acme", 8) as probe:
        assert is_open(breakers) is not None  # one probe at a time
        probe.succeed()
    assert is_open(breakers) is None


def test_a_failed_probe_waits_twice_as_long_up_to_the_bound() -> None:
    clock = HeldClock()
    breakers = Breakers(SETTINGS, clock)
    fail(breakers, 3)
    for wait_ms in (1_000, 2_000, 4_000, 4_000):
        left_ms = is_open(breakers)
        assert left_ms is not None and wait_ms - 2 <= left_ms <= wait_ms + 2
        clock.seconds += wait_ms / 1000 + 0.001
        fail(breakers)
    assert is_open(breakers) is not None


def test_a_probe_that_says_nothing_leaves_room_for_the_next() -> None:
    clock = HeldClock()
    breakers = Breakers(SETTINGS, clock)
    fail(breakers, 3)
    clock.seconds += 2
    with pytest.raises(ZeroDivisionError), breakers.admit("t/acme", "acme", 8):
        raise ZeroDivisionError
    with breakers.admit("t/acme", "acme", 8) as probe:
        probe.succeed()
    assert is_open(breakers) is None


def test_late_answers_of_before_do_not_close_it() -> None:
    clock = HeldClock()
    breakers = Breakers(SETTINGS, clock)
    early = breakers.admit("t/acme", "acme", 8)
    fail(breakers, 3)
    early.succeed()
    early.__exit__(None, None, None)
    assert is_open(breakers) is not None


def test_the_upstreams_own_word_on_when_to_come_again() -> None:
    breakers = Breakers(SETTINGS, HeldClock())
    fail(breakers, 3, retry_after_ms=3_000)
    assert 2_900 <= (is_open(breakers) or 0) <= 3_001
    breakers = Breakers(SETTINGS, HeldClock())
    fail(breakers, 3, retry_after_ms=10**9)
    assert 3_900 <= (is_open(breakers) or 0) <= 4_001


def test_bulkhead() -> None:
    breakers = Breakers(SETTINGS, HeldClock())
    tickets = [breakers.admit("t/acme", "acme", 2) for _ in range(2)]
    with pytest.raises(ProviderDegradedError):
        breakers.admit("t/acme", "acme", 2)
    # Another tenant's way to the same provider is its own.
    with breakers.admit("u/acme", "acme", 2):
        pass
    tickets[0].__exit__(None, None, None)
    with breakers.admit("t/acme", "acme", 2):
        pass


def test_memory_is_bounded_and_an_open_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BREAKERS_MAX", 10)
    breakers = Breakers(SETTINGS, HeldClock())
    fail(breakers, 3)
    for number in range(100):
        with breakers.admit(f"t{number}/acme", "acme", 8) as ticket:
            ticket.succeed()
    assert is_open(breakers) is not None

"""Circuit breaker and bulkhead of one pool.

closed -> (failures in a row) -> open -> (cool-down over) -> half-open: one probe -> closed | open, twice as
long.

Both act before anything is sent. They stand for one tenant's way to one upstream, so that what one tenant
does to it opens no other tenant's.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Self

import msgspec

from tenantry.gate.ports import ProviderDegradedError

if TYPE_CHECKING:
    from tenantry.core.clock import Clock

BREAKERS_MAX: Final = 10_000
_FULL_RETRY_MS: Final = 1_000


class BreakerSettings(msgspec.Struct, frozen=True):
    """``failures`` in a row open it for ``cool_down_ms``; a failed probe doubles that, at most to its max."""

    failures: int = 5
    cool_down_ms: int = 2_000
    cool_down_max_ms: int = 60_000


class Breaker:
    """The state of one pool's breaker."""

    def __init__(self, name: str, settings: BreakerSettings, clock: Clock) -> None:
        self._name = name
        self._settings = settings
        self._clock = clock
        self._failures = 0
        self._opened = 0
        self._open_until: float | None = None
        self._is_probing = False
        self.in_flight = 0

    def admit(self, in_flight_max: int) -> Ticket:
        """Let one action pass.

        Raises `ProviderDegradedError` while open, or when `in_flight_max` are under way.
        """
        if self._open_until is not None:
            left_s = self._open_until - self._clock.monotonic()
            if left_s > 0 or self._is_probing:
                raise ProviderDegradedError(self._name, max(int(left_s * 1000) + 1, 100))
        if self.in_flight >= in_flight_max:
            raise ProviderDegradedError(self._name, _FULL_RETRY_MS)
        is_probe = self._open_until is not None
        self._is_probing = self._is_probing or is_probe
        self.in_flight += 1
        return Ticket(self, is_probe=is_probe)

    @property
    def is_idle(self) -> bool:
        """Nothing under way and nothing held against the upstream: it may be forgotten."""
        return self.in_flight == 0 and self._failures == 0 and self._open_until is None

    def settle(self, *, is_probe: bool, failed: bool | None, retry_after_ms: int | None) -> None:
        """Count how one ticket ended; ``failed`` is None when it said nothing about the upstream."""
        self.in_flight -= 1
        if is_probe:
            self._is_probing = False
        if failed is None:
            return
        if not failed:
            if is_probe or self._open_until is None:
                self._failures, self._opened, self._open_until = 0, 0, None
            return
        self._failures += 1
        if is_probe or (self._open_until is None and self._failures >= self._settings.failures):
            self._open(retry_after_ms)

    def _open(self, retry_after_ms: int | None) -> None:
        limits = self._settings
        wait_ms = max(limits.cool_down_ms * 2 ** min(self._opened, 16), retry_after_ms or 0)
        self._opened += 1
        self._open_until = self._clock.monotonic() + min(wait_ms, limits.cool_down_max_ms) / 1000


class Ticket:
    """One action's passage. Say how the upstream did, if it did anything; leaving counts it once."""

    def __init__(self, breaker: Breaker, *, is_probe: bool) -> None:
        self._breaker = breaker
        self._is_probe = is_probe
        self._failed: bool | None = None
        self._retry_after_ms: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._breaker.settle(
            is_probe=self._is_probe, failed=self._failed, retry_after_ms=self._retry_after_ms
        )

    def succeed(self) -> None:
        """The upstream answered as a working one does, refusals included."""
        self._failed = False

    def fail(self, retry_after_ms: int | None = None) -> None:
        """The upstream did not answer, broke off, is overloaded, or failed by its own account."""
        self._failed = True
        self._retry_after_ms = retry_after_ms


class Breakers:
    """The breakers of one process, by pool key; at most `BREAKERS_MAX`, idle ones forgotten first."""

    def __init__(self, settings: BreakerSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()

    def admit(self, pool_key: str, name: str, in_flight_max: int) -> Ticket:
        """Admit one action to `name`. Raises `ProviderDegradedError`."""
        breaker = self._breakers.get(pool_key)
        if breaker is None:
            self._make_room()
            breaker = self._breakers[pool_key] = Breaker(name, self._settings, self._clock)
        self._breakers.move_to_end(pool_key)
        return breaker.admit(in_flight_max)

    def _make_room(self) -> None:
        if len(self._breakers) < BREAKERS_MAX:
            return
        victim = next((key for key, breaker in self._breakers.items() if breaker.is_idle), None)
        if victim is None:
            victim = next(iter(self._breakers))
        del self._breakers[victim]

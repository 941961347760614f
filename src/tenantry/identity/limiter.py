"""The limiter of failed authentication (DESIGN §3, 'Before authorize').

A failure costs its address one token of a bucket; an address with an empty bucket waits, before any work is
done for it. A second bucket counts the failures of all addresses together; while that one is empty, each
address that has failed lately waits, and one that has not still passes: a crowd of guessers slows guessers,
never a stranger.

A door asks only for a credential that it does not already know (`find_cached`), so that a guesser behind a
shared proxy does not shut out the agents that work there. No tenant's meter is read or written: no tenant is
known yet.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

import msgspec

from tenantry.core.clock import Clock

ADDRESSES_MAX: Final = 10_000
_ADDRESS_CHARS_MAX: Final = 64
_UNKNOWN: Final = "unknown"


class FailureRates(msgspec.Struct, frozen=True):
    """Failures a minute that are refilled, and how many may come at once, for one address and for all."""

    address_per_minute: int = 30
    address_burst: int = 20
    all_per_minute: int = 3_000
    all_burst: int = 1_000


class FailedAuthLimiter:
    """Buckets by address, in memory, for this process. Cost: one dictionary look-up, ~3 us; no I/O.

    Memory is bounded: the address that failed longest ago is forgotten first. IPv6 addresses count by /64,
    the smallest block that a provider hands to one customer; IPv4 inside IPv6 counts as IPv4.
    """

    def __init__(self, clock: Clock, rates: FailureRates | None = None) -> None:
        self._clock = clock
        self._rates = rates or FailureRates()
        # For each address the monotonic second at which its bucket is full again.
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._all_full_at = 0.0

    def check(self, address: str | None) -> int:
        """Milliseconds to wait before this address may try again; 0: it may try now. Changes nothing."""
        now = self._clock.monotonic()
        full_at = self._full_at.get(_block_of(address))
        if full_at is None or full_at <= now:
            return 0
        rates = self._rates
        wait = _wait_s(full_at, now, rates.address_per_minute, rates.address_burst)
        crowd = _wait_s(self._all_full_at, now, rates.all_per_minute, rates.all_burst)
        if crowd > 0:
            # Under a crowd's flood an address that has failed at all waits until it is clean again.
            wait = max(wait, crowd, full_at - now)
        return 0 if wait <= 0 else max(1, int(wait * 1000))

    def note_failure(self, address: str | None) -> None:
        """Count one failure of this address."""
        now = self._clock.monotonic()
        rates = self._rates
        block = _block_of(address)
        full_at = max(self._full_at.get(block, 0.0), now) + 60 / rates.address_per_minute
        # One interval beyond empty is the most that is owed: a flood makes its own wait no longer than that.
        self._full_at[block] = min(full_at, now + 60 * (rates.address_burst + 1) / rates.address_per_minute)
        self._full_at.move_to_end(block)
        if len(self._full_at) > ADDRESSES_MAX:
            self._full_at.popitem(last=False)
        all_full_at = max(self._all_full_at, now) + 60 / rates.all_per_minute
        self._all_full_at = min(all_full_at, now + 60 * (rates.all_burst + 1) / rates.all_per_minute)


def _wait_s(full_at: float, now: float, per_minute: int, burst: int) -> float:
    """Seconds until one token is in a bucket that is full at `full_at`; zero or less: there is one."""
    return full_at - now - 60 * (burst - 1) / per_minute


def _block_of(address: str | None) -> str:
    if not address or len(address) > _ADDRESS_CHARS_MAX:
        return _UNKNOWN
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return _UNKNOWN
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return (int(parsed) >> 64).to_bytes(8, "big").hex()

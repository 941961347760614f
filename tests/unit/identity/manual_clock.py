"""A clock that stands still until a test moves it; its chance repeats."""

from __future__ import annotations

import datetime as dt
import hashlib


class ManualClock:
    def __init__(self) -> None:
        self.at = dt.datetime(2026, 7, 1, 12, 0, tzinfo=dt.UTC)
        self.ticks = 1000.0
        self._drawn = 0

    def advance(self, seconds: float) -> None:
        self.at += dt.timedelta(seconds=seconds)
        self.ticks += seconds

    def now(self) -> dt.datetime:
        return self.at

    def now_ms(self) -> int:
        return int(self.at.timestamp() * 1000)

    def monotonic(self) -> float:
        return self.ticks

    def random_bytes(self, count: int, /) -> bytes:
        self._drawn += 1
        return hashlib.shake_128(self._drawn.to_bytes(8, "big")).digest(count)

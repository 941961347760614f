"""Time and chance, the only door to either (STYLE §6)."""

from __future__ import annotations

import datetime as dt
import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """Where time and chance come from. Wall time is aware UTC."""

    def now(self) -> dt.datetime: ...
    def now_ms(self) -> int: ...
    def monotonic(self) -> float: ...
    def random_bytes(self, count: int, /) -> bytes: ...


_DRAW_BYTES = 4096


class SystemClock:
    """The machine's clock and the kernel's randomness, drawn by the page: each byte is given out once.

    Not to be shared over a fork; the platform's processes are started afresh.
    """

    _drawn: bytes = b""
    _given: int = 0

    def now(self) -> dt.datetime:
        """Wall time, aware UTC."""
        return dt.datetime.now(tz=dt.UTC)

    def now_ms(self) -> int:
        """Wall time, milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds that never go back; goes on while the process is stopped."""
        return time.monotonic()

    def random_bytes(self, count: int, /) -> bytes:
        """`count` bytes from the kernel."""
        end = self._given + count
        if end > len(self._drawn):
            if count > _DRAW_BYTES:
                return secrets.token_bytes(count)
            self._drawn = secrets.token_bytes(_DRAW_BYTES)
            self._given, end = 0, count
        piece = self._drawn[self._given : end]
        self._given = end
        return piece

"""A time limit on silence inside a time limit on the whole: one timer, not one a chunk."""

from __future__ import annotations

import asyncio
import math


class SilenceWatch:
    """Trips `limit` when an upstream was silent for longer than allowed; ``has_tripped`` says that it did.

    Waiting for our own client is not the upstream's silence: `pause` before, `beat` after.
    """

    def __init__(self, limit: asyncio.Timeout) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._allowed_s = math.inf
        self._until = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self.has_tripped = False

    def arm(self, allowed_s: float) -> None:
        """Allow `allowed_s` seconds of silence from now on."""
        self.stop()
        self._allowed_s = allowed_s
        self.beat()
        self._timer = self._loop.call_at(self._until, self._look)

    def beat(self) -> None:
        """Something arrived."""
        self._until = self._loop.time() + self._allowed_s

    def pause(self) -> None:
        """From here until `beat` the upstream is not waited for."""
        self._until = math.inf

    def stop(self) -> None:
        """Watch no more. Call before the limit is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._until:
            self._timer = None
            if not self._limit.expired():
                self.has_tripped = True
                self._limit.reschedule(now)
            return
        again = self._until if self._until < math.inf else now + self._allowed_s
        self._timer = self._loop.call_at(again, self._look)

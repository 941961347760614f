"""Runs the jobs, one after the other, while this process is the leader.

A job that fails is told of and tried again at its next turn; it stops no other. `lags` is what the metric
shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from tenantry.core.clock import Clock
from tenantry.jobs.leader import Leader


class Job(Protocol):
    """Idempotent work in small pieces."""

    async def run(self) -> int: ...


class Jobs:
    """One a control process; only the leader's do anything."""

    def __init__(
        self,
        leader: Leader,
        jobs: Mapping[str, Job],
        clock: Clock,
        *,
        on_fault: Callable[[str, Exception], None],
        each_s: float = 1.0,
    ) -> None:
        self._leader = leader
        self._jobs = jobs
        self._clock = clock
        self._on_fault = on_fault
        self._each_s = each_s
        self._succeeded_at: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look each second, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="tenantry-jobs")

    async def stop(self) -> None:
        """Stop; what was begun is rolled back or settled, as after a crash."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def lags(self) -> dict[str, float]:
        """Seconds since each job last succeeded here; empty while another process is the leader."""
        now = self._clock.monotonic()
        return {name: now - at for name, at in self._succeeded_at.items()}

    async def turn(self) -> bool:
        """One turn of every job; False when another process is the leader."""
        if not await self._leader.is_held():
            self._succeeded_at.clear()
            return False
        for name, job in self._jobs.items():
            self._succeeded_at.setdefault(name, self._clock.monotonic())
            try:
                await job.run()
            except Exception as error:  # noqa: BLE001 - a job's fault is told, and stops no other job
                self._on_fault(name, error)
            else:
                self._succeeded_at[name] = self._clock.monotonic()
        return True

    async def _run(self) -> None:
        while True:
            await self.turn()
            await asyncio.sleep(self._each_s)

"""One child process of the supervisor: started, seen ready, started again with growing pauses, ended.

    starting -> ready -> (died -> waiting -> starting)* -> ending -> ended

A child reads its specification as one line on stdin and then watches stdin: when the supervisor is gone,
however it went, stdin ends and the child ends too. Its first line on stdout is ``ready``.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final

from tenantry.core.clock import Clock
from tenantry.core.errors import TenantryError

READY_S: Final = 60.0
PAUSE_S_MIN: Final = 0.1
PAUSE_S_MAX: Final = 5.0
# A child that lived this long is not failing at its start.
STEADY_S: Final = 30.0
FIRST_ATTEMPTS_MAX: Final = 3
KILLED_S: Final = 10.0


class ChildError(TenantryError):
    """A part of the platform does not start; what it said stands above in the log."""


class Child:
    """Keeps one process running until `stop`. `spec` is asked anew for each start."""

    def __init__(
        self,
        name: str,
        spec: Callable[[], bytes],
        fds: Sequence[int],
        environment: dict[str, str],
        clock: Clock,
        say: Callable[[str], None],
    ) -> None:
        self.name = name
        self.restarts = 0
        self._spec = spec
        self._fds = tuple(fds)
        self._environment = environment
        self._clock = clock
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> None:
        """Begin to keep it running."""
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def wait_ready(self) -> None:
        """Return once it was ready for the first time. Errors: `ChildError` when it does not get there."""
        assert self._task is not None, "start comes first"
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            await self._task
            raise ChildError(f"{self.name} ended before it was ready")

    async def wait_failed(self) -> None:
        """Return never, unless it is given up; then raises why."""
        assert self._task is not None, "start comes first"
        await asyncio.shield(self._task)

    async def stop(self, timeout_s: float) -> None:
        """End it: asked at first, killed after `timeout_s`."""
        self._stopping.set()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(timeout_s):
                    await process.wait()
            except TimeoutError:
                self._say(f"{self.name} did not end in {timeout_s:.0f} s and is killed")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        if self._task is not None:
            with contextlib.suppress(ChildError, TimeoutError):
                async with asyncio.timeout(KILLED_S):
                    await self._task

    def cut(self) -> None:
        """Kill it at once."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _keep(self) -> None:
        pause_s, attempts = PAUSE_S_MIN, 0
        while not self._stopping.is_set():
            started = self._clock.monotonic()
            status = await self._run_once()
            if self._stopping.is_set():
                return
            attempts += 1
            if not self._ready.is_set() and attempts >= FIRST_ATTEMPTS_MAX:
                raise ChildError(f"{self.name} does not start: it ended {attempts} times, last with {status}")
            if self._clock.monotonic() - started > STEADY_S:
                pause_s = PAUSE_S_MIN
            self._say(f"{self.name} ended with {status}; it starts again in {pause_s:.1f} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            pause_s = min(pause_s * 2, PAUSE_S_MAX)
            self.restarts += 1

    async def _run_once(self) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tenantry.cli.process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self._fds,
            env=self._environment,
            # Ctrl-C in a terminal reaches the supervisor alone, which ends its children in order.
            start_new_session=True,
        )
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        if self._stopping.is_set():
            process.kill()
        with contextlib.suppress(ConnectionError):
            process.stdin.write(self._spec() + b"\n")
            await process.stdin.drain()
        try:
            async with asyncio.timeout(READY_S):
                line = await process.stdout.readline()
        except TimeoutError:
            line = b""
        if line.strip() == b"ready":
            self._ready.set()
        elif process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        status = await process.wait()
        # Closing the pipe is what tells a child that we are gone; it is gone already.
        process.stdin.close()
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"

"""What the supervisor starts, by ``python -m tenantry.cli.process``: one gateway or control process.

    spec read -> built -> serving (``ready`` on stdout) -> draining -> closed

Its specification is the first line on stdin. It ends on SIGTERM after the open requests did (bounded), and on
the end of stdin, which is the supervisor's: then at once, since the database goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from typing import Final

import msgspec
import uvloop

from tenantry.bootstrap import ChildSpec, build
from tenantry.core.clock import SystemClock
from tenantry.core.errors import TenantryError
from tenantry.settings import Settings
from tenantry.telemetry.logs import configure_logs, get_logger

SPEC_BYTES_MAX: Final = 1024 * 1024
# Without its supervisor a process has this long to close; then it ends itself.
ORPHAN_S: Final = 2.0


def main() -> int:
    """Serve as the specification on stdin says; the exit status."""
    spec = msgspec.json.decode(sys.stdin.buffer.readline(SPEC_BYTES_MAX), type=ChildSpec)
    settings = Settings.from_environment(spec.variables)
    configure_logs(settings.log_level, spec.name)
    try:
        uvloop.run(_run(spec, settings))
    except TenantryError as error:
        get_logger("process").error("cannot serve", error=str(error))
        return 1
    except Exception:  # noqa: BLE001 - whatever it is, the log must have it
        get_logger("process").exception("this process failed")
        return 1
    return 0


async def _run(spec: ChildSpec, settings: Settings) -> None:
    stop, started = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _watch_supervisor(loop, stop)
    serving = await build(spec, settings, SystemClock())
    tell = asyncio.create_task(_tell(started))
    try:
        await serving.serve(stop, started)
    finally:
        tell.cancel()
        await serving.close()


async def _tell(started: asyncio.Event) -> None:
    await started.wait()
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _watch_supervisor(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """End when stdin does. A thread of its own, so that a loop that is stuck cannot keep the process."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)
        threading.Event().wait(ORPHAN_S)
        os._exit(1)

    threading.Thread(target=wait, name="supervisor-watch", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())

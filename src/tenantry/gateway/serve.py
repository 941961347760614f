"""One gateway process's HTTP server.

Uvicorn on an inherited socket, with our connections and a bounded drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final, cast

import uvicorn

from tenantry.gateway.connection import STALL_S, BoundedConnection

if TYPE_CHECKING:
    from tenantry.gateway.app import GatewayApp

BACKLOG: Final = 2048
KEEP_ALIVE_S: Final = 75
DRAIN_S: Final = 30


class _Server(uvicorn.Server):
    """uvicorn, but signals belong to the process's composition root, which sets `stop`."""

    def __init__(self, config: uvicorn.Config, told: asyncio.Event | None) -> None:
        super().__init__(config)
        self._told = told

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._told is not None:
            self._told.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, for this process or its children. Raises OSError where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.settimeout(0.0)
    except OSError:
        listener.close()
        raise
    return listener


async def serve(
    app: GatewayApp,
    listener: socket.socket,
    stop: asyncio.Event,
    *,
    started: asyncio.Event | None = None,
    drain_s: int = DRAIN_S,
) -> None:
    """Serve until `stop` is set, then let what is open finish within `drain_s`, and return.

    Sets `started` once connections are taken. Closes the listener. What is not finished by
    then is cancelled; the gate settles it as it does for a kill.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # A client that takes nothing of its answer is the kernel's to drop, also after we closed.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALL_S * 1000))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        cast("Any", app),
        http=BoundedConnection,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
    )
    server = _Server(config, started)
    waiting = asyncio.create_task(_stop_when(stop, app, server))
    try:
        await server.serve(sockets=[listener])
    finally:
        waiting.cancel()


async def _stop_when(stop: asyncio.Event, app: GatewayApp, server: uvicorn.Server) -> None:
    await stop.wait()
    app.draining = True
    server.should_exit = True

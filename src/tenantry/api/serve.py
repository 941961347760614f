"""Control's two listeners: its own port, and the socket in the data folder that the CLI and the gateways use."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any, Final, cast

import uvicorn

from tenantry.api.app import ControlApp

BACKLOG: Final = 512
KEEP_ALIVE_S: Final = 30
CONCURRENCY_MAX: Final = 256


class _Server(uvicorn.Server):
    """uvicorn, but signals belong to the process's composition root, which sets `stop`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(
    listeners: list[tuple[ControlApp, socket.socket]],
    stop: asyncio.Event,
    *,
    started: asyncio.Event | None = None,
    drain_s: int = 10,
) -> None:
    """Serve each application on its listener until `stop` is set, then drain within `drain_s`, and return.

    Sets `started` once all of them accept. Closes the listeners.
    """
    servers = [_Server(_config(app, drain_s)) for app, _ in listeners]
    tasks = [
        asyncio.create_task(server.serve(sockets=[listener]))
        for server, (_, listener) in zip(servers, listeners, strict=True)
    ]
    starting = asyncio.create_task(_tell_started(servers, started))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        starting.cancel()
        stopping.cancel()
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)


def _config(app: ControlApp, drain_s: int) -> uvicorn.Config:
    return uvicorn.Config(
        cast("Any", app),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=CONCURRENCY_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
    )


async def _tell_started(servers: list[_Server], started: asyncio.Event | None) -> None:
    # uvicorn has no signal for it; its own start takes a few turns of the loop.
    while not all(server.started for server in servers):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    if started is not None:
        started.set()

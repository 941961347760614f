"""Waiting for what another process does and no signal tells of."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable


async def until(
    holds: Callable[[], Awaitable[bool] | bool], timeout_s: float = 15.0, *, look_s: float = 0.02
) -> None:
    """Look each `look_s` until it holds; `TimeoutError` after `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = holds()
            if await found if inspect.isawaitable(found) else found:
                return
            await asyncio.sleep(look_s)

"""The ways out, over real sockets on loopback, on asyncio's own loop and on the one the platform runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop
from tests.support.calls import CLOCK

from tenantry.adapters.breaker import BreakerSettings
from tenantry.adapters.registry import Adapters, AdapterSettings


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def adapters() -> AsyncIterator[Adapters]:
    """Adapters whose breaker stays out of the way of what a test breaks on purpose."""
    made = Adapters(CLOCK, AdapterSettings(breaker=BreakerSettings(failures=1_000)))
    yield made
    await made.close()

"""The ways out, over real sockets on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.support.calls import CLOCK

from tenantry.adapters.breaker import BreakerSettings
from tenantry.adapters.registry import Adapters, AdapterSettings


@pytest.fixture
async def adapters() -> AsyncIterator[Adapters]:
    """Adapters whose breaker stays out of the way of what a test breaks on purpose."""
    made = Adapters(CLOCK, AdapterSettings(breaker=BreakerSettings(failures=1_000)))
    yield made
    await made.close()

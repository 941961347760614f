"""The gate's function, lanes and steps on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.support.gates import Bench, Lanes
from tests.support.whole_gate import GateBench

from tenantry.storage.connect import DatabaseTarget


@pytest.fixture
async def bench(database: DatabaseTarget) -> AsyncIterator[Bench]:
    async with Bench.open(database) as opened:
        yield opened


@pytest.fixture
async def lanes(database: DatabaseTarget) -> AsyncIterator[Lanes]:
    async with Lanes.open(database) as opened:
        yield opened


@pytest.fixture
async def gate(database: DatabaseTarget) -> AsyncIterator[GateBench]:
    async with GateBench.open(database) as opened:
        yield opened

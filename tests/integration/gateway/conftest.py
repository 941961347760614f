from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.support.gateway import LiveGateway, running_gateway


@pytest.fixture
async def gateway() -> AsyncIterator[LiveGateway]:
    async with running_gateway() as live:
        yield live
        assert live.faults == []

"""Control's use cases on a database of the test's own, since they change what stands above tenants."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from tests.integration.control.support import Control, open_control

from tenantry.storage.connect import DatabaseTarget


@pytest.fixture
async def control(fresh_database: DatabaseTarget) -> AsyncIterator[Control]:
    async with contextlib.AsyncExitStack() as stack:
        yield await stack.enter_async_context(open_control(fresh_database))

"""The control plane's API, served on both of its listeners over a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.api.support import Api, open_api

from tenantry.storage.connect import DatabaseTarget


@pytest.fixture
async def api(fresh_database: DatabaseTarget, tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(fresh_database, tmp_path) as opened:
        yield opened

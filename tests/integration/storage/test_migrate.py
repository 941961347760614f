from __future__ import annotations

from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.migrate import migrate


async def test_a_migrated_database_has_nothing_left_to_do(database: DatabaseTarget) -> None:
    assert await migrate(database) == []

"""Every named statement of the package, planned by the real server as the roles that may run it."""

from __future__ import annotations

from pathlib import Path

import asyncpg
from tests.support.cluster import connect_as

import tenantry
from tenantry.storage.connect import RUNTIME_ROLES, DatabaseTarget
from tenantry.storage.statements import parse_statements

ROOT = Path(tenantry.__file__).parent
# Said by the migrator as the database's admin, or no query at all.
OTHERS = frozenset({"storage/migrate.sql", "storage/roles.sql", "storage/clock.sql", "storage/scope.sql"})


async def test_every_statement_is_planned_for_some_runtime_role(database: DatabaseTarget) -> None:
    """EXPLAIN looks names, types and rights up and runs nothing, so no binding is needed."""
    connections = {role: await connect_as(database, role) for role in RUNTIME_ROLES}
    seen = 0
    try:
        for path in sorted(ROOT.rglob("*.sql")):
            file = str(path.relative_to(ROOT))
            if path.parent.name == "migrations" or file in OTHERS:
                continue
            for statement in parse_statements(path.read_text("utf-8"), source=file).values():
                if statement.kind == "script":
                    continue
                seen += 1
                refusals: dict[str, str] = {}
                for role, connection in connections.items():
                    try:
                        await connection.execute(f"explain (generic_plan) {statement.sql}")
                    except asyncpg.PostgresError as error:
                        refusals[role] = str(error)
                assert len(refusals) < len(RUNTIME_ROLES), (file, statement.name, refusals)
    finally:
        for connection in connections.values():
            await connection.close()
    assert seen > 20

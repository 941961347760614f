"""What the runtime roles may do, by the catalogue and by trying."""

from __future__ import annotations

import asyncpg
import pytest
from tests.support.catalogue import RUNTIME_ROLES, tables
from tests.support.cluster import connect_as

from tenantry.storage.connect import DatabaseTarget

# ------------------------------------------------------------------------------------------------------ roles


async def test_no_role_may_more_than_it_should(database: DatabaseTarget) -> None:
    root = await connect_as(database, database.admin)
    try:
        rows = await root.fetch(
            "select * from pg_roles where rolname like 'tenantry%' order by rolname",
        )
        assert len(rows) == 5
        for row in rows:
            for attribute in ("rolsuper", "rolbypassrls", "rolcreaterole", "rolcreatedb", "rolreplication"):
                assert not row[attribute], (row["rolname"], attribute)
        assert (
            await root.fetch(
                "select from pg_auth_members m join pg_roles r on r.oid = m.member"
                " where r.rolname like 'tenantry%'"
            )
            == []
        )
    finally:
        await root.close()


@pytest.mark.parametrize("role", RUNTIME_ROLES)
async def test_no_role_becomes_another_or_makes_things(database: DatabaseTarget, role: str) -> None:
    connection = await connect_as(database, role)
    others = {"postgres", "tenantry_owner", *RUNTIME_ROLES} - {role}
    hostile = [
        *(f"set role {other}" for other in sorted(others)),
        *(f"set session authorization {other}" for other in sorted(others)),
        "create table public.loot (x text)",
        "create temporary table loot (x text)",
        "create table tenantry.loot (x text)",
        "create schema loot",
        "create role loot",
        "alter role current_user bypassrls",
        "alter table tenantry.journal disable row level security",
        "drop policy bound on tenantry.journal",
        "create policy mine on tenantry.journal using (true)",
        "truncate tenantry.journal",
        "copy tenantry.journal to program 'cat'",
        "select pg_read_file('/etc/passwd')",
        "create or replace function tenantry.now() returns timestamptz language sql return 'infinity'",
        "select * from tenantry_meta.migrations",
    ]
    try:
        await connection.execute("set row_security = off")
        for sql in hostile:
            with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError)):
                await connection.execute(sql)
    finally:
        await connection.close()


# -------------------------------------------------------------------------------------------------- catalogue


async def test_every_table_with_a_tenant_has_forced_row_security(database: DatabaseTarget) -> None:
    root = await connect_as(database, database.admin)
    try:
        for table in await tables(root):
            row = await root.fetchrow(
                "select c.relrowsecurity, c.relforcerowsecurity, c.relowner::regrole::text as owner,"
                " (select count(*) from pg_policy p where p.polrelid = c.oid) as policies"
                " from pg_class c where c.oid = $1::text::regclass",
                f"tenantry.{table}",
            )
            assert row is not None
            assert row["relrowsecurity"] and row["relforcerowsecurity"] and row["policies"] > 0, table
            assert row["owner"] == "tenantry_owner", table
    finally:
        await root.close()


async def test_nothing_is_public_and_nothing_runs_with_its_owner_s_rights(database: DatabaseTarget) -> None:
    root = await connect_as(database, database.admin)
    try:
        definers = await root.fetch(
            "select proname from pg_proc where pronamespace = 'tenantry'::regnamespace and prosecdef"
        )
        assert definers == []
        public = await root.fetch(
            "select proname from pg_proc p where pronamespace = 'tenantry'::regnamespace"
            " and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a"
            "             where a.grantee = 0)"
        )
        assert [row["proname"] for row in public] == []
        tables_public = await root.fetch(
            "select relname from pg_class c, aclexplode(c.relacl) a"
            " where relnamespace = 'tenantry'::regnamespace and a.grantee = 0"
        )
        assert tables_public == []
        views = await root.fetch(
            "select relname from pg_class"
            " where relnamespace = 'tenantry'::regnamespace and relkind in ('v', 'm')"
            " and not coalesce(reloptions @> '{security_invoker=true}', false)"
        )
        assert views == []
        await root.execute("create role stranger login")
        try:
            for right in ("connect", "create", "temporary"):
                assert not await root.fetchval(
                    "select has_database_privilege('stranger', current_database(), $1)", right
                )
            assert not await root.fetchval("select has_schema_privilege('stranger', 'public', 'usage')")
            assert not await root.fetchval("select has_schema_privilege('stranger', 'tenantry', 'usage')")
        finally:
            await root.execute("drop role stranger")
    finally:
        await root.close()

"""The migrator on a real server: once, in order, whole or not at all, by one at a time."""

from __future__ import annotations

import asyncio
import datetime as dt

import asyncpg
import pytest
from tests.support.cluster import Cluster, connect_as

from tenantry.core.errors import StorageUnavailableError
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.errors import MigrationError
from tenantry.storage.migrate import (
    SqlFile,
    load_functions,
    load_migrations,
    migrate,
    set_clock_offset,
)

ADD = SqlFile("0900_pre_add.sql", "create table tenantry.extra (n integer)")
BREAK = SqlFile("0901_pre_break.sql", "create table tenantry.half (n integer); select 1 / 0")


async def ask(target: DatabaseTarget, sql: str) -> object:
    connection = await connect_as(target, target.admin)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_a_migrated_database_has_nothing_left_to_do(database: DatabaseTarget) -> None:
    assert await migrate(database) == []


async def test_a_new_migration_is_applied_once_and_as_the_owner(fresh_database: DatabaseTarget) -> None:
    files = [*load_migrations(), ADD]
    assert await migrate(fresh_database, migrations=files) == [ADD.name]
    assert await migrate(fresh_database, migrations=files) == []
    owner = "select relowner::regrole::text from pg_class where oid = 'tenantry.extra'::regclass"
    assert await ask(fresh_database, owner) == "tenantry_owner"


async def test_a_changed_or_unknown_migration_is_named(fresh_database: DatabaseTarget) -> None:
    files = load_migrations()
    changed = [SqlFile(files[0].name, files[0].sql + "\n-- later thought"), *files[1:]]
    with pytest.raises(MigrationError, match=f"{files[0].name} was changed"):
        await migrate(fresh_database, migrations=changed)
    await migrate(fresh_database, migrations=[*files, ADD])
    with pytest.raises(MigrationError, match=f"{ADD.name}, which this version does not know"):
        await migrate(fresh_database)


async def test_a_migration_that_fails_leaves_nothing_and_names_itself(fresh_database: DatabaseTarget) -> None:
    files = [*load_migrations(), ADD, BREAK]
    with pytest.raises(MigrationError, match=r"0901_pre_break\.sql cannot be applied: .*division by zero"):
        await migrate(fresh_database, migrations=files)
    assert await ask(fresh_database, "select to_regclass('tenantry.half')") is None
    assert await ask(fresh_database, "select to_regclass('tenantry.extra')") is not None
    repaired = SqlFile(BREAK.name, "create table tenantry.half (n integer)")
    assert await migrate(fresh_database, migrations=[*files[:-1], repaired]) == [BREAK.name]


async def test_of_two_starters_one_works_and_the_other_finds_it_done(cluster: Cluster) -> None:
    target = await empty(cluster, "two_starters")
    try:
        results = await asyncio.gather(migrate(target), migrate(target), migrate(target))
        assert sorted(map(len, results))[:2] == [0, 0]
        assert max(map(len, results)) == len(load_migrations()) + len(load_functions())
    finally:
        await cluster.drop(target)


async def test_a_migrator_cancelled_in_the_middle_is_followed_by_a_whole_one(cluster: Cluster) -> None:
    target = await empty(cluster, "cancelled")
    try:
        for turns in (5, 40, 120):
            task = asyncio.create_task(migrate(target))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        async with asyncio.timeout(20):
            await migrate(target)
        assert await migrate(target) == []
    finally:
        await cluster.drop(target)


async def test_function_files_are_applied_again_when_their_text_changed(
    fresh_database: DatabaseTarget,
) -> None:
    text = "create or replace function tenantry.extra_v1() returns integer language sql as $$ select {} $$"
    first = SqlFile("tests/extra.sql", text.format(1))
    second = SqlFile("tests/extra.sql", text.format(2))
    for file, value in ((first, 1), (second, 2), (first, 1)):
        assert await migrate(fresh_database, functions=[file]) == [file.name]
        assert await migrate(fresh_database, functions=[file]) == []
        assert await ask(fresh_database, "select tenantry.extra_v1()") == value
    runtime = await connect_as(fresh_database, "tenantry_app")
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await runtime.fetchval("select tenantry.extra_v1()")
    finally:
        await runtime.close()


async def test_function_files_that_are_absent_or_empty_are_named() -> None:
    for package, file in (
        ("tenantry.gate", "no.sql"),
        ("tenantry.nowhere", "a.sql"),
        ("tenantry.storage", "seal.sql"),
    ):
        with pytest.raises(MigrationError, match=file):
            load_functions([(package, file)])


async def test_a_role_with_too_much_power_stops_the_start(fresh_database: DatabaseTarget) -> None:
    connection = await connect_as(fresh_database, fresh_database.admin)
    try:
        for spoil, repair in (
            ("alter role tenantry_app bypassrls", "alter role tenantry_app nobypassrls"),
            ("grant tenantry_owner to tenantry_gate", "revoke tenantry_owner from tenantry_gate"),
        ):
            await connection.execute(spoil)
            try:
                with pytest.raises(
                    MigrationError, match="more than they should: ?|more than they should, so"
                ):
                    await migrate(fresh_database)
            finally:
                await connection.execute(repair)
        assert await migrate(fresh_database) == []
    finally:
        await connection.close()


async def test_the_clock_of_a_test_database_can_be_moved_at_once(fresh_database: DatabaseTarget) -> None:
    runtime = await connect_as(fresh_database, "tenantry_app")
    try:
        for offset in (dt.timedelta(days=1, microseconds=7), dt.timedelta(hours=-3), dt.timedelta()):
            await set_clock_offset(fresh_database, offset)
            ahead = await runtime.fetchval("select tenantry.now() - clock_timestamp()")
            assert abs(ahead - offset) < dt.timedelta(seconds=2)
    finally:
        await runtime.close()


async def test_a_server_that_is_not_there_is_told(database: DatabaseTarget) -> None:
    with pytest.raises(StorageUnavailableError, match="connecting as"):
        await migrate(database.with_database("no_such_database"))


async def empty(cluster: Cluster, name: str) -> DatabaseTarget:
    """A database that nothing was applied to."""
    maintenance = await cluster.admin(cluster.server.with_database("postgres"))
    try:
        await maintenance.execute(f"create database {name}")
    finally:
        await maintenance.close()
    return cluster.server.with_database(name)

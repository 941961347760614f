"""What the database itself says of its tables, so that cases come from the schema and not from a list.

`row_for` makes a row for any table with a tenant: every column without a default gets a value by its type,
and `BY_COLUMN` has those whose check asks for more.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from typing import Final

import asyncpg
import msgspec

from tenantry.core.ids import TenantId

RUNTIME_ROLES: Final = ("tenantry_gate", "tenantry_app", "tenantry_platform", "tenantry_control")

BY_COLUMN: Final[dict[str, object]] = {
    "mode": "attached",
    "state": "begun",
    "phase": "begin",
    "capability": "read",
    "verb": "kill",
    "level": 3,
    "status": "ok",
}

_TABLES: Final = """
select c.relname as name,
    exists (
        select from pg_attribute a
        where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
    ) as of_tenant
from pg_class c
where c.relnamespace = 'tenantry'::regnamespace and c.relkind in ('r', 'p')
order by c.relname
"""
_COLUMNS: Final = """
select a.attname as name, coalesce(b.typname, t.typname) as type
from pg_attribute a
join pg_type t on t.oid = a.atttypid
left join pg_type b on b.oid = nullif(t.typbasetype, 0)
where a.attrelid = ('tenantry.' || $1)::regclass and a.attnum > 0 and not a.attisdropped
    and a.attnotnull and not a.atthasdef
    or a.attrelid = ('tenantry.' || $1)::regclass and a.attname = 'tenant_id'
order by a.attnum
"""

_NUMBERS = itertools.count(1_000)


class Insert(msgspec.Struct, frozen=True):
    """One insert, with its arguments."""

    sql: str
    args: tuple[object, ...]


async def tables(connection: asyncpg.Connection[asyncpg.Record], *, of_tenant: bool = True) -> list[str]:
    """Tables of the schema that have a `tenant_id`, or those that have none."""
    rows = await connection.fetch(_TABLES)
    return [row["name"] for row in rows if row["of_tenant"] is of_tenant]


async def row_for(connection: asyncpg.Connection[asyncpg.Record], table: str, tenant_id: TenantId) -> Insert:
    """A new row of `table` for a tenant; each call makes another one."""
    number = next(_NUMBERS)
    columns = await connection.fetch(_COLUMNS, table)
    values = [_value(row["name"], row["type"], tenant_id, number) for row in columns]
    names = ", ".join(row["name"] for row in columns)
    places = ", ".join(f"${place}" for place in range(1, len(values) + 1))
    return Insert(f"insert into tenantry.{table} ({names}) values ({places})", tuple(values))


async def fill(connection: asyncpg.Connection[asyncpg.Record], tenant_id: TenantId) -> list[str]:
    """As the superuser: at least one row in each table with a tenant. The tables."""
    names = await tables(connection)
    for table in names:
        count = await connection.fetchval(
            f"select count(*) from tenantry.{table} where tenant_id = $1", tenant_id
        )
        if not count:
            insert = await row_for(connection, table, tenant_id)
            await connection.execute(insert.sql, *insert.args)
    return names


def _value(name: str, kind: str, tenant_id: TenantId, number: int) -> object:
    if name == "tenant_id":
        return tenant_id
    if name in BY_COLUMN:
        return BY_COLUMN[name]
    match kind:
        case "text":
            return f"{name}_{number}"
        case "bytea":
            return hashlib.sha256(f"{name}{number}".encode()).digest()
        case "int2" | "int4" | "int8":
            return number
        case "timestamptz":
            return dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
        case "_text":
            return []
        case "jsonb":
            return "{}"
        case "bool":
            return False
        case _:
            raise AssertionError(f"column {name} has type {kind}: give it a value in BY_COLUMN")

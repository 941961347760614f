"""A real PostgreSQL for one test process: an embedded cluster, a migrated template, and clones of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import asyncpg

from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.embedded import EmbeddedPostgres
from tenantry.storage.migrate import migrate

T = TypeVar("T")

TEMPLATE = "template_tenantry"


def run_apart(work: Coroutine[object, object, T]) -> T:
    """Run async set-up from a synchronous fixture, on a loop of its own, leaving the test's loop alone."""
    with asyncio.Runner() as runner:
        return runner.run(work)


class Cluster:
    """A running cluster with a migrated template; `clone` takes about 0.2 s."""

    def __init__(self, server: DatabaseTarget) -> None:
        self.server = server
        self._numbers = itertools.count(1)

    async def prepare(self) -> None:
        """Make the template. fsync is off: these clusters are thrown away, and a crash test has its own."""
        maintenance = await self.admin(self.server.with_database("postgres"))
        try:
            await maintenance.execute("alter system set fsync = off")
            await maintenance.execute("alter system set full_page_writes = off")
            await maintenance.execute("select pg_reload_conf()")
            await maintenance.execute(f"create database {TEMPLATE}")
        finally:
            await maintenance.close()
        await migrate(self.server.with_database(TEMPLATE))

    async def clone(self, name: str | None = None) -> DatabaseTarget:
        """A new database as the migrations leave it; `migrate` gives the rights, which no copy carries."""
        database = name or f"clone_{next(self._numbers)}"
        maintenance = await self.admin(self.server.with_database("postgres"))
        try:
            await maintenance.execute(f"create database {database} template {TEMPLATE} strategy file_copy")
        finally:
            await maintenance.close()
        target = self.server.with_database(database)
        await migrate(target)
        return target

    async def drop(self, target: DatabaseTarget) -> None:
        """Remove a clone, with whoever is still connected."""
        maintenance = await self.admin(self.server.with_database("postgres"))
        try:
            await maintenance.execute(f"drop database if exists {target.database} with (force)")
        finally:
            await maintenance.close()

    async def admin(self, target: DatabaseTarget) -> asyncpg.Connection[asyncpg.Record]:
        """A connection as the superuser, whom row security does not hold."""
        return await connect_as(target, target.admin)


async def connect_as(target: DatabaseTarget, role: str) -> asyncpg.Connection[asyncpg.Record]:
    """A raw connection as `role`: what an attacker behind the scopes would have."""
    return await asyncpg.connect(
        host=target.host,
        port=target.port,
        user=role,
        database=target.database,
        password=target.passwords.get(role, ""),
        ssl=False,
    )


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """An ephemeral cluster with its template, stopped at the end."""
    postgres = EmbeddedPostgres(folder, ephemeral=True)
    endpoint = postgres.start()
    try:
        cluster = Cluster(DatabaseTarget.from_endpoint(endpoint))
        run_apart(cluster.prepare())
        yield cluster
    finally:
        postgres.stop()

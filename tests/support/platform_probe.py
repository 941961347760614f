"""What the database holds, seen by the superuser: meters, reservations, intents, sums."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from tenantry.storage.connect import DatabaseTarget
from tests.support.cluster import connect_as
from tests.support.platform_wait import until

LEVELS = {"tenant": 0, "workspace": 1, "agent": 2, "run": 3}
GAUGES = ("concurrent_runs", "model_inflight")
COUNTS = (
    "model_tokens_minute",
    "model_tokens_day",
    "cost_microusd_day",
    "tool_calls_day",
    "high_risk_day",
    "journal_bytes",
)
_BEYOND = " or ".join(
    [f"{name}_reserved > {name}_limit or {name}_reserved < 0" for name in GAUGES]
    + [
        f"{name}_used + {name}_reserved > {name}_limit or {name}_reserved < 0 or {name}_used < 0"
        for name in COUNTS
    ]
)
_RESERVED = ", ".join(f"{name}_reserved" for name in (*GAUGES, *COUNTS))


@dataclass
class Sampled:
    """What a sampler saw: how many snapshots, and every scope that was beyond a limit in one."""

    snapshots: int = 0
    beyond: list[str] = field(default_factory=list)


class Probe:
    """One superuser connection; `sample` uses one of its own."""

    def __init__(self, target: DatabaseTarget, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._target = target
        self.connection = connection

    async def value(self, sql: str, *args: object) -> Any:  # noqa: ANN401 - a column's type is the query's
        return await self.connection.fetchval(sql, *args)

    async def rows(self, sql: str, *args: object) -> list[dict[str, Any]]:
        return [dict(row) for row in await self.connection.fetch(sql, *args)]

    async def set_limit(self, tenant: str, level: str, subject: str, **limits: int) -> None:
        """Set limits of one scope as the owner of the database would."""
        columns = ", ".join(f"{name} = {int(value)}" for name, value in limits.items())
        done = await self.connection.execute(
            f"update tenantry.scopes set {columns} where tenant_id = $1 and level = $2 and subject_id = $3",
            tenant,
            LEVELS[level],
            subject,
        )
        assert done == "UPDATE 1", done

    async def scope(self, tenant: str, level: str, subject: str) -> dict[str, Any]:
        row = await self.connection.fetchrow(
            "select * from tenantry.scopes where tenant_id = $1 and level = $2 and subject_id = $3",
            tenant,
            LEVELS[level],
            subject,
        )
        assert row is not None
        return dict(row)

    async def reserved(self, tenant: str) -> dict[str, int]:
        """Everything reserved in any scope of the tenant, zeros left out; the keys say where."""
        found = await self.rows(
            f"select level, subject_id, {_RESERVED} from tenantry.scopes where tenant_id = $1", tenant
        )
        return {
            f"{row['level']}/{row['subject_id']}/{name}": amount
            for row in found
            for name, amount in row.items()
            if name.endswith("_reserved") and amount
        }

    async def states(self, tenant: str, kind: str = "model") -> dict[str, int]:
        """How many actions of a kind stand in each state."""
        found = await self.rows(
            "select state, count(*) as n from tenantry.journal where tenant_id = $1 and kind = $2 group by 1",
            tenant,
            kind,
        )
        return {row["state"]: row["n"] for row in found}

    async def ledger(self, tenant: str) -> tuple[int, int]:
        """Tokens and micro-dollars posted to the tenant's actions."""
        row = await self.connection.fetchrow(
            "select coalesce(sum(used_tokens), 0)::bigint as tokens, "
            "coalesce(sum(used_microusd), 0)::bigint as microusd "
            "from tenantry.journal where tenant_id = $1 and kind = 'model'",
            tenant,
        )
        assert row is not None
        return row["tokens"], row["microusd"]

    async def until_settled(self, tenant: str, timeout_s: float = 15.0) -> None:
        """Wait until no action of the tenant but its runs is open."""

        async def settled() -> bool:
            return not await self.value(
                "select count(*) from tenantry.journal where tenant_id = $1 and state = 'begun' and kind <> 'run'",
                tenant,
            )

        await until(settled, timeout_s)

    @contextlib.asynccontextmanager
    async def sample(self) -> AsyncIterator[Sampled]:
        """Look at every scope of every tenant, again and again, until the block ends."""
        sampled = Sampled()
        connection = await connect_as(self._target, self._target.admin)

        async def look() -> None:
            while True:
                found = await connection.fetch(
                    f"select tenant_id, level, subject_id from tenantry.scopes where {_BEYOND}"
                )
                sampled.snapshots += 1
                sampled.beyond += [f"{row['tenant_id']}/{row['level']}/{row['subject_id']}" for row in found]
                await asyncio.sleep(0.002)

        task = asyncio.create_task(look())
        try:
            yield sampled
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await connection.close()


@contextlib.asynccontextmanager
async def open_probe(target: DatabaseTarget) -> AsyncIterator[Probe]:
    connection = await connect_as(target, target.admin)
    try:
        yield Probe(target, connection)
    finally:
        await connection.close()

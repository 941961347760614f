"""The gate on a real database: single calls of its function, lanes and ledger.

`Bench` speaks `tenantry.batch_v1` as the batcher does and looks at the rows as the superuser; `Lanes` is a batcher with
its ledger. All six steps together are in `whole_gate.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any, Final, Self

import asyncpg
import msgspec

from tenantry.core.clock import Clock, SystemClock
from tenantry.core.ids import InstanceId, new_id
from tenantry.gate.batch import Batcher
from tenantry.gate.calls import (
    BeginItem,
    BeginResult,
    SettleItem,
    SettleResult,
    SettleStatus,
    decode,
    encode,
)
from tenantry.gate.ledger import Ledger
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import GateConnection, PoolSizes, Shard
from tenantry.storage.scope import Scopes, TenantScope
from tenantry.storage.statements import load_statements
from tests.support.cluster import connect_as
from tests.support.tenants import ROOT_KEY, TestTenant

LEAF_HEAD: Final = b"\x00tenantry-log-v1\n"
POOLS: Final = PoolSizes(gate=2, app=4, platform=1, control=2)
CALLS: Final = 128
TOKENS: Final = 10
BATCH: Final = load_statements("tenantry.gate", "statements.sql")["batch"]

CLOCK: Final = SystemClock()


def make_begin(tenant: TestTenant, run: str, /, **changes: Any) -> BeginItem:  # noqa: ANN401 - fields by name
    """A plain read of a tool in a run; `changes` are fields. ``content`` decides its own digest."""
    content = changes.get("content", b"c" * 64)
    item = BeginItem(
        tenant_id=tenant.tenant_id,
        action_id=new_id("act", CLOCK),
        key=None,
        workspace=tenant.workspace_id,
        agent=tenant.agent_id,
        run=run,
        scope_run=run,
        principal="somebody",
        kind="tool",
        name="ticket.read",
        risk=0,
        system="zendesk",
        input_sha256=hashlib.sha256(b"input").digest(),
        policy_version=1,
        fleet_version=1,
        attempt=1,
        allow=True,
        reason="[]",
        approvers="",
        approval_digest=hashlib.sha256(b"digest").digest(),
        labels="",
        labels_epoch=0,
        concurrent_runs=0,
        model_inflight=0,
        model_tokens=0,
        cost_microusd=0,
        tool_calls=1,
        high_risk=0,
        journal_bytes=256,
        timeout_ms=60_000,
        content=content,
        content_sha256=hashlib.sha256(content).digest(),
    )
    return msgspec.structs.replace(item, **changes)


def make_model_begin(tenant: TestTenant, run: str, tokens: int = 100, **changes: Any) -> BeginItem:  # noqa: ANN401
    """A model call that could use so many tokens, and ten times as many micro-dollars."""
    usage: dict[str, Any] = {
        "kind": "model",
        "name": "model.chat",
        "tool_calls": 0,
        "model_inflight": 1,
        "model_tokens": tokens,
        "cost_microusd": tokens * 10,
    }
    return make_begin(tenant, run, **(usage | changes))


def make_settle(begun: BeginItem, status: SettleStatus = "ok", **changes: Any) -> SettleItem:  # noqa: ANN401
    """The settlement of an intent: the bound, unless `changes` say otherwise."""
    output = changes.get("output", b"o" * 32)
    item = SettleItem(
        tenant_id=begun.tenant_id,
        action_id=begun.action_id,
        workspace=begun.workspace,
        agent=begun.agent,
        scope_run=begun.scope_run,
        status=status,
        tokens=begun.model_tokens if status != "void" else 0,
        microusd=begun.cost_microusd if status != "void" else 0,
        journal_bytes=len(begun.content) + len(output),
        labels="",
        output=output,
        output_sha256=hashlib.sha256(output).digest(),
    )
    return msgspec.structs.replace(item, **changes)


def leaf(
    tenant_id: str, position: int, action_id: str, phase: str, word: str, content_sha256: bytes
) -> bytes:
    """What an entry's leaf must be, by the words of the journal's description (RFC 6962 §2.1)."""
    entry = f"{tenant_id}\n{position}\n{action_id}\n{phase}\n{word}\n".encode()
    return hashlib.sha256(LEAF_HEAD + entry + content_sha256).digest()


class Bench:
    """The gate's function over one connection, and the superuser's eyes beside it."""

    def __init__(
        self, target: DatabaseTarget, shard: Shard, gate: GateConnection, root: asyncpg.Connection[Any]
    ) -> None:
        self.target = target
        self.shard = shard
        self.gate = gate
        self.root = root

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, target: DatabaseTarget, clock: Clock | None = None) -> AsyncIterator[Self]:
        """A bench on a database of the tests."""
        shard = await Shard.open(target, ROOT_KEY, POOLS, clock or SystemClock())
        root = await connect_as(target, target.admin)
        try:
            yield cls(target, shard, await shard.gate_connection(), root)
        finally:
            await root.close()
            await shard.close()

    async def batch(
        self,
        begins: Sequence[BeginItem] = (),
        settles: Sequence[SettleItem] = (),
        *,
        skip_locked: bool = False,
    ) -> tuple[list[SettleResult], list[BeginResult]]:
        """One call, as the batcher makes it; every item must have an answer."""
        rows = await self.gate.fetch(BATCH, *encode("ins_bench", settles, begins, skip_locked=skip_locked))
        settled, begun = decode(rows, len(settles), len(begins))
        assert len(rows) == len(settles) + len(begins), "one row an item"
        return [r for r in settled if r is not None], [r for r in begun if r is not None]

    async def begin(self, *items: BeginItem) -> list[str]:
        """The codes of one batch of intents."""
        return [result.code for result in (await self.batch(items))[1]]

    async def settle(self, *items: SettleItem) -> list[str]:
        """The codes of one batch of settlements."""
        return [result.code for result in (await self.batch((), items))[0]]

    async def open_run(self, tenant: TestTenant, **columns: object) -> str:
        """A run's scope with a live lease, written by hand; `columns` are of `scopes`."""
        run_id = new_id("wr", CLOCK)
        await add_run_scope(self.root, tenant.tenant_id, run_id)
        await self.set_scope(tenant, 3, run_id, **columns)
        return run_id

    async def set_scope(self, tenant: TestTenant, level: int, subject: str, **columns: object) -> None:
        """Write columns of one scope row as the superuser."""
        for column, value in columns.items():
            done = await self.root.execute(
                f"update tenantry.scopes set {column} = $4 where tenant_id = $1 and level = $2 and subject_id = $3",
                tenant.tenant_id,
                level,
                subject,
                value,
            )
            assert done == "UPDATE 1", (level, subject)

    async def scope(self, tenant: TestTenant, level: int, subject: str | None = None) -> dict[str, Any]:
        """One scope row."""
        wanted = subject or {0: tenant.tenant_id, 1: tenant.workspace_id, 2: tenant.agent_id}[level]
        row = await self.root.fetchrow(
            "select * from tenantry.scopes where tenant_id = $1 and level = $2 and subject_id = $3",
            tenant.tenant_id,
            level,
            wanted,
        )
        assert row is not None
        return dict(row)

    async def scopes(self, tenant: TestTenant) -> list[dict[str, Any]]:
        """All scope rows of a tenant."""
        rows = await self.root.fetch(
            "select * from tenantry.scopes where tenant_id = $1 order by level, subject_id", tenant.tenant_id
        )
        return [dict(row) for row in rows]

    async def journal(self, tenant: TestTenant) -> list[dict[str, Any]]:
        """A tenant's journal in the order of its log."""
        rows = await self.root.fetch(
            "select * from tenantry.journal where tenant_id = $1 order by log_position", tenant.tenant_id
        )
        return [dict(row) for row in rows]


async def add_run_scope(root: asyncpg.Connection[Any], tenant_id: str, run_id: str) -> None:
    """A run's scope row with a lease of an hour."""
    await root.execute(
        "insert into tenantry.scopes (tenant_id, level, subject_id, attempt, lease_expires_at)"
        " values ($1, 3, $2, 1, tenantry.now() + interval '1 hour')",
        tenant_id,
        run_id,
    )


def reserved_of(scope: Mapping[str, Any]) -> dict[str, int]:
    """Every `_reserved` column of a scope row that is not zero."""
    return {name: value for name, value in scope.items() if name.endswith("_reserved") and value}


def over_limit(scope: Mapping[str, Any]) -> list[str]:
    """The meters of a scope row whose use and reservations pass their limit."""
    return [
        name
        for name in (column.removesuffix("_limit") for column in scope if column.endswith("_limit"))
        if scope[f"{name}_limit"] is not None
        and scope.get(f"{name}_used", 0) + scope[f"{name}_reserved"] > scope[f"{name}_limit"]
    ]


async def check_log(root: asyncpg.Connection[Any], tenant_id: str) -> int:
    """INVARIANT 10: positions are gapless, each entry's leaf recomputes from the stored fields. Returns the size."""
    size = await root.fetchval(
        "select log_size from tenantry.scopes where tenant_id = $1 and level = 0", tenant_id
    )
    leaves = await root.fetch(
        "select l.position, l.action_id, l.phase, l.leaf, j.verdict, j.status, j.log_position, j.state, j.content,"
        " j.content_sha256, j.output, j.output_sha256"
        " from tenantry.log_leaves l left join tenantry.journal j using (tenant_id, action_id)"
        " where l.tenant_id = $1 order by l.position",
        tenant_id,
    )
    assert [row["position"] for row in leaves] == list(range(size))
    ended = set()
    for row in leaves:
        begins = row["phase"] == "begin"
        word, digest = (
            (row["verdict"], row["content_sha256"]) if begins else (row["status"], row["output_sha256"])
        )
        if begins:
            assert row["log_position"] == row["position"]
        else:
            ended.add(row["action_id"])
        kept = row["content"] if begins else row["output"]
        assert kept is None or hashlib.sha256(kept).digest() == digest
        assert row["leaf"] == leaf(
            tenant_id, row["position"], row["action_id"], row["phase"], word, digest
        ), row
    journaled = await root.fetch(
        "select action_id, state from tenantry.journal where tenant_id = $1", tenant_id
    )
    assert {r["action_id"] for r in journaled} == {r["action_id"] for r in leaves}
    assert {r["action_id"] for r in journaled if r["state"] in {"settled", "voided", "held"}} == ended
    return int(size)


class Lanes:
    """A batcher with its ledger, as one gateway process has them."""

    def __init__(self, shard: Shard, scopes: Scopes, batcher: Batcher, ledger: Ledger) -> None:
        self.shard = shard
        self.scopes = scopes
        self.batcher = batcher
        self.ledger = ledger

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, target: DatabaseTarget, *, instance_id: str = "ins_lanes", **options: int
    ) -> AsyncIterator[Self]:
        """On a shard of its own; `options` are the batcher's."""
        clock = SystemClock()
        shard = await Shard.open(target, ROOT_KEY, POOLS, clock)
        batcher = Batcher(
            await shard.gate_connection(),
            await shard.gate_connection(),
            shard_id=shard.shard_id,
            instance_id=InstanceId(instance_id),
            clock=clock,
            **options,
        )
        batcher.start()
        try:
            yield cls(shard, Scopes(shard, clock), batcher, Ledger(batcher, clock))
        finally:
            await batcher.close()
            await shard.close()

    async def scope(self, tenant: TestTenant) -> TenantScope:
        """The tenant's scope, as its admin has it."""
        return await self.scopes.for_principal(tenant.admin)


async def terminate_gate_backends(root: asyncpg.Connection[Any]) -> int:
    """Kill every connection of the gate's role in this database; how many there were."""
    return int(
        await root.fetchval(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where usename = 'tenantry_gate' and datname = current_database()"
        )
    )


async def turns_until(true: Callable[[], bool]) -> None:
    """Let everything else take its turns until `true` says so."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - it looks at what has no event
            await asyncio.sleep(0)


async def gather_all(*work: Awaitable[Any]) -> list[Any]:
    """Results or exceptions, in order."""
    return list(await asyncio.gather(*work, return_exceptions=True))


async def storm(gateways: list[Lanes], tenant: TestTenant, run: str) -> tuple[Counter[str], list[Any]]:
    """All calls at once, spread over the gateways; codes, and the items that were allowed."""
    items = [make_model_begin(tenant, run, tokens=TOKENS) for _ in range(CALLS)]
    scopes = [await lanes.scope(tenant) for lanes in gateways]
    results = await asyncio.gather(
        *(
            gateways[place % len(gateways)].ledger.begin(scopes[place % len(gateways)], item)
            for place, item in enumerate(items)
        )
    )
    allowed = [item for item, result in zip(items, results, strict=True) if result.code == "allowed"]
    return Counter(result.code for result in results), allowed


def storm_in_a_process(
    target: DatabaseTarget, tenant: TestTenant, run: str, start: Barrier, answers: Queue[dict[str, int]]
) -> None:
    """A gateway that is a process: it waits for the others at `start`, and answers its codes."""

    async def work() -> dict[str, int]:
        async with Lanes.open(target) as lanes:
            await lanes.scope(tenant)
            start.wait(30)
            return dict((await storm([lanes], tenant, run))[0])

    answers.put(asyncio.run(work()))

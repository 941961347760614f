"""The platform in one process, for measuring the gate: everything real but the doors and the way out.

An embedded cluster of its own with fsync on, migrated; a shard, an instance with its lease, the gate as
`bootstrap` composes it (policy, sealing, journal, log positions, meters at four levels), tenants and runs opened
through it. The adapter asks its guard, emits one head, and answers 200 bytes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

import asyncpg
import msgspec
import uvloop

from benchmarks import fleet
from tenantry.broker.broker import Broker
from tenantry.broker.platform import seal_credential
from tenantry.broker.secrets import SecretValue
from tenantry.core.action import Action, Outcome, OutcomeStatus, Risk, Target
from tenantry.core.clock import SystemClock
from tenantry.core.event import Head
from tenantry.core.ids import ActionId, ActionName, AgentId, KeyId, PrincipalId, TenantId, new_id
from tenantry.core.principal import Principal, Role
from tenantry.core.quota import Usage
from tenantry.gate.batch import Batcher
from tenantry.gate.begin import Begin
from tenantry.gate.context import OpenRun
from tenantry.gate.credential import FetchCredential
from tenantry.gate.gate import Gate
from tenantry.gate.identify import Identify, KnownLabels
from tenantry.gate.ledger import Ledger
from tenantry.gate.perform import Perform
from tenantry.gate.ports import AdapterCall, Emit
from tenantry.gate.runs import Runs
from tenantry.gate.shed import ShedJournal
from tenantry.gate.views import Views
from tenantry.identity.tokens import RunTokens
from tenantry.quota.limits import overlay
from tenantry.registry.store import put_platform, put_provider_credentials, put_tenant
from tenantry.storage.database import DatabaseTarget, PoolSizes, Shard
from tenantry.storage.embedded import EmbeddedPostgres
from tenantry.storage.migrate import migrate
from tenantry.storage.scope import Scopes
from tenantry.storage.seal import RootKey
from tenantry.storage.statements import load_statements
from tenantry.switches.instance import Instance

T = TypeVar("T")

# The lone connections of 64 gates without group commit, and the pair of the gate with it.
GATE_CONNECTIONS: Final = 2 + 2 * 64
APP_CONNECTIONS: Final = 6
RUN_MS: Final = 6 * 3600 * 1000
OUTPUT: Final = msgspec.json.encode({"ticket": {"id": "zd_99102", "status": "open", "note": "x" * 140}})
OUTPUT_ROOM_BYTES: Final = 4_096
HEAD: Final = Head(200, "application/json", stream=False)
OPERATOR: Final = Principal(
    principal_id=PrincipalId("op_benchmarks"),
    key_id=KeyId("key_benchmarks"),
    role=Role.OPERATOR,
    tenant_id=None,
    workspace_id=None,
)


class Instant:
    """An upstream that answers at once."""

    async def perform(self, call: AdapterCall, emit: Emit, /) -> Outcome:
        """Ask the guard, emit the head, answer."""
        call.guard.check()
        await emit(HEAD)
        return Outcome(OutcomeStatus.OK, OUTPUT, Usage(tool_calls=1), http_status=200)


class GatePath:
    """One gate with the batcher behind it."""

    def __init__(self, begin: Begin, ledger: Ledger, gate: Gate, batcher: Batcher) -> None:
        self.begin = begin
        self.ledger = ledger
        self.gate = gate
        self.batcher = batcher


class World:
    """What a benchmark works with. Made by `in_world`; ``path`` is the gate as the product runs it."""

    path: GatePath

    def __init__(self, target: DatabaseTarget, folder: Path, shard: Shard, instance: Instance) -> None:
        self.target = target
        self.folder = folder
        self.shard = shard
        self.instance = instance
        self.clock = SystemClock()
        self.scopes = Scopes(shard, self.clock)
        self.statements = load_statements("benchmarks", "world.sql")
        self._tokens = RunTokens.from_file(folder / "run-token.jwk", self.clock)
        self._views, self._labels = Views(), KnownLabels()
        self._broker = Broker(self.clock)
        self._paths: list[GatePath] = []
        self._number = 0

    async def add_path(self, *, size: int | None = None, per_tenant: int | None = None) -> GatePath:
        """One more gate, with connections of its own; without sizes it batches as the product does."""
        sizes = {} if size is None or per_tenant is None else {"size": size, "per_tenant": per_tenant}
        batcher = Batcher(
            await self.shard.gate_connection(),
            await self.shard.gate_connection(),
            shard_id=self.shard.shard_id,
            instance_id=self.instance.instance_id,
            clock=self.clock,
            **sizes,
        )
        ledger = Ledger(batcher, self.clock)
        begin = Begin(ledger, self._views, self._labels, self.clock)
        gate = Gate(
            Identify(self._tokens, self.scopes, self._views),
            begin,
            FetchCredential(self._broker),
            Perform(Instant(), self.instance, self.clock),
            ledger,
            Runs(self.scopes, self._views, begin, ledger, self._tokens, self.clock),
            ShedJournal(self.scopes, self.instance.instance_id, self.clock),
            self.clock,
        )
        batcher.start()
        path = GatePath(begin, ledger, gate, batcher)
        self._paths.append(path)
        return path

    async def close(self) -> None:
        """Settle what is open, then stop the batchers."""
        for path in self._paths:
            await path.ledger.drain(10.0)
            await path.batcher.close()

    async def add_tenants(self, names: Iterable[str]) -> None:
        """Register tenants, a few at a time."""
        await _few_at_a_time([self._add_tenant(TenantId(name)) for name in names])

    async def _add_tenant(self, tenant_id: TenantId) -> None:
        scope = await self.scopes.for_registration(OPERATOR, tenant_id)
        levels = (
            (0, tenant_id, fleet.QUOTA.tenant),
            (1, fleet.WORKSPACE, fleet.QUOTA.workspace),
            (2, fleet.AGENT, fleet.QUOTA.agent),
        )
        async with scope:
            await put_tenant(scope, fleet.make_tenant())
            await scope.ensure_data_key()
            for level, subject, limits in levels:
                document = msgspec.json.encode(overlay(limits)).decode()
                await scope.fetch_one(self.statements["put_scope"], tenant_id, level, subject, document)

    async def open_runs(self, names: Iterable[str]) -> list[str]:
        """A run's token for each name of a tenant; name it twice for two runs."""
        return await _few_at_a_time([self._open_run(TenantId(name)) for name in names])

    async def _open_run(self, tenant_id: TenantId) -> str:
        request = OpenRun(tenant_id, AgentId(fleet.AGENT), None, "external", b"{}", RUN_MS)
        opened = await self.path.gate.open_run(OPERATOR, request)
        assert opened.token is not None, f"no run for {tenant_id}: {opened.result.verdict}"
        return opened.token

    def new_action(self) -> Action:
        """The update of some ticket, as the door makes it of a request of about 300 bytes."""
        self._number += 1
        record = f"zd_{self._number % 10_000}"
        given = b'{"comment":"' + b"x" * 260 + b'","status":"open","ticket":"' + record.encode() + b'"}'
        return Action(
            action_id=ActionId(new_id("act", self.clock)),
            name=ActionName(fleet.ACTION),
            kind="tool",
            risk=Risk.WRITE,
            target=Target(fleet.SYSTEM, record),
            input=given,
            input_sha256=hashlib.sha256(given).digest(),
            idempotency_key=None,
            estimate=Usage(tool_calls=1, journal_bytes=len(given) + OUTPUT_ROOM_BYTES),
            timeout_ms=30_000,
            destination="tickets.example",
        )

    async def connect_admin(self) -> asyncpg.Connection[asyncpg.Record]:
        """A connection as the superuser, for the floor and for reading the journal afterwards."""
        target = self.target
        return await asyncpg.connect(
            host=target.host, port=target.port, user=target.admin, database=target.database, ssl=False
        )


def in_world(
    scenario: Callable[[World], Awaitable[T]], *, tenants: Iterable[str], provider_url: str | None = None
) -> T:
    """Run `scenario` on uvloop in a world of its own with these tenants; about 5 s to make 200 of them.

    Everything that was made beforehand is frozen, so that the collector does not walk it while we measure.
    """
    with tempfile.TemporaryDirectory(prefix="tenantry-benchmark-") as name:
        folder = Path(name)
        with EmbeddedPostgres(folder, ephemeral=True) as endpoint:
            target = DatabaseTarget.from_endpoint(endpoint)

            async def run() -> T:
                async with _open_world(target, folder) as world:
                    await _fill(world, tenants, provider_url)
                    gc.collect()
                    gc.freeze()
                    return await scenario(world)

            try:
                return uvloop.run(run())
            finally:
                gc.unfreeze()


@contextlib.asynccontextmanager
async def _open_world(target: DatabaseTarget, folder: Path) -> AsyncIterator[World]:
    await migrate(target)
    clock = SystemClock()
    sizes = PoolSizes(gate=GATE_CONNECTIONS, app=APP_CONNECTIONS, platform=1, control=2)
    async with contextlib.AsyncExitStack() as stack:
        shard = await Shard.open(target, RootKey.from_file(folder / "root.key"), sizes, clock)
        stack.push_async_callback(shard.close)
        instance = Instance(await shard.control_connection(), clock, role="gateway", address="benchmark")
        world = World(target, folder, shard, instance)
        world.path = await world.add_path()
        stack.push_async_callback(world.close)
        await instance.start()
        stack.push_async_callback(instance.stop)
        yield world


async def _fill(world: World, tenants: Iterable[str], provider_url: str | None) -> None:
    admin = await world.connect_admin()
    try:
        await admin.execute(world.statements["make_floor"].sql)
    finally:
        await admin.close()
    async with world.scopes.platform(reason="benchmarks", operator=OPERATOR.principal_id) as platform:
        await put_platform(platform, fleet.make_fleet(provider_url))
        if provider_url is not None:
            key = seal_credential(
                world.shard.keyring, fleet.PROVIDER, SecretValue(fleet.PROVIDER_KEY), before=None
            )
            await put_provider_credentials(platform, {fleet.PROVIDER: key})
    await world.add_tenants(tenants)


async def _few_at_a_time(work: list[Awaitable[T]]) -> list[T]:
    """All of it in order, never more at once than there are connections."""
    turn = asyncio.Semaphore(APP_CONNECTIONS)

    async def one(item: Awaitable[T]) -> T:
        async with turn:
            return await item

    return list(await asyncio.gather(*(one(item) for item in work)))

"""Dedicated connections and pools on a real server: what they survive and what they say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.cluster import connect_as
from tests.support.fixtures import MakeTenant
from tests.support.tenants import ROOT_KEY, register_tenant

from tenantry.core.clock import SystemClock
from tenantry.core.errors import StorageUnavailableError
from tenantry.storage.connect import DatabaseTarget
from tenantry.storage.database import ControlConnection, GateConnection, PoolSizes, Shard
from tenantry.storage.embedded import EmbeddedPostgres
from tenantry.storage.errors import LockTimeoutError, ScopeMisuseError, StatementError
from tenantry.storage.migrate import migrate
from tenantry.storage.scope import Scopes
from tenantry.storage.seal import RootKey
from tenantry.storage.statements import Statement

PID = Statement("pid", "many", "select pg_backend_pid() as pid, current_user::text as role")
DIVIDE = Statement("divide", "many", "select 1 / $1::integer as n")
SLEEP = Statement("sleep", "many", "select pg_sleep($1)")
LOCK = Statement("lock", "many", "select from tenantry.fleet_scope for share")
ECHO = Statement("echo", "one", "select current_setting('app.tenants') as bound, current_user::text as role")


@pytest.fixture
async def gate(shard: Shard) -> GateConnection:
    return await shard.gate_connection()


@pytest.fixture
async def control(shard: Shard) -> ControlConnection:
    return await shard.control_connection()


async def pid_of(connection: GateConnection | ControlConnection) -> int:
    rows = await (
        connection.fetch(PID) if isinstance(connection, GateConnection) else connection.fetch_all(PID)
    )
    return int(rows[0]["pid"])


async def terminate(database: DatabaseTarget, pid: int) -> None:
    """End a backend, and return when it is gone."""
    root = await connect_as(database, database.admin)
    try:
        assert await root.fetchval("select pg_terminate_backend($1, 5000)", pid)
    finally:
        await root.close()


# --------------------------------------------------------------------------------------------------- the gate


async def test_the_gate_keeps_its_connection_over_refused_statements(gate: GateConnection) -> None:
    (row,) = await gate.fetch(PID)
    assert row["role"] == "tenantry_gate"
    with pytest.raises(StatementError) as refused:
        await gate.fetch(DIVIDE, 0)
    assert refused.value.sqlstate == "22012"
    with pytest.raises(StatementError):
        await gate.fetch(DIVIDE, "not a number")
    assert await pid_of(gate) == row["pid"]


async def test_the_gate_tells_a_lock_from_a_loss(gate: GateConnection, database: DatabaseTarget) -> None:
    before = await pid_of(gate)
    root = await connect_as(database, database.admin)
    try:
        async with root.transaction():
            await root.execute("lock table tenantry.fleet_scope in access exclusive mode")
            with pytest.raises(LockTimeoutError):
                await gate.fetch(LOCK)
    finally:
        await root.close()
    assert await pid_of(gate) == before


async def test_the_gate_connects_again_after_a_loss(gate: GateConnection, database: DatabaseTarget) -> None:
    for _ in range(3):
        pid = await pid_of(gate)
        task = asyncio.create_task(gate.fetch(SLEEP, 4))
        await asyncio.sleep(0)
        await terminate(database, pid)
        with pytest.raises(StorageUnavailableError):
            await task
        assert await pid_of(gate) != pid


async def test_an_answer_that_does_not_come_in_time_costs_the_connection(gate: GateConnection) -> None:
    pid = await pid_of(gate)
    with pytest.raises(StorageUnavailableError, match="in time"):
        await gate.fetch(SLEEP, 4, timeout_s=0.05)
    assert await pid_of(gate) != pid


async def test_a_cancelled_call_costs_the_connection_and_no_more(gate: GateConnection) -> None:
    pid = await pid_of(gate)
    task = asyncio.create_task(gate.fetch(SLEEP, 4))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await asyncio.shield(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await pid_of(gate) != pid


async def test_the_gate_talks_one_at_a_time(gate: GateConnection) -> None:
    task = asyncio.create_task(gate.fetch(SLEEP, 0.05))
    await asyncio.sleep(0)
    with pytest.raises(ScopeMisuseError, match="one statement at a time"):
        await gate.fetch(PID)
    await task


async def test_a_process_has_no_more_connections_than_its_share(shard: Shard) -> None:
    for _ in range(2):
        await shard.gate_connection()
    with pytest.raises(ScopeMisuseError, match="all its 2"):
        await shard.gate_connection()


# ---------------------------------------------------------------------------------------------------- control


async def test_control_binds_the_scope_s_tenant(
    control: ControlConnection, scopes: Scopes, make_tenant: MakeTenant
) -> None:
    tenant, other = await make_tenant(), await make_tenant()
    count = Statement("count", "one", "select count(*) as n from tenantry.scopes")
    freeze = Statement("freeze", "exec", "update tenantry.scopes set frozen = true where tenant_id = $1")
    async with control.transaction(await scopes.for_job(tenant.tenant_id, "test")) as transaction:
        row = await transaction.fetch_one(ECHO)
        assert row is not None
        assert (row["bound"], row["role"]) == (f"{{{tenant.tenant_id}}}", "tenantry_control")
        counted = await transaction.fetch_one(count)
        assert counted is not None and counted["n"] == 3
        assert await transaction.execute(freeze, other.tenant_id) == 0
        assert await transaction.execute(freeze, tenant.tenant_id) == 3
    with pytest.raises(StatementError, match="42501"):
        await control.fetch_one(count)


async def test_control_gives_turns_and_frees_them(
    control: ControlConnection, scopes: Scopes, make_tenant: MakeTenant
) -> None:
    scope = await scopes.for_job((await make_tenant()).tenant_id, "test")

    async def fail() -> None:
        async with control.transaction(scope) as transaction:
            await transaction.fetch_one(ECHO)
            raise KeyError("mine")

    with pytest.raises(KeyError):
        await fail()

    entered = asyncio.Event()

    async def hang() -> None:
        async with control.transaction(scope) as transaction:
            await transaction.fetch_one(ECHO)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await entered.wait()
    waiting = asyncio.create_task(pid_of(control))
    await asyncio.sleep(0)
    assert not waiting.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await waiting > 0


async def test_control_listens_and_listens_again_after_a_loss(
    control: ControlConnection, database: DatabaseTarget
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    await control.listen("tenantry_test", heard.put_nowait)
    root = await connect_as(database, database.admin)
    try:
        await root.execute("notify tenantry_test, 'first'")
        assert await asyncio.wait_for(heard.get(), 5) == "first"
        await terminate(database, await pid_of(control))
        with contextlib.suppress(StorageUnavailableError):
            await pid_of(control)
        await pid_of(control)
        await root.execute("notify tenantry_test, 'second'")
        assert await asyncio.wait_for(heard.get(), 5) == "second"
        assert heard.empty()
    finally:
        await root.close()


async def test_control_works_while_the_app_s_pool_is_taken(
    database: DatabaseTarget, clock: SystemClock, make_tenant: MakeTenant
) -> None:
    victim, flood = await make_tenant(), await make_tenant()
    shard = await Shard.open(database, ROOT_KEY, PoolSizes(app=1, control=1), clock)
    try:
        scopes = Scopes(shard, clock)
        control = await shard.control_connection()
        async with await scopes.for_principal(flood.admin) as taken:
            await taken.fetch_one(ECHO)
            async with asyncio.timeout(1):
                scope = await scopes.for_job(victim.tenant_id, "kill")
                async with control.transaction(scope) as transaction:
                    assert await transaction.fetch_one(ECHO) is not None
    finally:
        await shard.close()


# ------------------------------------------------------------------------------------------ the server's life


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server of this test's own, which may crash."""
    postgres = EmbeddedPostgres(tmp_path / "data", ephemeral=True)
    yield postgres
    postgres.stop()


async def test_a_shard_outlives_a_crash_of_its_server(lasting: EmbeddedPostgres, clock: SystemClock) -> None:
    target = DatabaseTarget.from_endpoint(lasting.start())
    await migrate(target)
    tenant = await register_tenant(target, clock)
    shard = await Shard.open(target, ROOT_KEY, PoolSizes(gate=1, app=2, control=1), clock)
    try:
        scopes = Scopes(shard, clock)
        gate, control = await shard.gate_connection(), await shard.control_connection()

        async def use() -> None:
            async with await scopes.for_principal(tenant.admin) as scope:
                assert await scope.fetch_one(ECHO) is not None
            await gate.fetch(PID)
            await control.fetch_all(PID)

        await use()
        root = await connect_as(target, target.admin)
        folder = Path(await root.fetchval("show data_directory"))
        await root.close()
        os.kill(int((folder / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
        assert lasting._keeper is not None
        assert await asyncio.to_thread(lasting._keeper.exited.wait, 10)
        for attempt in (gate.fetch(PID), control.fetch_all(PID), pid_of(gate)):
            with pytest.raises(StorageUnavailableError):
                await attempt
        with pytest.raises(StorageUnavailableError):
            async with await scopes.for_principal(tenant.admin) as scope:
                await scope.fetch_one(ECHO)
        with pytest.raises(StorageUnavailableError):
            await Shard.open(target, ROOT_KEY, PoolSizes(), clock)
        assert await asyncio.to_thread(lasting.start)
        await use()
    finally:
        await shard.close()


async def test_opening_says_what_is_wrong(
    database: DatabaseTarget, clock: SystemClock, tmp_path: Path
) -> None:
    absent = DatabaseTarget(str(tmp_path), 5432, "tenantry", "postgres")
    for target in (absent, database.with_database("no_such_database")):
        with pytest.raises(StorageUnavailableError, match="connecting as tenantry_app"):
            await Shard.open(target, ROOT_KEY, PoolSizes(), clock)


# ----------------------------------------------------------------------------------------- an external server


async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Forward until either side is gone."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()


def ask_for_passwords(access: Path) -> None:
    access.write_text("local all postgres peer map=tenantry\nlocal all all scram-sha-256\n")


@pytest.fixture
async def external(lasting: EmbeddedPostgres) -> AsyncIterator[str]:
    """The URL of a server that asks for passwords, of a user who is no superuser and may make roles."""
    endpoint = lasting.start()
    root = await connect_as(DatabaseTarget.from_endpoint(endpoint), "postgres")
    try:
        await root.execute("create role fleet_admin login createrole password 'over/there'")
        await root.execute("create database fleet owner fleet_admin")
        ask_for_passwords(Path(await root.fetchval("show hba_file")))
        await root.execute("select pg_reload_conf()")
        yield f"postgresql://fleet_admin:over%2Fthere@/fleet?host={endpoint.socket_dir}"
    finally:
        await root.close()


async def test_an_external_server_is_used_with_passwords_from_the_root_key(
    external: str, clock: SystemClock
) -> None:
    target = DatabaseTarget.from_url(external, ROOT_KEY)
    assert await migrate(target) != []
    assert await migrate(target) == []
    scopes_row = Statement("n", "one", "select count(*) as n from tenantry.platform_specs")
    shard = await Shard.open(target, ROOT_KEY, PoolSizes(gate=1, platform=1), clock)
    try:
        async with Scopes(shard, clock).platform(reason="look", operator="op") as scope:
            assert await scope.fetch_one(scopes_row) is not None
        assert (await (await shard.gate_connection()).fetch(PID))[0]["role"] == "tenantry_gate"
    finally:
        await shard.close()
    stranger = DatabaseTarget.from_url(external, RootKey(b"another root key, 32 bytes long."))
    with pytest.raises(StorageUnavailableError, match="password"):
        await Shard.open(stranger, ROOT_KEY, PoolSizes(), clock)


async def test_a_pooler_that_drops_start_up_settings_is_refused(
    database: DatabaseTarget, clock: SystemClock, tmp_path: Path
) -> None:
    """A relay that forwards all but the start-up message's settings, as a pooler in transaction mode does."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(4))
        body = await reader.readexactly(length - 4)
        fields = body[4:].rstrip(b"\0").split(b"\0")
        pairs = dict(zip(fields[::2], fields[1::2], strict=True))
        kept = b"".join(name + b"\0" + pairs[name] + b"\0" for name in (b"user", b"database"))
        onward, back = await asyncio.open_unix_connection(f"{database.host}/.s.PGSQL.{database.port}")
        message = body[:4] + kept + b"\0"
        back.write((len(message) + 4).to_bytes(4) + message)

        await asyncio.gather(copy(reader, back), copy(onward, writer))
        await asyncio.gather(back.wait_closed(), writer.wait_closed(), return_exceptions=True)

    handled: list[asyncio.Task[None]] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled.append(asyncio.create_task(relay(reader, writer)))

    server = await asyncio.start_unix_server(accept, tmp_path / f".s.PGSQL.{database.port}")
    async with server:
        pooled = DatabaseTarget(str(tmp_path), database.port, database.database, database.admin)
        with pytest.raises(StorageUnavailableError, match="pooler"):
            await Shard.open(pooled, ROOT_KEY, PoolSizes(), clock)
        with pytest.raises(StorageUnavailableError, match="pooler"):
            await migrate(pooled)
        await asyncio.gather(*handled)

"""One database with the whole schema, as one process uses it: pools for scopes, dedicated connections, keys.

The gate and the control process each talk over connections of their own, which no request can take: group
commit needs exactly one conversation at a time, and a kill must work when every pool is exhausted. For the
same reason a scope's data key is read over a pool of one that serves nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final, Self

import asyncpg
import msgspec

from tenantry.core.clock import Clock
from tenantry.core.errors import StorageUnavailableError
from tenantry.core.ids import TenantId
from tenantry.storage.bound import TenantBound
from tenantry.storage.connect import (
    Connection,
    DatabaseTarget,
    Row,
    ServerFacts,
    answering,
    check_server,
    connect,
    connect_arguments,
    unavailable,
)
from tenantry.storage.errors import ScopeMisuseError
from tenantry.storage.seal import KeyRing, RootKey, WrappedKeys
from tenantry.storage.statements import Statement, load_statements
from tenantry.storage.transaction import (
    TAKE_TIMEOUT_S,
    BoundTransaction,
    LentConnection,
    TransactionStatements,
    count_of,
)

__all__ = [
    "ControlConnection",
    "ControlTransaction",
    "DatabaseTarget",
    "DedicatedConnection",
    "GateConnection",
    "PoolLender",
    "PoolSizes",
    "Shard",
]

# One more than the server's own statement timeout of the role, so that the server is the first to speak.
APP_TIMEOUT_S: Final = 11.0
PLATFORM_TIMEOUT_S: Final = 31.0
CONTROL_TIMEOUT_S: Final = 6.0
GATE_TIMEOUT_S: Final = 6.0
LOOKUP_TIMEOUT_S: Final = 3.0

# Waits between attempts to connect within one call; the sum is far below what a caller waits anyway.
RECONNECT_WAITS_S: Final = (0.01, 0.05)


class PoolSizes(msgspec.Struct, frozen=True):
    """How many connections one process may hold, a role; 0: it has no business there."""

    gate: int = 2
    app: int = 4
    platform: int = 0
    control: int = 1


class PoolLender:
    """Lends connections of a pool; `size` at once, made when first needed, made again when lost."""

    def __init__(self, target: DatabaseTarget, role: str, *, size: int, command_timeout_s: float) -> None:
        self._role = role
        self._size = size
        self._pool = asyncpg.create_pool(
            min_size=0,
            max_size=size,
            reset=_still_idle,
            **connect_arguments(target, role, command_timeout_s=command_timeout_s),
        )

    async def open(self) -> None:
        """Make ready; connects nowhere yet."""
        _ = await self._pool

    async def take(self) -> LentConnection:
        """A connection within `TAKE_TIMEOUT_S`. Errors: `StorageUnavailableError`."""
        try:
            return await self._pool.acquire(timeout=TAKE_TIMEOUT_S)
        except TimeoutError:
            raise StorageUnavailableError(
                f"none of the {self._size} connections as {self._role} came free in time"
            ) from None
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, there is no connection
            raise unavailable(error, doing=f"connecting as {self._role}") from None

    async def give_back(self, connection: LentConnection) -> None:
        """Take back an idle connection; no round trip."""
        assert isinstance(connection, asyncpg.pool.PoolConnectionProxy)
        await self._pool.release(connection)

    def cut(self, connection: LentConnection) -> None:
        """Close it at once; its place in the pool is free again."""
        connection.terminate()

    async def close(self) -> None:
        """Close what is idle, cut the rest."""
        try:
            async with asyncio.timeout(TAKE_TIMEOUT_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


async def _still_idle(connection: Any) -> None:  # noqa: ANN401 - the driver's stub names its own generic here
    if connection.is_in_transaction():
        raise ScopeMisuseError("a connection came back inside a transaction")


class DedicatedConnection:
    """One connection as one role, for one statement at a time; made when first needed and again after a loss.

    The call that meets the loss raises `StorageUnavailableError`, as nobody knows whether its statement took
    effect; the next one connects again.
    """

    def __init__(self, target: DatabaseTarget, role: str, *, command_timeout_s: float) -> None:
        self._target = target
        self._role = role
        self._command_timeout_s = command_timeout_s
        self._connection: Connection | None = None
        self._closed = False

    @property
    def role(self) -> str:
        return self._role

    async def ready(self, prepare: Callable[[Connection], Any] | None = None) -> Connection:
        """The live connection; `prepare` is awaited on a new one before it counts."""
        if self._closed:
            raise StorageUnavailableError("the shard is closed")
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        self._connection = None
        for wait_s in (*RECONNECT_WAITS_S, None):
            try:
                connection = await connect(
                    self._target, self._role, command_timeout_s=self._command_timeout_s
                )
            except StorageUnavailableError:
                if wait_s is None:
                    raise
                await asyncio.sleep(wait_s)
                continue
            if prepare is not None:
                with answering(connection.terminate, always=True):
                    await prepare(connection)
            self._connection = connection
            return connection
        raise AssertionError("the last attempt raises or returns")

    def cut(self) -> None:
        """Close it at once; the next call connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """Close it for good."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.close(timeout=TAKE_TIMEOUT_S)
            connection.terminate()


class GateConnection:
    """The batcher's connection: each statement is one transaction of the server's making."""

    def __init__(self, dedicated: DedicatedConnection) -> None:
        self._dedicated = dedicated
        self._busy = False

    async def fetch(
        self, statement: Statement, *args: object, timeout_s: float = GATE_TIMEOUT_S
    ) -> list[Row]:
        """Rows of one statement, prepared once a connection; one round trip.

        Errors: `LockTimeoutError`; `StatementError` (the connection stays); `StorageUnavailableError` after a
        loss, `timeout_s` or the shard's end: the statement may have taken effect. Cancelled: likewise.
        """
        if self._busy:
            raise ScopeMisuseError("a gate connection carries one statement at a time")
        self._busy = True
        try:
            connection = await self._dedicated.ready()
            with answering(self._dedicated.cut):
                return list(await connection.fetch(statement.sql, *args, timeout=timeout_s))
        finally:
            self._busy = False

    async def close(self) -> None:
        """Close it for good."""
        await self._dedicated.close()


class ControlTransaction:
    """Statements of one control transaction, bound to the tenants whose scopes opened it."""

    def __init__(self, transaction: BoundTransaction) -> None:
        self._transaction = transaction

    async def fetch_one(self, statement: Statement, *args: object) -> Row | None:
        """The first row of a `:one` statement, or None. Errors: as `TenantScope`."""
        return await self._transaction.fetch_one(statement, args)

    async def fetch_all(self, statement: Statement, *args: object) -> list[Row]:
        """The rows of a `:many` statement. Errors: as `TenantScope`."""
        return await self._transaction.fetch_all(statement, args)

    async def execute(self, statement: Statement, *args: object) -> int:
        """Rows written by an `:exec` statement. Errors: as `TenantScope`."""
        return await self._transaction.execute(statement, args)


class ControlConnection:
    """A reserved connection as `tenantry_control`: what must work when all else is taken."""

    def __init__(self, dedicated: DedicatedConnection, statements: TransactionStatements) -> None:
        self._dedicated = dedicated
        self._statements = statements
        self._turn = asyncio.Lock()
        self._listeners: list[tuple[str, Callable[[str], None]]] = []

    async def fetch_one(self, statement: Statement, *args: object) -> Row | None:
        """The first row or None, in a transaction bound to no tenant. Errors: as `GateConnection`."""
        rows = await self.fetch_all(statement, *args)
        return rows[0] if rows else None

    async def fetch_all(self, statement: Statement, *args: object) -> list[Row]:
        """Rows; a transaction of its own, bound to no tenant. Errors: as `GateConnection`."""
        async with self._turns():
            connection = await self._dedicated.ready(self._listen_again)
            with answering(self._dedicated.cut):
                return list(await connection.fetch(statement.sql, *args))

    async def execute(self, statement: Statement, *args: object) -> int:
        """Rows written; a transaction of its own, bound to no tenant. Errors: as `GateConnection`."""
        async with self._turns():
            connection = await self._dedicated.ready(self._listen_again)
            with answering(self._dedicated.cut):
                return count_of(await connection.execute(statement.sql, *args))

    async def listen(self, channel: str, callback: Callable[[str], None]) -> None:
        """Call `callback` with each notification's payload, on the event loop.

        After a loss the next call listens again; what was sent in between is lost, so a listener also polls.
        """
        async with self._turns():
            connection = await self._dedicated.ready(self._listen_again)
            with answering(self._dedicated.cut):
                await connection.add_listener(channel, _payload_only(callback))
            self._listeners.append((channel, callback))

    @contextlib.asynccontextmanager
    async def transaction(self, scope: TenantBound) -> AsyncIterator[ControlTransaction]:
        """A transaction bound to the scope's tenant, committed at a clean exit. Errors: as `TenantScope`."""
        if not isinstance(scope, TenantBound):
            raise ScopeMisuseError("a control transaction is bound to the tenant of a scope")
        async with self._turns():
            binding = self._statements.tenant(scope.tenant_id)
            async with BoundTransaction(self, self._statements, binding) as transaction:
                yield ControlTransaction(transaction)

    async def take(self) -> LentConnection:
        """For `BoundTransaction`: the caller has the turn."""
        return await self._dedicated.ready(self._listen_again)

    async def give_back(self, connection: LentConnection) -> None:
        """It stays ours."""
        assert not connection.is_in_transaction()

    def cut(self, connection: LentConnection) -> None:
        """Close it at once."""
        del connection
        self._dedicated.cut()

    async def close(self) -> None:
        """Close it for good."""
        await self._dedicated.close()

    async def _listen_again(self, connection: Connection) -> None:
        for channel, callback in self._listeners:
            await connection.add_listener(channel, _payload_only(callback))

    @contextlib.asynccontextmanager
    async def _turns(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TAKE_TIMEOUT_S):
                await self._turn.acquire()
        except TimeoutError:
            raise StorageUnavailableError("the control connection did not come free in time") from None
        try:
            yield
        finally:
            self._turn.release()


def _payload_only(callback: Callable[[str], None]) -> Callable[..., None]:
    def received(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        callback(str(payload))

    return received


class Shard:
    """One database, opened for one process. `server.warning` is for the log at the start."""

    def __init__(
        self, target: DatabaseTarget, root_key: RootKey, sizes: PoolSizes, clock: Clock, shard_id: str
    ) -> None:
        self.shard_id = shard_id
        self.target = target
        self.clock = clock
        self.statements = TransactionStatements()
        self.keyring = KeyRing(self._load_keys, root_key, clock)
        self.server: ServerFacts | None = None
        self._sizes = sizes
        self.seal_statements = load_statements("tenantry.storage", "seal.sql")
        self._lenders = {
            role: PoolLender(target, role, size=size, command_timeout_s=timeout_s)
            for role, size, timeout_s in (
                ("tenantry_app", sizes.app, APP_TIMEOUT_S),
                ("tenantry_platform", sizes.platform, PLATFORM_TIMEOUT_S),
            )
            if size > 0
        }
        self._lookup = PoolLender(target, "tenantry_app", size=1, command_timeout_s=LOOKUP_TIMEOUT_S)
        self._dedicated: dict[str, list[GateConnection | ControlConnection]] = {"gate": [], "control": []}

    @classmethod
    async def open(
        cls,
        target: DatabaseTarget,
        root_key: RootKey,
        sizes: PoolSizes,
        clock: Clock,
        shard_id: str = "main",
    ) -> Self:
        """Check the server (one connection, one round trip) and make the pools ready.

        Errors: `StorageUnavailableError`: not reachable, too old, or behind a pooler in transaction mode.
        """
        connection = await connect(target, "tenantry_app", command_timeout_s=LOOKUP_TIMEOUT_S)
        try:
            server = await check_server(connection, target)
        finally:
            connection.terminate()
        shard = cls(target, root_key, sizes, clock, shard_id)
        shard.server = server
        for lender in shard._all_lenders():
            await lender.open()
        return shard

    async def close(self) -> None:
        """Close every connection; a statement still running is cut after `TAKE_TIMEOUT_S`."""
        for connections in self._dedicated.values():
            for connection in connections:
                await connection.close()
        for lender in self._all_lenders():
            await lender.close()

    async def gate_connection(self) -> GateConnection:
        """A connection as `tenantry_gate` for one batcher; it connects at its first statement.

        Errors: `ScopeMisuseError` when this process has its share already.
        """
        connection = GateConnection(
            DedicatedConnection(self.target, "tenantry_gate", command_timeout_s=GATE_TIMEOUT_S)
        )
        self._count(connection, "gate", self._sizes.gate)
        return connection

    async def control_connection(self) -> ControlConnection:
        """A reserved connection as `tenantry_control`; likewise."""
        connection = ControlConnection(
            DedicatedConnection(self.target, "tenantry_control", command_timeout_s=CONTROL_TIMEOUT_S),
            self.statements,
        )
        self._count(connection, "control", self._sizes.control)
        return connection

    def lender(self, role: str) -> PoolLender:
        """The pool of a role. Errors: `ScopeMisuseError` when this process has none."""
        try:
            return self._lenders[role]
        except KeyError:
            raise ScopeMisuseError(f"this process has no connections as {role}") from None

    @property
    def lookup(self) -> PoolLender:
        """The connection for single look-ups as `tenantry_app`: keys, directory."""
        return self._lookup

    async def _load_keys(self, tenant_id: TenantId) -> WrappedKeys:
        binding = self.statements.tenant(tenant_id)
        async with BoundTransaction(self._lookup, self.statements, binding) as transaction:
            rows = await transaction.fetch_all(self.seal_statements["load_keys"], (tenant_id,))
        return [(row["key_version"], row["wrapped_key"]) for row in rows]

    def _all_lenders(self) -> Iterable[PoolLender]:
        return (*self._lenders.values(), self._lookup)

    def _count(self, connection: GateConnection | ControlConnection, kind: str, limit: int) -> None:
        if len(self._dedicated[kind]) >= limit:
            raise ScopeMisuseError(f"this process has all its {limit} {kind} connections already")
        self._dedicated[kind].append(connection)

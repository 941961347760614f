"""One transaction that is bound before anything else is sent, on a connection lent for it.

States: unopened (no connection) -> open (begun, bound, and the binding read back) -> ended. INVARIANT 2:
nothing is sent between `begin` and the proof that the binding stands, and nothing after a failure but
`rollback`.

A lent connection goes back only when the server has said that it is idle outside a transaction. In every
other case, as when the caller was cancelled between two bytes, it is cut, and the server ends what was open.
The binding itself is local to the transaction, so a connection that is idle is unbound. That is why the pool
sends no reset query, which would cost a round trip a transaction: scopes cannot `set`, `listen`, lock by
session or hold cursors, because they send named statements only, and a test reads those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Protocol, Self, TypeAlias

import asyncpg

from tenantry.core.errors import StorageUnavailableError
from tenantry.core.ids import TenantId
from tenantry.storage.connect import Connection, Row, answering
from tenantry.storage.errors import ScopeMisuseError, StatementError
from tenantry.storage.statements import Statement, StatementKind, load_statements

# How long to wait for a connection, one being made included.
TAKE_TIMEOUT_S: Final = 2.0

LentConnection: TypeAlias = "Connection | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


class Lender(Protocol):
    """Where a transaction's connection comes from."""

    async def take(self) -> LentConnection: ...
    async def give_back(self, connection: LentConnection) -> None: ...
    def cut(self, connection: LentConnection) -> None: ...


class Binding:
    """What a transaction must be bound to: the statement that binds, its argument and the text it answers."""

    __slots__ = ("argument", "expected", "statement")

    def __init__(self, statement: Statement, argument: object, expected: str) -> None:
        self.statement = statement
        self.argument = argument
        self.expected = expected


class TransactionStatements:
    """The named statements of `scope.sql`, read once a shard."""

    def __init__(self) -> None:
        found: Mapping[str, Statement] = load_statements("tenantry.storage", "scope.sql")
        self.begin = found["begin"]
        self.commit = found["commit"]
        self.rollback = found["rollback"]
        self._bind_tenant = found["bind_tenant"]
        self._bind_reason = found["bind_reason"]

    def tenant(self, tenant_id: TenantId) -> Binding:
        """Bind to one tenant; the id's shape was checked, so its array literal needs no quotes."""
        assert tenant_id, "a binding names a tenant"
        return Binding(self._bind_tenant, [tenant_id], "{" + tenant_id + "}")

    def reason(self, text: str) -> Binding:
        """Bind a reason for work across tenants."""
        assert text.strip(), "work across tenants has a reason"
        return Binding(self._bind_reason, text, text)


class BoundTransaction:
    """See the module; for one task at a time.

    Cost: two round trips before the first statement, one at the end; none when no statement was sent.
    """

    def __init__(self, lender: Lender, statements: TransactionStatements, binding: Binding) -> None:
        self._lender = lender
        self._statements = statements
        self._binding = binding
        self._connection: LentConnection | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.end(commit=True)
        elif isinstance(error, Exception):
            # The block's error is the one to hear of; a rollback that fails has cut the connection.
            with contextlib.suppress(Exception):
                await self.end(commit=False)
        else:
            self.abandon()

    async def fetch_one(self, statement: Statement, args: tuple[object, ...]) -> Row | None:
        """The first row or None."""
        connection = await self._ready(statement, "one")
        with answering(self.abandon):
            return await connection.fetchrow(statement.sql, *args)

    async def fetch_all(self, statement: Statement, args: tuple[object, ...]) -> list[Row]:
        """All rows; the statement bounds their number."""
        connection = await self._ready(statement, "many")
        with answering(self.abandon):
            return list(await connection.fetch(statement.sql, *args))

    async def execute(self, statement: Statement, args: tuple[object, ...]) -> int:
        """The number of rows written."""
        connection = await self._ready(statement, "exec")
        with answering(self.abandon):
            return count_of(await connection.execute(statement.sql, *args))

    async def end(self, *, commit: bool) -> None:
        """Commit or roll back, and give the connection back idle, or cut it.

        Errors: `StatementError` 25P02 when a statement had failed and the caller goes on to commit: nothing
        took effect. After any other error or a cancellation a commit may or may not have taken effect.
        """
        self._ended = True
        connection, self._connection = self._connection, None
        if connection is None:
            return
        statement = self._statements.commit if commit else self._statements.rollback
        with answering(lambda: self._lender.cut(connection), always=True):
            tag = await connection.execute(statement.sql)
        if connection.is_in_transaction():
            self._lender.cut(connection)
        else:
            await self._lender.give_back(connection)
        if commit and tag != "COMMIT":
            raise StatementError("25P02", "an earlier statement failed, so the transaction was rolled back")

    def abandon(self) -> None:
        """Cut the connection now, without waiting: the caller was cancelled."""
        self._ended = True
        connection, self._connection = self._connection, None
        if connection is not None:
            self._lender.cut(connection)

    async def _ready(self, statement: Statement, kind: StatementKind) -> LentConnection:
        if statement.kind != kind:
            raise ScopeMisuseError(f"statement {statement.name!r} is :{statement.kind}, not :{kind}")
        if self._ended:
            raise ScopeMisuseError("the transaction has ended")
        return self._connection or await self._open()

    async def _open(self) -> LentConnection:
        connection = await self._lender.take()
        with answering(lambda: self._lender.cut(connection), always=True):
            await connection.execute(self._statements.begin.sql)
            bound = await connection.fetchval(self._binding.statement.sql, self._binding.argument)
        if bound != self._binding.expected:
            self._lender.cut(connection)
            raise StorageUnavailableError("the transaction could not be bound, so nothing was sent")
        self._connection = connection
        return connection


def count_of(tag: str) -> int:
    """Rows written, from a command tag such as ``INSERT 0 3`` or ``UPDATE 2``; 0 for one without a count."""
    last = tag.rpartition(" ")[2]
    return int(last) if last.isdecimal() else 0

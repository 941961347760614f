"""Scopes: the only door to tenant data (DESIGN §5).

A scope is made from proof: an authenticated principal, a verified run token, or a claimed job. Stores take a
scope, never a connection and never a bare tenant id. `BoundCall` is how a call enters the gate's group
commit: only a scope can make one, and its tenant is the scope's.

INVARIANT 2: every statement runs in a transaction whose binding was read back before (`transaction.py`), and
row security raises where nothing is bound.
"""

from __future__ import annotations

import datetime as dt
from types import TracebackType
from typing import Final, Self, TypeVar

from tenantry.core.clock import Clock
from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import TenantId, parse_tenant_id
from tenantry.core.principal import Principal, Role
from tenantry.core.run import RunClaims
from tenantry.storage.bound import MAKER, BoundCall, Maker, Sealed, TenantBound
from tenantry.storage.connect import Row
from tenantry.storage.database import Shard
from tenantry.storage.errors import ScopeMisuseError
from tenantry.storage.seal import NONCE_BYTES, DataKey
from tenantry.storage.statements import Statement, load_statements
from tenantry.storage.transaction import Binding, BoundTransaction, Lender

__all__ = ["BoundCall", "PlatformScope", "Row", "Scopes", "TenantScope"]

T = TypeVar("T")

REASON_CHARACTERS_MAX: Final = 1000


class _TransactionScope(Sealed):
    """What both kinds of scope share: a lazy, bound transaction inside `async with`."""

    __slots__ = ("_binding", "_lender", "_shard", "_transaction")

    def __init__(self, maker: Maker, shard: Shard, lender: Lender, binding: Binding) -> None:
        if maker is not MAKER:
            raise ScopeMisuseError("scopes are made by Scopes, from a principal, a run token or a job")
        self._shard = shard
        self._lender = lender
        self._binding = binding
        self._transaction: BoundTransaction | None = None

    @property
    def shard(self) -> Shard:
        return self._shard

    async def __aenter__(self) -> Self:
        if self._transaction is not None:
            raise ScopeMisuseError("the scope is in use already; it opens one transaction at a time")
        self._transaction = BoundTransaction(self._lender, self._shard.statements, self._binding)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        transaction, self._transaction = self._transaction, None
        assert transaction is not None, "left without being entered"
        await transaction.__aexit__(kind, error, trace)

    async def fetch_one(self, statement: Statement, *args: object) -> Row | None:
        """The first row of a `:one` statement, or None; one round trip, two more before the first of a block.

        Errors: `StatementError`, `LockTimeoutError` (the block can only end); `StorageUnavailableError`.
        """
        return await self._open().fetch_one(statement, args)

    async def fetch_all(self, statement: Statement, *args: object) -> list[Row]:
        """The rows of a `:many` statement. Cost and errors: as `fetch_one`."""
        return await self._open().fetch_all(statement, args)

    async def execute(self, statement: Statement, *args: object) -> int:
        """The number of rows that an `:exec` statement wrote. Cost and errors: as `fetch_one`."""
        return await self._open().execute(statement, args)

    def _open(self) -> BoundTransaction:
        if self._transaction is None:
            raise ScopeMisuseError("statements of a scope run inside 'async with scope:'")
        return self._transaction


class TenantScope(TenantBound, _TransactionScope):
    """One tenant, one actor, one moment. Made by `Scopes`; may be entered again after it was left.

    Each `async with` block is one transaction as `tenantry_app`: opened at its first statement, committed at
    a clean exit, rolled back on an error, and cut with its connection when the caller is cancelled.
    """

    __slots__ = ("_actor", "_clock", "_data_key", "_now", "_seal_statements", "_tenant_id")

    def __init__(
        self,
        maker: Maker,
        shard: Shard,
        *,
        tenant_id: TenantId,
        actor: str,
        data_key: DataKey | None,
        clock: Clock,
    ) -> None:
        super().__init__(maker, shard, shard.lender("tenantry_app"), shard.statements.tenant(tenant_id))
        assert data_key is None or data_key.tenant_id == tenant_id, "another tenant's key"
        self._tenant_id = tenant_id
        self._actor = actor
        self._data_key = data_key
        self._clock = clock
        self._now = clock.now()
        self._seal_statements = shard.seal_statements

    def __repr__(self) -> str:
        return f"TenantScope({self._tenant_id!r}, {self._actor!r})"

    @property
    def tenant_id(self) -> TenantId:
        return self._tenant_id

    @property
    def actor(self) -> str:
        """Who acts, for the journal: a principal's id, ``run:ID`` or ``job:NAME``."""
        return self._actor

    @property
    def now(self) -> dt.datetime:
        """The moment at which the scope was made, aware UTC."""
        return self._now

    def call(self, statement_name: str, payload: T) -> BoundCall[T]:
        """A call for the group commit, bound to this tenant and shard; opens nothing."""
        return BoundCall(MAKER, self._tenant_id, self._shard.shard_id, statement_name, payload)

    def key(self, *parts: str) -> str:
        """A key for caches, locks and channels: the tenant and `parts`, each unambiguous, joined by ``:``."""
        escaped = (part.replace("%", "%25").replace(":", "%3A") for part in parts)
        return ":".join((self._tenant_id, *escaped))

    def seal(self, plaintext: bytes, *, table: str, row_id: str) -> bytes:
        """Seal for one row of this tenant; `SEAL_OVERHEAD_BYTES` longer, about 2 us."""
        nonce = self._clock.random_bytes(NONCE_BYTES)
        return self._key().seal(plaintext, table=table, row_id=row_id, nonce=nonce)

    def unseal(self, sealed: bytes, *, table: str, row_id: str) -> bytes:
        """Open what `seal` closed for the same tenant, table and row. Errors: `SealBrokenError`."""
        return self._key().unseal(sealed, table=table, row_id=row_id)

    async def ensure_data_key(self) -> None:
        """Give a new tenant its data key, once its row in `tenants` stands; two round trips.

        Takes effect with this transaction. Of two at once both end up with the same key.
        """
        keyring = self._shard.keyring
        await self.execute(
            self._seal_statements["add_key"], self._tenant_id, 1, keyring.new_wrapped(self._tenant_id, 1)
        )
        rows = await self.fetch_all(self._seal_statements["load_keys"], self._tenant_id)
        self._data_key = keyring.open_keys(
            self._tenant_id, [(row["key_version"], row["wrapped_key"]) for row in rows]
        )

    def _key(self) -> DataKey:
        if self._data_key is None:
            raise ScopeMisuseError("the tenant is being registered: ensure_data_key comes before sealing")
        return self._data_key


class PlatformScope(_TransactionScope):
    """Work across tenants as `tenantry_platform`, for an operator's reason; the caller journals it."""

    __slots__ = ("_operator", "_reason")

    def __init__(self, maker: Maker, shard: Shard, *, reason: str, operator: str) -> None:
        super().__init__(maker, shard, shard.lender("tenantry_platform"), shard.statements.reason(reason))
        self._reason = reason
        self._operator = operator

    @property
    def reason(self) -> str:
        return self._reason

    @property
    def operator(self) -> str:
        return self._operator


class Scopes:
    """The only maker of scopes; free when the tenant's data key is cached, else one look-up."""

    def __init__(self, shard: Shard, clock: Clock) -> None:
        self._shard = shard
        self._clock = clock
        self._directory = load_statements("tenantry.storage", "directory.sql")

    async def for_principal(self, principal: Principal, tenant_id: TenantId | None = None) -> TenantScope:
        """A person's or service's scope: its own tenant's, or for an operator the tenant named.

        Errors: `NotFoundError` for another tenant and for one that never was, alike;
        `StorageUnavailableError`.
        """
        if principal.role is Role.OPERATOR:
            if principal.tenant_id is not None or tenant_id is None:
                raise NotFoundError("there is no such tenant")
            wanted = tenant_id
        else:
            if principal.tenant_id is None or tenant_id not in {None, principal.tenant_id}:
                raise NotFoundError("there is no such tenant")
            wanted = principal.tenant_id
        return await self._scope(wanted, principal.principal_id)

    async def for_run(self, claims: RunClaims) -> TenantScope:
        """A run's scope; the token was verified, and `begin` finds out whether its lease is live."""
        return await self._scope(claims.tenant_id, f"run:{claims.run_id}")

    async def for_job(self, tenant_id: TenantId, job: str) -> TenantScope:
        """The scope of a piece of work that a job has claimed for a tenant."""
        return await self._scope(tenant_id, f"job:{job}")

    async def for_registration(self, principal: Principal, tenant_id: TenantId) -> TenantScope:
        """An operator's scope for a tenant that may not exist yet; its place in the directory is made first.

        Within it the caller writes the row in `tenants` and then calls `ensure_data_key`. Cost: one
        transaction. Errors: `NotFoundError` unless the principal is an operator; `InvalidInputError` for the
        id's shape.
        """
        if principal.role is not Role.OPERATOR or principal.tenant_id is not None:
            raise NotFoundError("there is no such tenant")
        wanted = parse_tenant_id(tenant_id)
        scope = TenantScope(
            MAKER,
            self._shard,
            tenant_id=wanted,
            actor=principal.principal_id,
            data_key=None,
            clock=self._clock,
        )
        async with scope:
            await scope.execute(self._directory["add_tenant"], wanted, self._shard.shard_id)
        return scope

    def platform(self, *, reason: str, operator: str) -> PlatformScope:
        """A scope across tenants. Errors: `InvalidInputError` for a reason that is no text or too long."""
        if not reason.strip() or len(reason) > REASON_CHARACTERS_MAX or not _is_storable(reason):
            raise InvalidInputError(
                f"a reason is 1 to {REASON_CHARACTERS_MAX} characters of text", path="$.reason"
            )
        return PlatformScope(MAKER, self._shard, reason=reason, operator=operator)

    async def _scope(self, tenant_id: TenantId, actor: str) -> TenantScope:
        try:
            wanted = parse_tenant_id(tenant_id)
        except InvalidInputError:
            raise NotFoundError("there is no such tenant") from None
        data_key = self._shard.keyring.cached(wanted) or await self._shard.keyring.data_key(wanted)
        return TenantScope(
            MAKER, self._shard, tenant_id=wanted, actor=actor, data_key=data_key, clock=self._clock
        )


def _is_storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)

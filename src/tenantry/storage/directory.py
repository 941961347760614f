"""The directory: tenant to shard, key hash to tenant (DESIGN §5). It is read before anything can be bound.

Reads cost one round trip on the look-up connection and are not cached here: `identity` caches what a key
proved, for the seconds in which a revocation may go unseen.
"""

from __future__ import annotations

from tenantry.core.errors import StorageUnavailableError
from tenantry.core.ids import TenantId
from tenantry.storage.connect import Row, answering
from tenantry.storage.database import Shard
from tenantry.storage.scope import PlatformScope, TenantScope
from tenantry.storage.statements import Statement, load_statements


class Directory:
    """Reads over the first shard's look-up connection; writes within the scope that has the right to them."""

    def __init__(self, shard: Shard) -> None:
        self._lender = shard.lookup
        self._statements = load_statements("tenantry.storage", "directory.sql")

    async def find_tenant_by_key(self, key_sha256: bytes) -> tuple[TenantId | None, bool] | None:
        """Whose key it is: ``(tenant, False)``, ``(None, True)`` for an operator's, None for nobody's.

        Says nothing of whether it is revoked or expired. Errors: `StorageUnavailableError`.
        """
        row = await self._read(self._statements["find_key"], key_sha256)
        if row is None:
            return None
        tenant_id: TenantId | None = row["tenant_id"]
        return tenant_id, tenant_id is None

    async def find_operator(self, key_sha256: bytes) -> Row | None:
        """An operator's key in force: `key_id`, `principal_id`, `expires_at`; None for any other.

        It is no tenant's data, and gateways, which have no platform connections, authenticate operators too.
        """
        return await self._read(self._statements["find_operator"], key_sha256)

    async def shard_of(self, tenant_id: TenantId) -> str | None:
        """The id of the shard that holds the tenant, None when there is no such tenant."""
        row = await self._read(self._statements["find_shard"], tenant_id)
        return None if row is None else str(row["shard_id"])

    async def add_key(self, scope: TenantScope | PlatformScope, key_sha256: bytes) -> None:
        """Note a key of the scope's tenant, or of an operator; takes effect with the scope's transaction."""
        tenant_id = scope.tenant_id if isinstance(scope, TenantScope) else None
        await scope.execute(self._statements["add_key"], key_sha256, tenant_id)

    async def remove_key(self, scope: TenantScope | PlatformScope, key_sha256: bytes) -> None:
        """Forget a key of the scope's tenant, or of an operator; another's key stays."""
        await scope.execute(self._statements["remove_key"], key_sha256)

    async def _read(self, statement: Statement, argument: object) -> Row | None:
        connection = await self._lender.take()
        with answering(lambda: self._lender.cut(connection), always=True):
            row = await connection.fetchrow(statement.sql, argument)
        if connection.is_in_transaction():
            self._lender.cut(connection)
            raise StorageUnavailableError("the look-up connection is inside a transaction")
        await self._lender.give_back(connection)
        return row

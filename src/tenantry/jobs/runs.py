"""Runs that nobody ended: past their deadline they are settled as expired, and their slot is free."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tenantry.core.errors import NotFoundError
from tenantry.core.ids import RunId, TenantId
from tenantry.core.run import RunState
from tenantry.storage.scope import Scopes, TenantScope
from tenantry.storage.statements import Statement, load_statements

CloseRun = Callable[[TenantScope, RunId, RunState, bytes | None], Awaitable[object]]

BATCH: Final = 200


class ExpireRuns:
    """Ends runs through the gate, as whoever started them would."""

    def __init__(self, scopes: Scopes, close_run: CloseRun) -> None:
        self._scopes = scopes
        self._close_run = close_run
        self._statements: Mapping[str, Statement] = load_statements("tenantry.jobs", "work.sql")

    async def run(self) -> int:
        """End one batch; how many. Errors: `StorageUnavailableError`; the next look goes on."""
        platform = self._scopes.platform(reason="end runs past their deadline", operator="job:expire_runs")
        async with platform:
            rows = await platform.fetch_all(self._statements["list_expired_runs"], BATCH)
        for row in rows:
            try:
                scope = await self._scopes.for_job(TenantId(row["tenant_id"]), "expire_runs")
                await self._close_run(scope, RunId(row["run_id"]), RunState.EXPIRED, None)
            except NotFoundError:
                # Its tenant left meanwhile.
                continue
        return len(rows)

"""The reaper: settles what a process began and, being gone, never will (DESIGN §3, 'Budgets').

A process counts as gone when its lease is over and stays so between two looks: after the database was away,
all leases are over for a moment, and living processes renew theirs first. What it had begun is posted at the
bound, for nobody knows what the upstream did; mutations stand as held until a person or the tool's own look-up
says. A process that comes back finds its actions settled, and whatever was live in it ended when its own lease
lapsed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tenantry.core.action import OutcomeStatus
from tenantry.core.clock import Clock
from tenantry.core.ids import TenantId
from tenantry.gate.calls import SettleItem, SettleResult
from tenantry.journal.entries import SALT_BYTES, JournalOutput
from tenantry.storage.connect import Row
from tenantry.storage.database import ControlConnection
from tenantry.storage.scope import Scopes, TenantScope
from tenantry.storage.statements import Statement, load_statements

Settle = Callable[[TenantScope, SettleItem], Awaitable[SettleResult]]

BATCH: Final = 200
ROUNDS_MAX: Final = 50
# Between two looks at a lease that is over.
GRACE_S: Final = 2.0
ORPHANS_EACH_S: Final = 600.0
ORPHANS_AFTER: Final = dt.timedelta(minutes=2)
ORPHANS_WITHIN: Final = dt.timedelta(minutes=30)
GONE: Final = "the process that began it is gone; whether it happened is not known"


class Reaper:
    """Looks at leases, and settles through the gate. `connection` is a reserved one of control's."""

    def __init__(self, scopes: Scopes, connection: ControlConnection, settle: Settle, clock: Clock) -> None:
        self._scopes = scopes
        self._connection = connection
        self._settle = settle
        self._clock = clock
        self._statements: Mapping[str, Statement] = load_statements("tenantry.jobs", "work.sql")
        self._leases: Mapping[str, Statement] = load_statements("tenantry.switches", "store.sql")
        # The lease that was seen to be over, and when.
        self._lapsed: dict[str, tuple[dt.datetime, float]] = {}
        self._orphans_at = float("-inf")

    async def run(self) -> int:
        """One look; how many actions were settled. Errors: `StorageUnavailableError`; the next look goes on."""
        settled = 0
        for row in await self._gone():
            settled += await self._reap(row["instance_id"], row["oldest_open_at"], dt.timedelta())
            await self._connection.execute(self._leases["remove_lapsed"], row["instance_id"])
        if self._clock.monotonic() - self._orphans_at >= ORPHANS_EACH_S:
            settled += await self._reap_orphans()
            self._orphans_at = self._clock.monotonic()
        return settled

    async def _gone(self) -> list[Row]:
        rows = [r for r in await self._connection.fetch_all(self._leases["list_instances"]) if r["lapsed"]]
        now = self._clock.monotonic()
        before, self._lapsed = self._lapsed, {}
        gone = []
        for row in rows:
            lease = row["lease_expires_at"]
            known = before.get(row["instance_id"])
            since = known[1] if known is not None and known[0] == lease else now
            self._lapsed[row["instance_id"]] = (lease, since)
            if now - since >= GRACE_S:
                gone.append(row)
        return gone

    async def _reap(self, instance_id: str, oldest_open_at: dt.datetime, age: dt.timedelta) -> int:
        """Settle all that a process has open and began at least so long ago, a batch at a time."""
        settled = 0
        for _ in range(ROUNDS_MAX):
            platform = self._scopes.platform(reason="settle what a lost process began", operator="job:reaper")
            async with platform:
                rows = await platform.fetch_all(
                    self._statements["list_begun"], instance_id, oldest_open_at, age, BATCH
                )
            for row in rows:
                await self._post(row)
            settled += len(rows)
            if len(rows) < BATCH:
                break
        return settled

    async def _reap_orphans(self) -> int:
        platform = self._scopes.platform(reason="settle what unknown processes began", operator="job:reaper")
        async with platform:
            rows = await platform.fetch_all(self._statements["list_orphans"], ORPHANS_WITHIN, ORPHANS_AFTER)
        settled = 0
        for row in rows:
            settled += await self._reap(row["instance_id"], row["oldest_open_at"], ORPHANS_AFTER)
        return settled

    async def _post(self, row: Row) -> None:
        """At the bound: what was reserved is what may have been used."""
        scope = await self._scopes.for_job(TenantId(row["tenant_id"]), "reaper")
        action_id: str = row["action_id"]
        output = JournalOutput(
            status=OutcomeStatus.UNKNOWN,
            content_type="application/json",
            http_status=None,
            detail=GONE,
            labels=(),
            output=None,
        ).encode(scope, action_id, salt=self._clock.random_bytes(SALT_BYTES))
        await self._settle(
            scope,
            SettleItem(
                tenant_id=scope.tenant_id,
                action_id=action_id,
                workspace=row["workspace_id"],
                agent=row["agent_id"],
                scope_run=row["run_id"] if row["has_run_scope"] else None,
                status="unknown",
                tokens=row["model_tokens"],
                microusd=row["cost_microusd"],
                journal_bytes=(row["content_bytes"] or 0) + len(output),
                labels="",
                output=output,
                output_sha256=hashlib.sha256(output).digest(),
            ),
        )

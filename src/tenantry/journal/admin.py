"""What people do, journaled in the transaction of its effect (DESIGN §2).

The particulars stand in `detail`, in clear, because a tenant's admin reads them in lists; they never hold a
secret. The sealed content repeats them, so that the log commits to them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final

import msgspec

from tenantry.core.clock import Clock
from tenantry.core.ids import ActionId, new_id
from tenantry.journal.entries import SALT_BYTES, AdminContent, commitment
from tenantry.storage.scope import TenantScope
from tenantry.storage.statements import Statement, load_statements

DETAIL_BYTES_MAX: Final = 16 * 1024


class AdminEntry(msgspec.Struct, frozen=True):
    """One entry, ready to be written. ``detail`` is JSON text."""

    action_id: ActionId
    actor: str
    name: str
    target: str
    detail: str
    instance_id: str
    content: bytes
    content_sha256: bytes


class AdminJournal:
    """Makes and writes admin entries; one a process, which `instance_id` names."""

    def __init__(self, clock: Clock, instance_id: str) -> None:
        self._clock = clock
        self._instance_id = instance_id

    def entry(
        self, scope: TenantScope, *, name: str, target: str, detail: Mapping[str, object] | None = None
    ) -> AdminEntry:
        """An entry of the scope's actor. `detail` is JSON; beyond 16 KiB it is left out, and said so."""
        action_id = ActionId(new_id("act", self._clock))
        encoded = msgspec.json.encode(detail or {}, order="sorted")
        if len(encoded) > DETAIL_BYTES_MAX:
            encoded = msgspec.json.encode({"omitted_bytes": len(encoded)})
        content = AdminContent(scope.actor, name, target, encoded).encode(
            scope, action_id, salt=self._clock.random_bytes(SALT_BYTES)
        )
        return AdminEntry(
            action_id=action_id,
            actor=scope.actor,
            name=name,
            target=target,
            detail=encoded.decode(),
            instance_id=self._instance_id,
            content=content,
            content_sha256=commitment(content),
        )

    async def write(
        self, scope: TenantScope, *, name: str, target: str, detail: Mapping[str, object] | None = None
    ) -> ActionId:
        """Journal it inside the caller's ``async with scope:``; one statement, locks the tenant's row."""
        entry = self.entry(scope, name=name, target=target, detail=detail)
        await scope.fetch_one(
            _statements()["write_admin"],
            scope.tenant_id,
            entry.action_id,
            entry.actor,
            entry.name,
            entry.target,
            entry.detail,
            entry.instance_id,
            entry.content,
            entry.content_sha256,
        )
        return entry.action_id


@functools.cache
def _statements() -> Mapping[str, Statement]:
    return load_statements("tenantry.journal", "store.sql")

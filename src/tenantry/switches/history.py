"""The history of switches and what stands now, as people read them."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from tenantry.core.ids import SwitchId, TenantId
from tenantry.storage.connect import Row
from tenantry.storage.scope import PlatformScope, TenantScope
from tenantry.storage.statements import Statement, load_statements
from tenantry.switches.board import LEVEL_WORDS

PAGE_MAX: Final = 500


class SwitchRow(msgspec.Struct, frozen=True, kw_only=True):
    """One switch as it was made; `confirmed_at` None: not every process has acknowledged it. Aware UTC."""

    switch_seq: int
    switch_id: SwitchId
    level: str
    tenant_id: TenantId | None
    subject_id: str
    verb: str
    mode: str | None
    mode_expires_at: dt.datetime | None
    requested_by: str
    reason: str
    requested_at: dt.datetime
    confirmed_at: dt.datetime | None
    acknowledgements: list[dict[str, object]]


class StoppedScope(msgspec.Struct, frozen=True, kw_only=True):
    """A scope that is not as usual, and since when, by whom, why. Aware UTC."""

    level: str
    subject_id: str
    killed: bool
    frozen: bool
    mode: str
    mode_expires_at: dt.datetime | None
    switch_id: SwitchId | None
    switched_by: str | None
    switched_at: dt.datetime | None
    switch_reason: str | None


async def list_switches(
    scope: TenantScope | PlatformScope,
    *,
    tenant_id: TenantId | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[SwitchRow]:
    """A page, newest first, of switches before the number given; at most 500; one statement."""
    rows = await scope.fetch_all(
        _statements()["list_switches"], before, tenant_id, max(1, min(limit, PAGE_MAX))
    )
    return [_switch_of(row) for row in rows]


async def find_holders(
    scope: TenantScope, level: int, subject_id: str, *, switches: Sequence[str], undoes: Sequence[str]
) -> tuple[int, frozenset[str]] | None:
    """The scope's epoch, and who has switched it since it was last undone; None: there is no such scope."""
    rows = await scope.fetch_all(
        _statements()["holders"], scope.tenant_id, level, subject_id, list(switches), list(undoes)
    )
    if not rows:
        return None
    return rows[0]["epoch"], frozenset(row["requested_by"] for row in rows if row["requested_by"] is not None)


async def list_stopped(scope: TenantScope, *, limit: int = 100) -> list[StoppedScope]:
    """What of the tenant is killed, frozen or under a mode, widest first; one statement."""
    rows = await scope.fetch_all(_statements()["list_stopped"], scope.tenant_id, max(1, min(limit, PAGE_MAX)))
    return [_stopped_of(row) for row in rows]


def _stopped_of(row: Row) -> StoppedScope:
    values: dict[str, Any] = {name: row[name] for name in StoppedScope.__struct_fields__}
    values["level"] = LEVEL_WORDS[row["level"]]
    return StoppedScope(**values)


def _switch_of(row: Row) -> SwitchRow:
    values: dict[str, Any] = {name: row[name] for name in SwitchRow.__struct_fields__}
    values["level"] = LEVEL_WORDS[row["level"]]
    answers = row["acknowledgements"]
    values["acknowledgements"] = [] if answers is None else msgspec.json.decode(answers)
    return SwitchRow(**values)


@functools.cache
def _statements() -> Mapping[str, Statement]:
    return load_statements("tenantry.switches", "store.sql")

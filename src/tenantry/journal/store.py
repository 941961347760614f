"""Reading a tenant's journal: pages of entries, and one entry with its content opened."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping
from typing import Final

import msgspec

from tenantry.core.action import Risk
from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import ActionId, AgentId, PrincipalId, RunId, WorkspaceId, new_id
from tenantry.journal.entries import AdminContent, JournalContent, JournalOutput
from tenantry.storage.connect import Row
from tenantry.storage.scope import TenantScope
from tenantry.storage.statements import Statement, load_statements

PAGE_MAX: Final = 500
ID_CHARACTERS_MAX: Final = 64


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row as people see it. Times are aware UTC, money micro-US-dollars.

    ``model_tokens`` and ``cost_microusd`` were reserved, ``used_...`` are what was posted; ``state`` is
    begun, settled, voided, held, refused, admin or shed.
    """

    action_id: ActionId
    workspace_id: WorkspaceId
    agent_id: AgentId
    run_id: RunId
    principal_id: PrincipalId
    kind: str
    action_name: str
    risk: str
    target_system: str
    policy_version: int
    reason: list[str]
    verdict: str
    detail: dict[str, object] | None
    log_position: int
    state: str
    status: str | None
    begun_at: dt.datetime
    settled_at: dt.datetime | None
    model_tokens: int
    cost_microusd: int
    used_tokens: int | None
    used_microusd: int | None


class OpenedEntry(msgspec.Struct, frozen=True):
    """An entry with what was sealed in it; None where nothing was kept."""

    entry: JournalEntry
    content: JournalContent | AdminContent | None
    output: JournalOutput | None


async def list_entries(
    scope: TenantScope,
    *,
    workspace_id: WorkspaceId | None = None,
    run_id: str | None = None,
    before: str = "",
    since: str = "",
    limit: int = 100,
) -> list[JournalEntry]:
    """A page, newest first, of entries from `since` to before `before` (ids); at most 500; one statement."""
    _check_cursor(before)
    rows = await scope.fetch_all(
        _statements()["list_entries"],
        scope.tenant_id,
        before,
        workspace_id,
        run_id,
        since,
        max(1, min(limit, PAGE_MAX)),
    )
    return [_entry_of(row) for row in rows]


async def open_entry(
    scope: TenantScope, action_id: str, *, workspace_id: WorkspaceId | None = None
) -> OpenedEntry:
    """One entry with its content. Errors: `NotFoundError`, for another tenant's as for none."""
    row = None
    if _is_id(action_id):
        row = await scope.fetch_one(_statements()["find_entry"], scope.tenant_id, action_id, workspace_id)
    if row is None:
        raise NotFoundError("there is no such journal entry")
    entry = _entry_of(row)
    content: JournalContent | AdminContent | None = None
    if row["content"]:
        is_note = entry.state in {"admin", "shed"}
        decode = AdminContent.decode if is_note else JournalContent.decode
        content = decode(scope, action_id, row["content"])
    output = JournalOutput.decode(scope, action_id, row["output"]) if row["output"] else None
    return OpenedEntry(entry, content, output)


def first_id_at(prefix: str, at: dt.datetime) -> str:
    """The least id that `new_id` makes at a moment: a bound for ids by time."""
    return new_id(prefix, _Moment(at))


class _Moment:
    """A clock that stands, without chance."""

    def __init__(self, at: dt.datetime) -> None:
        self._at = at

    def now(self) -> dt.datetime:
        return self._at

    def now_ms(self) -> int:
        return max(0, int(self._at.timestamp() * 1000))

    def monotonic(self) -> float:
        return 0.0

    def random_bytes(self, count: int, /) -> bytes:
        return bytes(count)


def _entry_of(row: Row) -> JournalEntry:
    values = {name: row[name] for name in JournalEntry.__struct_fields__}
    values["risk"] = Risk(row["risk"]).word
    values["reason"] = msgspec.json.decode(row["reason"])
    values["detail"] = None if row["detail"] is None else msgspec.json.decode(row["detail"])
    return JournalEntry(**values)


def _is_id(text: str) -> bool:
    return 0 < len(text) <= ID_CHARACTERS_MAX and text.isascii() and text.isprintable()


def _check_cursor(cursor: str) -> None:
    if cursor and not _is_id(cursor):
        raise InvalidInputError("the cursor is not one that a list gave", path="$.before")


@functools.cache
def _statements() -> Mapping[str, Statement]:
    return load_statements("tenantry.journal", "store.sql")

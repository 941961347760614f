"""Runs, the journal and incidents, as people read them."""

from __future__ import annotations

import base64
import datetime as dt
import functools
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import AgentId, PrincipalId, RunId, TenantId, WorkspaceId
from tenantry.core.principal import Principal, Right
from tenantry.core.run import RunState
from tenantry.identity.rights import narrow, require
from tenantry.journal.admin import AdminJournal
from tenantry.journal.entries import AdminContent, JournalContent, JournalOutput
from tenantry.journal.store import JournalEntry, first_id_at, list_entries, open_entry
from tenantry.storage.connect import Row
from tenantry.storage.scope import Scopes, TenantScope
from tenantry.storage.statements import Statement, load_statements

PAGE_MAX: Final = 500
RUN_ACTIONS_MAX: Final = 200
# Actions of a run are looked for this long before it started and after it ended: clocks differ.
CLOCK_MARGIN: Final = dt.timedelta(minutes=1)


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A run in a list. Aware UTC."""

    run_id: RunId
    workspace_id: WorkspaceId
    agent_id: AgentId
    principal_id: PrincipalId
    attempt: int
    state: str
    mode: str
    started_at: dt.datetime
    deadline_at: dt.datetime
    ended_at: dt.datetime | None


class RunShown(msgspec.Struct, frozen=True):
    """A run with its labels, its result and the latest of its actions, newest first."""

    run: RunRow
    labels: list[str]
    killed: bool
    scope_mode: str
    result: object
    actions: list[JournalEntry]


class EntryShown(msgspec.Struct, frozen=True):
    """A journal entry with its content: JSON where it is JSON, else ``{"base64": ...}``."""

    entry: JournalEntry
    envelope: object = None
    input: object = None
    policy_request: object = None
    detail: object = None
    output: object = None
    output_status: str | None = None
    output_content_type: str | None = None
    output_http_status: int | None = None
    output_detail: str | None = None
    output_labels: list[str] = []


class Incident(msgspec.Struct, frozen=True):
    """Something that a person should look at. Aware UTC."""

    incident_id: str
    kind: str
    detail: dict[str, object]
    opened_at: dt.datetime
    closed_at: dt.datetime | None


class Runs:
    """Use cases of reading what runs did. A key that is narrowed reads its own workspace."""

    def __init__(self, scopes: Scopes, journal: AdminJournal) -> None:
        self._scopes = scopes
        self._journal = journal

    async def list_runs(
        self,
        principal: Principal,
        tenant_id: TenantId,
        *,
        agent_id: str | None = None,
        state: str | None = None,
        before: str = "",
        limit: int = 100,
    ) -> list[RunRow]:
        """A page of runs, newest first."""
        workspace_id = narrow(principal, None)
        require(principal, Right.RUN_READ, tenant_id, workspace_id)
        if state is not None and state not in set(RunState):
            raise InvalidInputError(f"a state is one of {', '.join(RunState)}", path="$.state")
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            rows = await scope.fetch_all(
                _statements()["list_runs"],
                scope.tenant_id,
                before,
                workspace_id,
                agent_id,
                state,
                max(1, min(limit, PAGE_MAX)),
            )
        return [_run_of(row) for row in rows]

    async def show_run(self, principal: Principal, tenant_id: TenantId, run_id: str) -> RunShown:
        """One run. Errors: `NotFoundError`, for another tenant's as for none."""
        workspace_id = narrow(principal, None)
        require(principal, Right.RUN_READ, tenant_id, workspace_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            row = await scope.fetch_one(_statements()["find_run"], scope.tenant_id, run_id, workspace_id)
            if row is None:
                raise NotFoundError("there is no such run")
            since, before = _range_of(row)
            actions = await list_entries(
                scope, run_id=run_id, since=since, before=before, limit=RUN_ACTIONS_MAX
            )
        result = None
        if row["result"]:
            recorded = JournalOutput.decode(scope, row["action_id"], row["result"])
            result = _shown(recorded.output)
        return RunShown(
            run=_run_of(row),
            labels=sorted(row["labels"] or ()),
            killed=bool(row["killed"]),
            scope_mode=row["scope_mode"] or "normal",
            result=result,
            actions=actions,
        )

    async def list_journal(
        self,
        principal: Principal,
        tenant_id: TenantId,
        *,
        run_id: str | None = None,
        before: str = "",
        limit: int = 100,
    ) -> list[JournalEntry]:
        """A page of the journal, newest first; of one run when it is named. Errors: `NotFoundError`."""
        workspace_id = narrow(principal, None)
        require(principal, Right.JOURNAL_READ, tenant_id, workspace_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            since = ""
            if run_id is not None:
                row = await scope.fetch_one(_statements()["find_run"], scope.tenant_id, run_id, workspace_id)
                if row is None:
                    raise NotFoundError("there is no such run")
                since, end = _range_of(row)
                before = min(before, end) if before else end
            return await list_entries(
                scope,
                workspace_id=workspace_id,
                run_id=run_id,
                before=before,
                since=since,
                limit=limit,
            )

    async def show_entry(self, principal: Principal, tenant_id: TenantId, action_id: str) -> EntryShown:
        """One entry with its content. Somebody who is not the tenant's is journaled with it."""
        workspace_id = narrow(principal, None)
        require(principal, Right.JOURNAL_READ, tenant_id, workspace_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            opened = await open_entry(scope, action_id, workspace_id=workspace_id)
            if principal.tenant_id is None:
                await self._journal.write(scope, name="journal.read", target=f"action/{action_id}")
        return _entry_shown(opened.entry, opened.content, opened.output)

    async def list_incidents(
        self, principal: Principal, tenant_id: TenantId, *, before: str = "", limit: int = 100
    ) -> list[Incident]:
        """A page of the tenant's incidents, newest first."""
        require(principal, Right.TENANT_READ, tenant_id)
        async with await self._scopes.for_principal(principal, tenant_id) as scope:
            return await _incidents(scope, before, max(1, min(limit, PAGE_MAX)))


async def _incidents(scope: TenantScope, before: str, limit: int) -> list[Incident]:
    rows = await scope.fetch_all(_statements()["list_incidents"], scope.tenant_id, before, limit)
    return [
        Incident(
            row["incident_id"],
            row["kind"],
            msgspec.json.decode(row["detail"]),
            row["opened_at"],
            row["closed_at"],
        )
        for row in rows
    ]


def _run_of(row: Row) -> RunRow:
    values: dict[str, Any] = {name: row[name] for name in RunRow.__struct_fields__}
    return RunRow(**values)


def _range_of(row: Row) -> tuple[str, str]:
    """The ids between which a run's actions lie, so that no more of the journal is looked through."""
    ended: dt.datetime = row["ended_at"] or row["deadline_at"]
    return (
        first_id_at("act", row["started_at"] - CLOCK_MARGIN),
        first_id_at("act", ended + CLOCK_MARGIN),
    )


def _entry_shown(
    entry: JournalEntry, content: JournalContent | AdminContent | None, output: JournalOutput | None
) -> EntryShown:
    shown: dict[str, Any] = {}
    if isinstance(content, JournalContent):
        shown = {
            "envelope": _shown(content.envelope),
            "input": _shown(content.input),
            "policy_request": _shown(content.request),
        }
    elif content is not None:
        shown = {"detail": _shown(content.detail)}
    if output is not None:
        shown |= {
            "output": _shown(output.output),
            "output_status": output.status.value,
            "output_content_type": output.content_type,
            "output_http_status": output.http_status,
            "output_detail": output.detail,
            "output_labels": [*output.labels],
        }
    return EntryShown(entry, **shown)


def _shown(content: bytes | None) -> object:
    if not content:
        return None
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


@functools.cache
def _statements() -> Mapping[str, Statement]:
    return load_statements("tenantry.control", "runs.sql")

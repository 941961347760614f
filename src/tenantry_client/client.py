"""The API's operations as methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import msgspec

from tenantry_client.transport import Answer, Transport, UnreachableError, send
from tenantry_client.types import (
    ApiKeyRow,
    AppliedFleet,
    Change,
    CreatedKey,
    OpenedRun,
    PolicyVersion,
    Problem,
    PutSecret,
    RunRow,
    RunShown,
    ScopeMeters,
    SecretVersion,
    SwitchResult,
    SwitchRow,
    TenantRow,
    TenantState,
)

T = TypeVar("T")
API = "/api/v1"
# Control answers a switch after every process has, at most a minute.
SWITCH_MARGIN_S = 15.0
PAGE_ITEMS = 500
ITEMS_MAX = 10_000


class _Page(msgspec.Struct):
    items: list[Any]
    next: str | None = None


class Client:
    """One platform, as the holder of one API key. Methods raise `ApiError` and `UnreachableError`."""

    def __init__(self, transport: Transport, api_key: str | None, *, timeout_s: float = 30.0) -> None:
        self._transport = transport
        self._api_key = api_key
        self._timeout_s = timeout_s

    @property
    def address(self) -> str:
        """Where this goes, for people."""
        return self._transport.address

    # -- runs: opened and finished at the gateways

    def open_run(
        self,
        *,
        tenant_id: str,
        agent_id: str,
        mode: Literal["attached", "external"],
        workspace_id: str | None = None,
        input: object = None,  # noqa: A002 - the API's word
        deadline_ms: int | None = None,
        idempotency_key: str | None = None,
    ) -> OpenedRun:
        """Open a run and get its token."""
        body = _given(
            tenant_id=tenant_id,
            agent_id=agent_id,
            workspace_id=workspace_id,
            input=input,
            deadline_ms=deadline_ms,
        )
        body[mode] = True
        headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
        return _decode(self._send("POST", f"{API}/runs", body=body, headers=headers), OpenedRun)

    def finish_run(self, run: OpenedRun, *, state: str, result: object = None) -> None:
        """Finish a run (succeeded, failed or cancelled) with its own token."""
        body = {"state": state, "result": result}
        self._send("POST", f"{API}/runs/{_part(run.run_id)}/finish", body=body, token=run.token)

    # -- the fleet

    def apply_fleet(self, fleet: Mapping[str, Any], values: Mapping[str, str]) -> AppliedFleet:
        """Make the fleet what the document says; ``values`` are the secrets that it refers to."""
        return self._call("POST", f"{API}/fleet/apply", AppliedFleet, {"fleet": fleet, "values": values})

    def diff_fleet(self, fleet: Mapping[str, Any], values: Mapping[str, str]) -> list[Change]:
        """What `apply_fleet` would change; changes nothing."""
        return self._items("POST", f"{API}/fleet/diff", Change, {"fleet": fleet, "values": values})

    def export_fleet(self) -> dict[str, Any]:
        """The fleet as it stands, as a document; no secret's value is in it."""
        return self._call("GET", f"{API}/fleet/export", dict[str, Any])

    # -- tenants, their meters and runs

    def list_tenants(self) -> list[TenantRow]:
        """The tenants that this key may see."""
        return self._pages(f"{API}/tenants", TenantRow)

    def show_tenant(self, tenant_id: str) -> TenantState:
        """A tenant, whole."""
        return self._call("GET", _tenant(tenant_id), TenantState)

    def show_quota(self, tenant_id: str) -> list[ScopeMeters]:
        """The meters of a tenant, its workspaces and its agents."""
        return self._items("GET", f"{_tenant(tenant_id)}/quotas", ScopeMeters)

    def list_runs(
        self, *, tenant_id: str, agent_id: str | None = None, state: str | None = None, limit: int = 100
    ) -> list[RunRow]:
        """The latest runs, newest first."""
        query = {"agent_id": agent_id, "state": state}
        return self._pages(f"{_tenant(tenant_id)}/runs", RunRow, query, limit=limit)

    def show_run(self, *, tenant_id: str, run_id: str) -> RunShown:
        """One run with its latest actions."""
        return self._call("GET", f"{_tenant(tenant_id)}/runs/{_part(run_id)}", RunShown)

    # -- switches

    def switch(
        self,
        *,
        level: str,
        verb: str,
        reason: str,
        tenant_id: str | None = None,
        subject_id: str | None = None,
        mode: str | None = None,
        wait_ms: int = 5_000,
    ) -> SwitchResult:
        """Kill, revive, mode, freeze or unfreeze; answers when every process has, or `wait_ms` is over."""
        body = _given(
            level=level,
            verb=verb,
            reason=reason,
            tenant_id=tenant_id,
            subject_id=subject_id,
            mode=mode,
            wait_ms=wait_ms,
        )
        answer = self._send("POST", f"{API}/switches", body=body, timeout_s=wait_ms / 1000 + SWITCH_MARGIN_S)
        return _decode(answer, SwitchResult)

    def list_switches(self, *, tenant_id: str | None = None, limit: int = 100) -> list[SwitchRow]:
        """The history, newest first: a tenant's, or everybody's for an operator."""
        return self._pages(f"{API}/switches", SwitchRow, {"tenant_id": tenant_id}, limit=limit)

    # -- keys

    def create_key(
        self, *, tenant_id: str, role: str, workspace_id: str | None = None, expires_at: str | None = None
    ) -> CreatedKey:
        """A new API key; its token is shown this once."""
        body = _given(role=role, workspace_id=workspace_id, expires_at=expires_at)
        return self._call("POST", f"{_tenant(tenant_id)}/keys", CreatedKey, body)

    def list_keys(self, *, tenant_id: str) -> list[ApiKeyRow]:
        """A tenant's keys."""
        return self._pages(f"{_tenant(tenant_id)}/keys", ApiKeyRow)

    def revoke_key(self, *, tenant_id: str, key_id: str) -> None:
        """Revoke a key."""
        self._send("DELETE", f"{_tenant(tenant_id)}/keys/{_part(key_id)}")

    # -- secrets

    def put_secret(
        self,
        *,
        tenant_id: str,
        workspace_id: str,
        name: str,
        system: str,
        agent_classes: Sequence[str],
        capability: str,
        value: str,
    ) -> PutSecret:
        """Store a secret."""
        body = {
            "system": system,
            "agent_classes": list(agent_classes),
            "capability": capability,
            "value": value,
        }
        return self._call("PUT", _secret(tenant_id, workspace_id, name), PutSecret, body)

    def rotate_secret(self, *, tenant_id: str, workspace_id: str, name: str, value: str) -> PutSecret:
        """Give a secret a new value."""
        path = f"{_secret(tenant_id, workspace_id, name)}/rotate"
        return self._call("POST", path, PutSecret, {"value": value})

    def revoke_secret(self, *, tenant_id: str, workspace_id: str, name: str) -> None:
        """Take a secret away."""
        self._send("POST", f"{_secret(tenant_id, workspace_id, name)}/revoke", body={})

    def list_secrets(self, *, tenant_id: str, workspace_id: str | None = None) -> list[SecretVersion]:
        """Secrets and versions, never a value."""
        query = {"workspace_id": workspace_id}
        return self._pages(f"{_tenant(tenant_id)}/secrets", SecretVersion, query)

    # -- policies

    def check_policies(self, *, tenant_id: str, layers: Mapping[str, str]) -> list[Problem]:
        """What would be wrong with policies."""
        path = f"{_tenant(tenant_id)}/policies/check"
        return self._items("POST", path, Problem, {"layers": layers})

    def activate_policies(self, *, tenant_id: str, layers: Mapping[str, str], reason: str) -> int:
        """Put policies in force; the new version."""
        body = {"layers": layers, "reason": reason}
        return self._version(f"{_tenant(tenant_id)}/policies/activate", body)

    def roll_back_policies(self, *, tenant_id: str, version: int, reason: str) -> int:
        """Put an earlier version in force again; the new version."""
        body = {"policy_version": version, "reason": reason}
        return self._version(f"{_tenant(tenant_id)}/policies/rollback", body)

    def list_policy_versions(self, *, tenant_id: str) -> list[PolicyVersion]:
        """The versions, newest first."""
        return self._pages(f"{_tenant(tenant_id)}/policies/history", PolicyVersion)

    def show_policy_version(self, *, tenant_id: str, version: int) -> PolicyVersion:
        """One version with its text."""
        return self._call("GET", f"{_tenant(tenant_id)}/policies/history/{version}", PolicyVersion)

    # -- the wire

    def _version(self, path: str, body: object) -> int:
        answer: int = self._call("POST", path, dict[str, Any], body)["policy_version"]
        return answer

    def _items(self, method: str, path: str, shape: type[T], body: object = None) -> list[T]:
        """A list that comes whole."""
        return _items_of(_decode(self._send(method, path, body=body), _Page), shape)

    def _pages(
        self,
        path: str,
        shape: type[T],
        query: Mapping[str, object] | None = None,
        *,
        limit: int = ITEMS_MAX,
    ) -> list[T]:
        """A list, page by page, at most `limit` items."""
        found: list[T] = []
        after: str | None = None
        while len(found) < limit:
            asked = {**(query or {}), "after": after, "limit": min(PAGE_ITEMS, limit - len(found))}
            page = _decode(self._send("GET", path, query=asked), _Page)
            found += _items_of(page, shape)
            after = page.next
            if after is None:
                break
        return found

    def _call(self, method: str, path: str, shape: type[T], body: object = None) -> T:
        return _decode(self._send(method, path, body=body), shape)

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        return send(
            self._transport,
            method,
            path,
            token=token or self._api_key,
            body=body,
            query=query,
            headers=headers,
            timeout_s=timeout_s or self._timeout_s,
        )


def _tenant(tenant_id: str) -> str:
    return f"{API}/tenants/{_part(tenant_id)}"


def _secret(tenant_id: str, workspace_id: str, name: str) -> str:
    return f"{_tenant(tenant_id)}/workspaces/{_part(workspace_id)}/secrets/{_part(name)}"


def _part(text: str) -> str:
    """One part of a path, whatever a person typed; dots alone would climb."""
    try:
        return quote(text, safe="").replace(".", "%2E") if set(text) <= {"."} else quote(text, safe="")
    except UnicodeEncodeError:
        return "%EF%BF%BD"


def _given(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _decode(answer: Answer, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=shape)
    except msgspec.MsgspecError as error:
        raise _not_ours(error) from None


def _items_of(page: _Page, shape: type[T]) -> list[T]:
    try:
        return [msgspec.convert(item, shape) for item in page.items]
    except msgspec.MsgspecError as error:
        raise _not_ours(error) from None


def _not_ours(error: Exception) -> UnreachableError:
    return UnreachableError(f"the answer is not one of a platform of this version: {error}")

"""The route table of the control plane (CONTRACT 'HTTP'), and each operation in a few lines."""

from __future__ import annotations

import datetime as dt
from typing import Final, Literal

import msgspec

from tenantry.api.endpoints import (
    Call,
    Endpoint,
    Page,
    PageQuery,
    Query,
    answer_of,
    limit_of,
    make_page,
    page_of,
    read_cursor,
)
from tenantry.api.fleet_routes import FLEET_ENDPOINTS
from tenantry.control.instances import Instances
from tenantry.control.keys import Keys
from tenantry.control.quotas import Quotas
from tenantry.control.runs import Runs
from tenantry.control.secrets import SecretOrder, Secrets
from tenantry.control.switches import Switches, SwitchOrder
from tenantry.control.tenants import Tenants
from tenantry.core.ids import TenantId, WorkspaceId
from tenantry.core.principal import Role
from tenantry.core.quota import Level, Limits

TENANT: Final = "/api/v1/tenants/{tenant_id}"
SECRET: Final = f"{TENANT}/workspaces/{{workspace_id}}/secrets/{{name}}"


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request's body; unknown fields are refused."""


class KeyBody(Body, frozen=True):
    """A key to make."""

    role: Role
    workspace_id: WorkspaceId | None = None
    expires_at: dt.datetime | None = None


class RotateBody(Body, frozen=True):
    """A secret's new value; ``overlap`` lets older versions stand for what still runs."""

    value: str
    overlap: bool = False


class RevokeBody(Body, frozen=True):
    """A version to revoke; all of them without one."""

    version: int | None = None


class LimitsBody(Body, frozen=True):
    """Overrides, instead of those before."""

    limits: Limits
    reason: str


class ReasonBody(Body, frozen=True):
    """Why."""

    reason: str


class RevokedAnswer(msgspec.Struct, frozen=True):
    """How many versions were in force."""

    revoked: int


class SwitchQuery(PageQuery, frozen=True):
    """Whose switches; an operator's without a tenant: everybody's."""

    tenant_id: TenantId | None = None


class SecretQuery(PageQuery, frozen=True):
    """Of one workspace, or of all."""

    workspace_id: WorkspaceId | None = None


class MeterQuery(Query, frozen=True):
    """One scope's meters, or without a level the tenant's, its workspaces' and its agents'."""

    level: Level | None = None
    subject_id: str | None = None


class RunQuery(PageQuery, frozen=True):
    """Only an agent's runs, or only those in a state."""

    agent_id: str | None = None
    state: str | None = None


class JournalQuery(PageQuery, frozen=True):
    """Only a run's entries."""

    run_id: str | None = None


async def whoami(call: Call) -> object:
    """Who the key proves, and what it may do."""
    return call.services.tenants.whoami(call.principal)


async def list_instances(call: Call) -> object:
    """The processes that can act."""
    return Page(await call.services.instances.list_instances(call.principal), None)


async def list_tenants(call: Call) -> object:
    """Tenants, by id."""
    after = read_cursor(call.query.after, str, "")
    rows = await call.services.tenants.list_tenants(call.principal, after=after, limit=limit_of(call.query))
    return make_page(rows, call.query, lambda row: row.tenant_id)


async def show_tenant(call: Call) -> object:
    """A tenant whole: what is declared, its versions, what of it is stopped."""
    return await call.services.tenants.show(call.principal, call.tenant_id)


async def switch(call: Call) -> object:
    """Kill, revive, set a mode, freeze, unfreeze; answers what every process said."""
    return await call.services.switches.switch(call.principal, call.body)


async def list_switches(call: Call) -> object:
    """The history of switches, newest first."""
    rows = await call.services.switches.list_switches(
        call.principal,
        call.query.tenant_id,
        before=read_cursor(call.query.after, int, 2**63 - 1),
        limit=limit_of(call.query),
    )
    return make_page(rows, call.query, lambda row: row.switch_seq)


async def list_keys(call: Call) -> object:
    """A tenant's API keys, never their secret part."""
    rows = await call.services.keys.list_keys(
        call.principal,
        call.tenant_id,
        after=read_cursor(call.query.after, str, ""),
        limit=limit_of(call.query),
    )
    return make_page(rows, call.query, lambda row: row.key_id)


async def create_key(call: Call) -> object:
    """Make an API key; its token is shown this once."""
    body: KeyBody = call.body
    return await call.services.keys.create(
        call.principal,
        call.tenant_id,
        role=body.role,
        workspace_id=body.workspace_id,
        expires_at=body.expires_at,
    )


async def revoke_key(call: Call) -> object:
    """Revoke an API key."""
    await call.services.keys.revoke(call.principal, call.tenant_id, call.path["key_id"])
    return None


async def list_secrets(call: Call) -> object:
    """Versions of a tenant's secrets, never a value."""
    rows = await call.services.secrets.list_secrets(
        call.principal,
        call.tenant_id,
        call.query.workspace_id,
        after=read_cursor(call.query.after, tuple[str, str, int], ("", "", 0)),
        limit=limit_of(call.query),
    )
    return make_page(rows, call.query, lambda row: (row.workspace_id, row.name, row.version))


async def put_secret(call: Call) -> object:
    """Make a secret what is given; the same again changes nothing."""
    return await call.services.secrets.put(
        call.principal, call.tenant_id, WorkspaceId(call.path["workspace_id"]), call.path["name"], call.body
    )


async def rotate_secret(call: Call) -> object:
    """Give a secret a new value."""
    return await call.services.secrets.rotate(
        call.principal,
        call.tenant_id,
        WorkspaceId(call.path["workspace_id"]),
        call.path["name"],
        call.body.value,
        overlap=call.body.overlap,
    )


async def revoke_secret(call: Call) -> object:
    """Revoke a secret, or one version of it; what was sealed is destroyed."""
    revoked = await call.services.secrets.revoke(
        call.principal,
        call.tenant_id,
        WorkspaceId(call.path["workspace_id"]),
        call.path["name"],
        call.body.version,
    )
    return RevokedAnswer(revoked)


async def show_quotas(call: Call) -> object:
    """Meters: limit, used, reserved, when they reset, what was refused."""
    return Page(
        await call.services.quotas.show(
            call.principal, call.tenant_id, level=call.query.level, subject_id=call.query.subject_id
        ),
        None,
    )


async def set_limits(call: Call) -> object:
    """Override the limits of a tenant, a workspace or an agent."""
    level: Level = msgspec.convert(call.path["level"], type=Literal["tenant", "workspace", "agent", "run"])
    return await call.services.quotas.set_limits(
        call.principal,
        call.tenant_id,
        level,
        call.path["subject_id"],
        call.body.limits,
        reason=call.body.reason,
    )


async def clear_overrun(call: Call) -> object:
    """Let model calls begin again after a bill beyond the bound."""
    return await call.services.quotas.clear_overrun(call.principal, call.tenant_id, reason=call.body.reason)


async def list_runs(call: Call) -> object:
    """A tenant's runs, newest first."""
    rows = await call.services.runs.list_runs(
        call.principal,
        call.tenant_id,
        agent_id=call.query.agent_id,
        state=call.query.state,
        before=read_cursor(call.query.after, str, ""),
        limit=limit_of(call.query),
    )
    return make_page(rows, call.query, lambda row: row.run_id)


async def show_run(call: Call) -> object:
    """A run: its labels, its result, the latest of its actions."""
    return await call.services.runs.show_run(call.principal, call.tenant_id, call.path["run_id"])


async def list_journal(call: Call) -> object:
    """A tenant's journal, newest first."""
    rows = await call.services.runs.list_journal(
        call.principal,
        call.tenant_id,
        run_id=call.query.run_id,
        before=read_cursor(call.query.after, str, ""),
        limit=limit_of(call.query),
    )
    return make_page(rows, call.query, lambda row: row.action_id)


async def show_entry(call: Call) -> object:
    """A journal entry with its content."""
    return await call.services.runs.show_entry(call.principal, call.tenant_id, call.path["action_id"])


async def list_incidents(call: Call) -> object:
    """A tenant's incidents, newest first."""
    rows = await call.services.runs.list_incidents(
        call.principal,
        call.tenant_id,
        before=read_cursor(call.query.after, str, ""),
        limit=limit_of(call.query),
    )
    return make_page(rows, call.query, lambda row: row.incident_id)


ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    Endpoint("GET", "/api/v1/whoami", whoami, answer_of(Tenants.whoami)),
    Endpoint("GET", "/api/v1/instances", list_instances, page_of(Instances.list_instances)),
    Endpoint("GET", "/api/v1/tenants", list_tenants, page_of(Tenants.list_tenants), query=PageQuery),
    Endpoint("GET", TENANT, show_tenant, answer_of(Tenants.show)),
    Endpoint("POST", "/api/v1/switches", switch, answer_of(Switches.switch), body=SwitchOrder),
    Endpoint("GET", "/api/v1/switches", list_switches, page_of(Switches.list_switches), query=SwitchQuery),
    Endpoint("GET", f"{TENANT}/keys", list_keys, page_of(Keys.list_keys), query=PageQuery),
    Endpoint("POST", f"{TENANT}/keys", create_key, answer_of(Keys.create), body=KeyBody, status=201),
    Endpoint("DELETE", f"{TENANT}/keys/{{key_id}}", revoke_key, None, status=204),
    Endpoint("GET", f"{TENANT}/secrets", list_secrets, page_of(Secrets.list_secrets), query=SecretQuery),
    Endpoint("PUT", SECRET, put_secret, answer_of(Secrets.put), body=SecretOrder),
    Endpoint("POST", f"{SECRET}/rotate", rotate_secret, answer_of(Secrets.rotate), body=RotateBody),
    Endpoint("POST", f"{SECRET}/revoke", revoke_secret, RevokedAnswer, body=RevokeBody),
    Endpoint("GET", f"{TENANT}/quotas", show_quotas, page_of(Quotas.show), query=MeterQuery),
    Endpoint(
        "PUT",
        f"{TENANT}/quotas/{{level}}/{{subject_id}}",
        set_limits,
        answer_of(Quotas.set_limits),
        body=LimitsBody,
    ),
    Endpoint(
        "POST",
        f"{TENANT}/clear_overrun",
        clear_overrun,
        answer_of(Quotas.clear_overrun),
        body=ReasonBody,
    ),
    Endpoint("GET", f"{TENANT}/runs", list_runs, page_of(Runs.list_runs), query=RunQuery),
    Endpoint("GET", f"{TENANT}/runs/{{run_id}}", show_run, answer_of(Runs.show_run)),
    Endpoint("GET", f"{TENANT}/journal", list_journal, page_of(Runs.list_journal), query=JournalQuery),
    Endpoint("GET", f"{TENANT}/journal/{{action_id}}", show_entry, answer_of(Runs.show_entry)),
    Endpoint("GET", f"{TENANT}/incidents", list_incidents, page_of(Runs.list_incidents), query=PageQuery),
    *FLEET_ENDPOINTS,
)

"""``tenantry key``: API keys of a tenant."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tenantry.cli.options import AsJson, Data, Tenant
from tenantry.cli.output import moment
from tenantry.cli.session import Session

RoleWord = Literal["tenant_admin", "approver", "developer", "viewer"]


def key_create(
    *,
    tenant: Tenant,
    role: Annotated[RoleWord, typer.Option(help="What the key may do.")],
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", metavar="W", help="Narrow the key to this workspace.")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="When it ends, RFC 3339 with a zone.")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is shown this once and is nowhere else."""
    session = Session(as_json=as_json, data=data)
    key = session.control().create_key(
        tenant_id=tenant, role=role, workspace_id=workspace, expires_at=expires_at
    )
    if as_json:
        session.output.json(key)
        return
    session.output.note(f"{key.role} of {tenant}, {key.key_id}; keep it: it is shown this once")
    session.output.line(key.token)


def key_list(*, tenant: Tenant, data: Data = None, as_json: AsJson = False) -> None:
    """A tenant's API keys, never their secret part."""
    session = Session(as_json=as_json, data=data)
    keys = session.control().list_keys(tenant_id=tenant)
    if as_json:
        session.output.json({"keys": keys})
        return
    session.output.table(
        ("key", "begins with", "role", "workspace", "made", "used", "expires", "revoked"),
        (
            (
                key.key_id,
                key.prefix,
                key.role,
                key.workspace_id,
                moment(key.created_at),
                moment(key.last_used_at),
                moment(key.expires_at),
                moment(key.revoked_at),
            )
            for key in keys
        ),
        empty="this tenant has no keys",
    )


def key_revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as `key list` shows it.")],
    *,
    tenant: Tenant,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Revoke an API key; no process takes it five seconds later."""
    session = Session(as_json=as_json, data=data)
    session.control().revoke_key(tenant_id=tenant, key_id=key_id)
    if as_json:
        session.output.json({"revoked": key_id})
    else:
        session.output.line(f"revoked {key_id}", "good")

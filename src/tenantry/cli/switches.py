"""``kill``, ``revive``, ``mode``, ``freeze`` and ``unfreeze``: a person's word, and who has heeded it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tenantry.cli.options import AsJson, Data, Tenant
from tenantry.cli.output import moment
from tenantry.cli.session import Session
from tenantry_client import SwitchResult

Mode = Literal["normal", "read_only", "drafts_only", "approvals_only", "suspended"]
Why = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; whoever is stopped reads it.")]
Wait = Annotated[
    int, typer.Option("--wait-ms", min=0, max=60_000, help="How long to wait for every process to confirm.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name or id.")]
NO_REASON = "by hand"


def switch(
    session: Session,
    level: str,
    verb: str,
    *,
    tenant: str | None,
    subject: str | None = None,
    reason: str,
    wait_ms: int,
    mode: str | None = None,
) -> None:
    """Do it and tell what came of it; exit status 1 when not every process has confirmed."""
    result = session.control().switch(
        level=level,
        verb=verb,
        tenant_id=tenant,
        subject_id=subject,
        reason=reason,
        mode=mode,
        wait_ms=wait_ms,
    )
    if session.as_json:
        session.output.json(result)
    else:
        _tell(session, result)
    if result.confirmed_at is None:
        raise typer.Exit(1)


def _tell(session: Session, result: SwitchResult) -> None:
    output = session.output
    what = result.verb if result.mode is None else f"{result.verb} {result.mode}"
    output.line(f"{what}: {result.level} {result.subject_id}, committed at {result.requested_at}")
    if result.confirmed_at is not None:
        output.line(f"confirmed at {result.confirmed_at} by {len(result.instances)} processes", "good")
    for instance in result.instances:
        if instance.answer == "unconfirmed":
            name = instance.address or instance.instance_id
            output.line(f"unconfirmed: {name} ({instance.role})", "bad")
    for scope in result.still_stopped:
        output.line(f"still stopped: {scope.level} {scope.subject_id}", "warn")
    if result.note and result.note != "confirmed":
        output.line(result.note, "dim")


def tenant_kill(
    tenant: Annotated[str, typer.Argument(metavar="T")],
    *,
    reason: Why = NO_REASON,
    wait_ms: Wait = 5_000,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Stop everything of a tenant, now. Returns when every process has confirmed, or names the ones that have not."""
    session = Session(as_json=as_json, data=data)
    switch(session, "tenant", "kill", tenant=tenant, reason=reason, wait_ms=wait_ms)


def tenant_revive(
    tenant: Annotated[str, typer.Argument(metavar="T")],
    *,
    reason: Why = NO_REASON,
    wait_ms: Wait = 5_000,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Let a tenant work again. What was killed by itself (an agent, a run) stays killed, and is listed."""
    session = Session(as_json=as_json, data=data)
    switch(session, "tenant", "revive", tenant=tenant, reason=reason, wait_ms=wait_ms)


def tenant_mode(
    tenant: Annotated[str, typer.Argument(metavar="T")],
    mode: Annotated[Mode, typer.Argument(metavar="MODE", help="What the tenant may still do.")],
    *,
    reason: Why = NO_REASON,
    wait_ms: Wait = 5_000,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Downgrade a tenant: read_only, drafts_only, approvals_only or suspended; normal takes it back."""
    session = Session(as_json=as_json, data=data)
    switch(session, "tenant", "mode", tenant=tenant, reason=reason, wait_ms=wait_ms, mode=mode)


def tenant_freeze(
    tenant: Annotated[str, typer.Argument(metavar="T")],
    *,
    reason: Why = NO_REASON,
    wait_ms: Wait = 5_000,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Freeze a tenant's policy: nothing that would change what is decided takes effect until unfreeze."""
    session = Session(as_json=as_json, data=data)
    switch(session, "tenant", "freeze", tenant=tenant, reason=reason, wait_ms=wait_ms)


def tenant_unfreeze(
    tenant: Annotated[str, typer.Argument(metavar="T")],
    *,
    reason: Why = NO_REASON,
    wait_ms: Wait = 5_000,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Let a tenant's policy be changed again."""
    session = Session(as_json=as_json, data=data)
    switch(session, "tenant", "unfreeze", tenant=tenant, reason=reason, wait_ms=wait_ms)


def add_part_commands(app: typer.Typer, level: Literal["workspace", "agent", "run"]) -> None:
    """``kill`` and ``revive`` of something inside a tenant."""

    @app.command(
        "kill", help=f"Stop everything of one {level}, now; returns when every process has confirmed."
    )
    def kill(
        name: Name,
        *,
        tenant: Tenant,
        reason: Why = NO_REASON,
        wait_ms: Wait = 5_000,
        data: Data = None,
        as_json: AsJson = False,
    ) -> None:
        session = Session(as_json=as_json, data=data)
        switch(session, level, "kill", tenant=tenant, subject=name, reason=reason, wait_ms=wait_ms)

    @app.command("revive", help=f"Let one {level} work again.")
    def revive(
        name: Name,
        *,
        tenant: Tenant,
        reason: Why = NO_REASON,
        wait_ms: Wait = 5_000,
        data: Data = None,
        as_json: AsJson = False,
    ) -> None:
        session = Session(as_json=as_json, data=data)
        switch(session, level, "revive", tenant=tenant, subject=name, reason=reason, wait_ms=wait_ms)


def switch_list(
    *,
    tenant: Annotated[
        str | None, typer.Option("--tenant", "-t", metavar="T", help="Only this tenant's.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """The history of switches, newest first: what, by whom, why, and when it was confirmed."""
    session = Session(as_json=as_json, data=data)
    switches = session.control().list_switches(tenant_id=tenant, limit=limit)
    if as_json:
        session.output.json({"switches": switches})
        return
    session.output.table(
        ("at", "tenant", "what", "by", "confirmed", "reason"),
        (
            (
                moment(row.requested_at),
                row.tenant_id,
                f"{row.verb} {row.mode or ''} {row.level} {row.subject_id}".replace("  ", " "),
                row.requested_by,
                moment(row.confirmed_at),
                row.reason,
            )
            for row in switches
        ),
        empty="no switch was ever thrown",
    )

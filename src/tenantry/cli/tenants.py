"""``tenantry tenant list|show`` and ``quota show``: how a tenant stands."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import typer

from tenantry.cli.options import AsJson, Data, Tenant
from tenantry.cli.output import Output, moment
from tenantry.cli.session import Session
from tenantry_client import StoppedScope


def tenant_list(*, data: Data = None, as_json: AsJson = False) -> None:
    """The tenants that this key may see."""
    session = Session(as_json=as_json, data=data)
    tenants = session.control().list_tenants()
    if as_json:
        session.output.json({"tenants": tenants})
        return
    session.output.table(
        ("tenant", "name", "quota class", "since"),
        ((row.tenant_id, row.display_name, row.quota_class, moment(row.created_at)) for row in tenants),
        empty="no tenants yet: tenantry apply FILE makes them",
    )


def tenant_show(
    tenant: Annotated[str, typer.Argument(metavar="T")], *, data: Data = None, as_json: AsJson = False
) -> None:
    """A tenant: its state, what of it is stopped and why, its workspaces, agents and integrations."""
    session = Session(as_json=as_json, data=data)
    state = session.control().show_tenant(tenant)
    if as_json:
        session.output.json(state)
        return
    output = session.output
    spec: dict[str, Any] = dict(state.spec)
    output.fields(
        (
            ("tenant", state.tenant_id),
            ("name", spec.get("display_name")),
            ("quota class", spec.get("quota_class")),
            ("state", "killed" if state.killed else state.mode),
            ("policy", f"version {state.policy_version}{', frozen' if state.frozen else ''}"),
            ("workspaces", sorted(spec.get("workspaces") or {})),
            ("agents", sorted(spec.get("agents") or {})),
            ("integrations", sorted(spec.get("integrations") or {})),
        )
    )
    for scope in state.stopped:
        output.line(told_stop(scope), "warn")


def told_stop(scope: StoppedScope) -> str:
    """A stopped scope as a sentence."""
    how = "killed" if scope.killed else f"{scope.mode}{' and frozen' if scope.frozen else ''}"
    why = f": {scope.switch_reason}" if scope.switch_reason else ""
    return f"{scope.level} {scope.subject_id} is {how} by {scope.switched_by} since {moment(scope.switched_at)}{why}"


def quota_show(
    *,
    tenant: Tenant,
    everything: Annotated[
        bool, typer.Option("--all", help="Also meters that have no limit and were never used.")
    ] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Each meter of a tenant: limit, used, reserved, when it resets; and what was refused where."""
    session = Session(as_json=as_json, data=data)
    scopes = session.control().show_quota(tenant)
    if as_json:
        session.output.json({"scopes": scopes})
        return
    rows = [
        (
            f"{scope.level} {scope.subject_id}",
            reading.meter.name,
            "none" if reading.limit is None else reading.limit,
            reading.used,
            reading.reserved,
            _moment(reading.resets_at_s),
        )
        for scope in scopes
        for reading in scope.meters
        if everything or reading.limit is not None or reading.used or reading.reserved
    ]
    session.output.table(
        ("scope", "meter", "limit", "used", "reserved", "resets at"), rows, empty="no meter is bounded"
    )
    _tell_refusals(session.output, scopes)


def _tell_refusals(output: Output, scopes: list[Any]) -> None:
    for scope in scopes:
        if scope.refusals:
            output.line(f"{scope.level} {scope.subject_id}: refused {scope.refusals:,} times", "warn")
        if scope.overrun_tokens or scope.overrun_microusd:
            output.line(
                f"{scope.level} {scope.subject_id}: billed beyond the bound: {scope.overrun_tokens:,} tokens, "
                f"{scope.overrun_microusd:,} micro-US-dollars; no model call begins until a person looks",
                "bad",
            )


def _moment(seconds: int | None) -> str | None:
    return None if seconds is None else moment(dt.datetime.fromtimestamp(seconds, tz=dt.UTC).isoformat())

"""The routes of policies and of the fleet file."""

from __future__ import annotations

from typing import Final

import msgspec

from tenantry.api.endpoints import (
    Call,
    Endpoint,
    Page,
    PageQuery,
    answer_of,
    limit_of,
    make_page,
    page_of,
    read_cursor,
)
from tenantry.control.fleet import Fleet
from tenantry.control.policies import Policies
from tenantry.core.errors import NotFoundError

POLICIES: Final = "/api/v1/tenants/{tenant_id}/policies"
FLEET_BYTES_MAX: Final = 8 * 1024 * 1024


class LayersBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Layers to look at, over those in force; null takes one away."""

    layers: dict[str, str | None]


class ActivateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Layers to put over those in force; null takes one away."""

    layers: dict[str, str | None]
    reason: str


class RollbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The version to go back to."""

    policy_version: int
    reason: str


class FleetBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fleet file, policies' files read in, and values for what it refers to.

    Values are named ``tenants.T.secrets.S`` and ``providers.P.credential``.
    """

    fleet: msgspec.Raw
    values: dict[str, str] = {}

    def __repr__(self) -> str:
        return "FleetBody(hidden)"


class VersionAnswer(msgspec.Struct, frozen=True):
    """The version under which the change holds."""

    policy_version: int


async def show_policies(call: Call) -> object:
    """The policies in force."""
    return await call.services.policies.show(call.principal, call.tenant_id)


async def check_policies(call: Call) -> object:
    """What would be wrong with layers over those in force."""
    return Page(await call.services.policies.check(call.principal, call.tenant_id, call.body.layers), None)


async def activate_policies(call: Call) -> object:
    """Put layers over those in force."""
    version = await call.services.policies.activate(
        call.principal, call.tenant_id, call.body.layers, reason=call.body.reason
    )
    return VersionAnswer(version)


async def rollback_policies(call: Call) -> object:
    """Activate again what an earlier version held."""
    version = await call.services.policies.rollback(
        call.principal, call.tenant_id, call.body.policy_version, reason=call.body.reason
    )
    return VersionAnswer(version)


async def list_policy_versions(call: Call) -> object:
    """The history of a tenant's policies, newest first."""
    rows = await call.services.policies.history(
        call.principal,
        call.tenant_id,
        before=read_cursor(call.query.after, int, 2**63 - 1),
        limit=limit_of(call.query),
    )
    return make_page(rows, call.query, lambda row: row.policy_version)


async def show_policy_version(call: Call) -> object:
    """One version with its layers."""
    number = call.path["policy_version"]
    if not number.isascii() or not number.isdigit() or len(number) > 18:
        raise NotFoundError("there is no such version")
    return await call.services.policies.show_version(call.principal, call.tenant_id, int(number))


async def diff_fleet(call: Call) -> object:
    """What applying a fleet file would change."""
    changes = await call.services.fleet.diff(call.principal, bytes(call.body.fleet), call.body.values)
    return Page(changes, None)


async def apply_fleet(call: Call) -> object:
    """Make the fleet what a file says."""
    return await call.services.fleet.apply(call.principal, bytes(call.body.fleet), call.body.values)


async def export_fleet(call: Call) -> object:
    """The fleet as a file; no secret's value is in it."""
    return await call.services.fleet.export(call.principal)


FLEET_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    Endpoint("GET", POLICIES, show_policies, answer_of(Policies.show)),
    Endpoint("POST", f"{POLICIES}/check", check_policies, page_of(Policies.check), body=LayersBody),
    Endpoint("POST", f"{POLICIES}/activate", activate_policies, VersionAnswer, body=ActivateBody),
    Endpoint("POST", f"{POLICIES}/rollback", rollback_policies, VersionAnswer, body=RollbackBody),
    Endpoint("GET", f"{POLICIES}/history", list_policy_versions, page_of(Policies.history), query=PageQuery),
    Endpoint(
        "GET",
        f"{POLICIES}/history/{{policy_version}}",
        show_policy_version,
        answer_of(Policies.show_version),
    ),
    Endpoint(
        "POST",
        "/api/v1/fleet/diff",
        diff_fleet,
        page_of(Fleet.diff),
        body=FleetBody,
        body_bytes_max=FLEET_BYTES_MAX,
    ),
    Endpoint(
        "POST",
        "/api/v1/fleet/apply",
        apply_fleet,
        answer_of(Fleet.apply),
        body=FleetBody,
        body_bytes_max=FLEET_BYTES_MAX,
    ),
    Endpoint("GET", "/api/v1/fleet/export", export_fleet, answer_of(Fleet.export)),
)

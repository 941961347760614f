"""What a fleet file would change: differences of two plain pictures of the fleet, secrets hidden."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from tenantry.control.fleet_state import PlatformState
from tenantry.core.quota import QuotaClass
from tenantry.registry.specs import FleetFile, TenantSpec


class Change(msgspec.Struct, frozen=True):
    """One difference; ``before`` and ``after`` are JSON, None where there is nothing; secrets are hidden."""

    path: str
    change: Literal["added", "changed", "removed"]
    before: object = None
    after: object = None


def find_changes(
    fleet: FleetFile,
    platform: PlatformState,
    tenants: Mapping[str, TenantSpec],
    differing: set[str],
) -> list[Change]:
    """All that a completed file would change; `differing` are keys of values that are not those held."""
    changes: list[Change] = []
    if fleet.guardrails.text != platform.guardrails:
        changes.append(Change("$.guardrails", "changed", platform.guardrails, fleet.guardrails.text))
    for section, before, after in (
        ("quota_classes", platform.quota_classes, fleet.quota_classes),
        ("providers", platform.providers, fleet.providers),
        ("models", platform.models, fleet.models),
    ):
        changes += compare(_plain_all(before), _plain_all(after), path=f"$.{section}")
    for tenant_id in sorted(fleet.tenants):
        path = f"$.tenants.{tenant_id}"
        spec = fleet.tenants[tenant_id]
        known = tenants.get(tenant_id)
        if known is None:
            changes.append(Change(path, "added", None, _plain_tenant(spec, spec)))
        else:
            changes += compare(_plain_tenant(known, spec), _plain_tenant(spec, spec), path=path)
    told = {change.path for change in changes}
    for key in sorted(differing):
        path = f"$.{key}.value" if key.startswith("tenants.") else f"$.{key}"
        if not any(path == p or path.startswith(f"{p}.") for p in told):
            changes.append(Change(path, "changed", "(hidden)", "(hidden)"))
    return changes


def _plain_all(specs: Mapping[str, QuotaClass] | Mapping[str, msgspec.Struct]) -> dict[str, object]:
    return {name: plain(spec) for name, spec in specs.items()}


def _plain_tenant(spec: TenantSpec, wanted: TenantSpec) -> dict[str, object]:
    """A tenant as plain values. Secrets that the file does not name, and where values come from, are left out."""
    built = plain(spec)
    secrets = {}
    for name, secret in spec.secrets.items():
        if name in wanted.secrets:
            use = plain(secret)
            del use["value"]
            use["agent_classes"] = sorted(secret.agent_classes)
            secrets[name] = use
    built.pop("secrets", None)
    if secrets:
        built["secrets"] = secrets
    return built


def compare(before: object, after: object, *, path: str = "$") -> Iterator[Change]:
    """Differences of two plain values (dicts, lists, scalars), in the order of paths."""
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            where = f"{path}.{key}"
            if key not in before:
                yield Change(where, "added", None, after[key])
            elif key not in after:
                yield Change(where, "removed", before[key], None)
            else:
                yield from compare(before[key], after[key], path=where)
        return
    yield Change(path, "changed", before, after)


def plain(value: msgspec.Struct) -> dict[str, object]:
    """A declaration as plain values, defaults left out."""
    built = _without_empty(msgspec.to_builtins(value))
    assert isinstance(built, dict), "a struct is an object"
    return built


def _without_empty(value: object) -> object:
    """Without members that are empty objects: written or not, they mean the same."""
    if not isinstance(value, dict):
        return value
    pruned = {key: _without_empty(member) for key, member in value.items()}
    return {key: member for key, member in pruned.items() if member != {}}

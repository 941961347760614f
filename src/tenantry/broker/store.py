"""Secrets in the database: sealed, in versions, never read out by a list (DESIGN §12).

A secret's versions count from 1; the newest is the current one, and only it is handed out. A rotation may let
older versions stand for a while (overlap), for what still runs at the upstream; a revocation destroys the
sealed value. When the newest is revoked the secret is revoked: there is no way back to an older value but to
put it again.

Associated data binds a sealed value to tenant, workspace, name and version:
``tenant|secrets|workspace/name/version``. All of it runs inside the caller's ``async with scope:``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from tenantry.broker.secrets import SecretValue, SecretVersion
from tenantry.core.errors import InvalidInputError, NotFoundError
from tenantry.core.ids import WorkspaceId, parse_name
from tenantry.storage.scope import TenantScope
from tenantry.storage.statements import Statement, load_statements

PAGE_MAX: Final = 1000
AGENT_CLASSES_MAX: Final = 64

Capability = Literal["read", "mutate"]


class SecretDeclaration(msgspec.Struct, frozen=True):
    """What a secret is for. `capability` mutate lets it serve actions that change the system, and reads."""

    workspace_id: WorkspaceId
    name: str
    system: str
    agent_classes: tuple[str, ...]
    capability: Capability = "read"


class StoredSecret(msgspec.Struct, frozen=True):
    """The newest version as it is stored; `sealed` is None once it is revoked."""

    version: int
    system: str
    agent_classes: frozenset[str]
    capability: str
    sealed: bytes | None
    revoked: bool


def row_id(workspace_id: WorkspaceId, name: str, version: int) -> str:
    """What a sealed value is bound to beside its tenant and table; neither part can hold a slash."""
    return f"{workspace_id}/{name}/{version}"


async def find_newest(scope: TenantScope, workspace_id: WorkspaceId, name: str) -> StoredSecret | None:
    """The newest version of a secret; one statement."""
    row = await scope.fetch_one(_statements()["find_newest"], scope.tenant_id, workspace_id, name)
    if row is None:
        return None
    return StoredSecret(
        version=row["version"],
        system=row["system"],
        agent_classes=frozenset(row["agent_classes"]),
        capability=row["capability"],
        sealed=row["sealed"],
        revoked=row["revoked"],
    )


async def put_secret(
    scope: TenantScope, declaration: SecretDeclaration, value: SecretValue
) -> tuple[int, bool]:
    """Make the secret what is given: its version, and whether that is a new one.

    Cost: two statements, a third when anything differs. Errors: `InvalidInputError` that names the field.
    """
    wanted = check_declaration(declaration)
    newest = await _lock(scope, wanted.workspace_id, wanted.name, creates=True)
    if newest is not None and newest.sealed is not None:
        held = _open(scope, wanted, newest.version, newest.sealed)
        same = (newest.system, newest.agent_classes, newest.capability) == (
            wanted.system,
            frozenset(wanted.agent_classes),
            wanted.capability,
        )
        if same and held == value:
            return newest.version, False
    version = newest.version + 1 if newest is not None else 1
    await _add(scope, wanted, version, value)
    return version, True


async def holds_value(scope: TenantScope, declaration: SecretDeclaration, value: SecretValue) -> bool:
    """Whether the secret's newest version holds this very value; one statement, nothing changes."""
    newest = await find_newest(scope, declaration.workspace_id, declaration.name)
    if newest is None or newest.sealed is None:
        return False
    return _open(scope, declaration, newest.version, newest.sealed) == value


async def rotate_secret(
    scope: TenantScope, workspace_id: WorkspaceId, name: str, value: SecretValue, *, overlap: bool
) -> int:
    """Give a secret a new value for the same use; its new version. Without `overlap` older ones are revoked.

    Cost: three or four statements. Errors: `NotFoundError` when there is no such secret.
    """
    newest = await _lock(scope, _known(workspace_id), _known(name))
    if newest is None:
        raise NotFoundError("there is no such secret")
    declaration = SecretDeclaration(
        workspace_id=workspace_id,
        name=name,
        system=newest.system,
        agent_classes=tuple(sorted(newest.agent_classes)),
        capability="mutate" if newest.capability == "mutate" else "read",
    )
    version = newest.version + 1
    await _add(scope, declaration, version, value)
    if not overlap:
        await scope.execute(_statements()["revoke_older"], scope.tenant_id, workspace_id, name, version)
    return version


async def revoke_secret(
    scope: TenantScope, workspace_id: WorkspaceId, name: str, version: int | None = None
) -> int:
    """Revoke one version, or all, and destroy what was sealed; how many were in force until now.

    Cost: three statements. Errors: `NotFoundError` when there is no such secret or version.
    """
    newest = await _lock(scope, _known(workspace_id), _known(name))
    if newest is None or (version is not None and not 1 <= version <= newest.version):
        raise NotFoundError("there is no such secret")
    return await scope.execute(_statements()["revoke"], scope.tenant_id, workspace_id, name, version)


async def list_secrets(
    scope: TenantScope,
    workspace_id: WorkspaceId | None = None,
    *,
    after: tuple[str, str, int] = ("", "", 0),
    limit: int = 100,
) -> list[SecretVersion]:
    """A page of versions by workspace, name and version, after the one given; at most 1,000; no value."""
    if workspace_id is not None:
        _known(workspace_id)
    rows = await scope.fetch_all(
        _statements()["list_versions"], scope.tenant_id, workspace_id, *after, max(1, min(limit, PAGE_MAX))
    )
    return [
        SecretVersion(
            workspace_id=row["workspace_id"],
            name=row["name"],
            version=row["version"],
            system=row["system"],
            agent_classes=tuple(row["agent_classes"]),
            capability=row["capability"],
            created_at=row["created_at"],
            revoked_at=row["revoked_at"],
            current=row["newest"] and row["revoked_at"] is None,
        )
        for row in rows
    ]


def check_declaration(declaration: SecretDeclaration) -> SecretDeclaration:
    """The declaration with its agent classes in order. Errors: `InvalidInputError` that names the field."""
    parse_name(declaration.workspace_id, path="$.workspace_id")
    parse_name(declaration.name, path="$.name")
    parse_name(declaration.system, path="$.system")
    classes = sorted(set(declaration.agent_classes))
    if not 1 <= len(classes) <= AGENT_CLASSES_MAX:
        raise InvalidInputError("a secret names 1 to 64 agent classes", path="$.agent_classes")
    for place, agent_class in enumerate(classes):
        parse_name(agent_class, path=f"$.agent_classes[{place}]")
    if declaration.capability not in {"read", "mutate"}:
        raise InvalidInputError("a capability is read or mutate", path="$.capability")
    return msgspec.structs.replace(declaration, agent_classes=tuple(classes))


def _known(name: str) -> WorkspaceId:
    """A name that could stand in the database. Errors: `NotFoundError`, as for one that does not."""
    try:
        return WorkspaceId(parse_name(name))
    except InvalidInputError:
        raise NotFoundError("there is no such secret") from None


async def _lock(
    scope: TenantScope, workspace_id: WorkspaceId, name: str, *, creates: bool = False
) -> StoredSecret | None:
    locked = await scope.fetch_one(_statements()["lock_for_secret"], scope.tenant_id, workspace_id)
    if locked is None:
        raise NotFoundError("there is no such tenant")
    newest = await find_newest(scope, workspace_id, name)
    if newest is None and creates and not locked["workspace_stands"]:
        raise InvalidInputError("no workspace of that name is declared", path="$.workspace_id")
    return newest


async def _add(scope: TenantScope, declaration: SecretDeclaration, version: int, value: SecretValue) -> None:
    sealed_to = row_id(declaration.workspace_id, declaration.name, version)
    await scope.execute(
        _statements()["add_version"],
        scope.tenant_id,
        declaration.workspace_id,
        declaration.name,
        version,
        declaration.system,
        list(declaration.agent_classes),
        declaration.capability,
        scope.seal(value.reveal().encode(), table="secrets", row_id=sealed_to),
    )


def _open(scope: TenantScope, declaration: SecretDeclaration, version: int, sealed: bytes) -> SecretValue:
    sealed_to = row_id(declaration.workspace_id, declaration.name, version)
    return SecretValue(scope.unseal(sealed, table="secrets", row_id=sealed_to).decode())


@functools.cache
def _statements() -> Mapping[str, Statement]:
    return load_statements("tenantry.broker", "store.sql")

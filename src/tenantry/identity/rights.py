"""Rights: what each role may do, and the one check that every use case of people makes.

The matrix stands in `docs/reference/roles.md` too; a test holds both equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tenantry.core.errors import ForbiddenError, NotFoundError
from tenantry.core.ids import TenantId, WorkspaceId
from tenantry.core.principal import Principal, Right, Role

OPERATOR_PREFIX: Final = "op_"

_READ: Final = frozenset({Right.TENANT_READ, Right.POLICY_READ, Right.RUN_READ, Right.QUOTA_READ})

# Nobody but the tenant answers for its risk: an operator has every right except `approval.answer`.
ROLE_RIGHTS: Final[Mapping[Role, frozenset[Right]]] = MappingProxyType(
    {
        Role.OPERATOR: frozenset(Right) - {Right.APPROVAL_ANSWER},
        Role.TENANT_ADMIN: frozenset(Right) - {Right.FLEET_APPLY, Right.GUARDRAIL_WRITE},
        Role.APPROVER: _READ | {Right.JOURNAL_READ, Right.APPROVAL_ANSWER},
        Role.DEVELOPER: _READ | {Right.JOURNAL_READ, Right.SECRET_READ, Right.RUN_START},
        Role.VIEWER: _READ,
    }
)

# Effects that reach beyond one workspace, or reads of what is the tenant's as a whole: a key that was
# narrowed to a workspace has them there only.
_WHOLE_TENANT: Final = frozenset(
    {
        Right.TENANT_SWITCH,
        Right.TENANT_MODE,
        Right.POLICY_WRITE,
        Right.KEY_READ,
        Right.KEY_WRITE,
        Right.SECRET_WRITE,
        Right.SECRET_READ,
    }
)


def rights_of(role: str | None) -> frozenset[Right]:
    """The rights of a role; a missing, empty or unknown one has none."""
    try:
        return ROLE_RIGHTS.get(Role(role), frozenset()) if role else frozenset()
    except ValueError:
        return frozenset()


def require(
    principal: Principal,
    right: Right,
    tenant_id: TenantId | None = None,
    workspace_id: WorkspaceId | None = None,
) -> None:
    """Check that the principal may use `right` on that tenant and workspace.

    `workspace_id` None means: on the tenant as a whole. Raises `ForbiddenError` that names the right;
    `NotFoundError` for another tenant or workspace than the principal's own, whether it exists or not. The
    role is looked at first, so that a refusal never depends on whether the thing named exists.
    """
    if right not in rights_of(principal.role) or not _is_sound(principal):
        raise ForbiddenError(f"this key's role does not carry the right {right.value}")
    if tenant_id is not None and principal.tenant_id is not None and principal.tenant_id != tenant_id:
        raise NotFoundError("no such tenant")
    narrowed = principal.workspace_id
    if narrowed is None:
        return
    if workspace_id is None:
        if right in _WHOLE_TENANT:
            raise ForbiddenError(f"this key is narrowed to a workspace and has {right.value} only there")
    elif workspace_id != narrowed:
        raise NotFoundError("no such workspace")


def narrow(principal: Principal, workspace_id: WorkspaceId | None) -> WorkspaceId | None:
    """The workspace that a list must be narrowed to: the one asked for, else the key's own, else None (all).

    Raises `NotFoundError` when the key is narrowed to another workspace than the one asked for.
    """
    if principal.workspace_id is None or principal.workspace_id == workspace_id:
        return workspace_id
    if workspace_id is None:
        return principal.workspace_id
    raise NotFoundError("no such workspace")


def require_undo(principal: Principal, switched_by: str | None) -> None:
    """Check that the principal may take back what `switched_by` (a principal's id) switched or froze.

    What an operator stopped, only an operator starts again. Raises `ForbiddenError`.
    """
    if (
        switched_by is not None
        and switched_by.startswith(OPERATOR_PREFIX)
        and principal.role != Role.OPERATOR
    ):
        raise ForbiddenError("an operator switched this; only an operator may switch it back")


def _is_sound(principal: Principal) -> bool:
    """Only an operator is without a tenant: a tenant's role with none would otherwise reach every tenant."""
    return (principal.role == Role.OPERATOR) == (principal.tenant_id is None)

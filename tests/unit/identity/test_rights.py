"""Rights: the matrix is the documented one, and nothing without a known role has any."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tenantry.core.errors import ForbiddenError, NotFoundError
from tenantry.core.ids import KeyId, PrincipalId, TenantId, WorkspaceId
from tenantry.core.principal import Principal, Right, Role
from tenantry.identity.rights import ROLE_RIGHTS, narrow, require, require_undo, rights_of

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "roles.md"
ACME, OTHER = TenantId("acme"), TenantId("other")
EAST, WEST = WorkspaceId("east"), WorkspaceId("west")


def principal(role: Role, tenant: TenantId | None = ACME, workspace: WorkspaceId | None = None) -> Principal:
    return Principal(PrincipalId("prn_x"), KeyId("K"), role, tenant, workspace)


def test_the_page_equals_the_code() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ")
    ]
    roles = rows[0][1:-1]
    assert roles == [f"`{role.value}`" for role in Role]
    written = {
        (role.strip("`"), row[0].strip("`"))
        for row in rows[1:]
        for role, cell in zip(roles, row[1:-1], strict=True)
        if cell == "yes"
    }
    assert written == {(role.value, right.value) for role, rights in ROLE_RIGHTS.items() for right in rights}
    assert [row[0] for row in rows[1:]] == [f"`{right.value}`" for right in Right]
    assert all(re.search(r"\w", row[-1]) for row in rows)


@pytest.mark.parametrize(
    "role", [None, "", "root", "OPERATOR", "operator ", "operator\0", "tenant_admin,operator"]
)
def test_a_role_that_is_missing_or_unknown_has_no_rights(role: str | None) -> None:
    assert rights_of(role) == frozenset()


def test_every_role_has_its_row() -> None:
    assert set(ROLE_RIGHTS) == set(Role)


@pytest.mark.parametrize("role", [role for role in Role if role != Role.OPERATOR])
def test_no_tenant_role_touches_the_fleet_or_its_guardrails(role: Role) -> None:
    assert not {Right.FLEET_APPLY, Right.GUARDRAIL_WRITE} & rights_of(role)


def test_an_operator_does_not_answer_for_a_tenants_risk() -> None:
    assert rights_of(Role.OPERATOR) == frozenset(Right) - {Right.APPROVAL_ANSWER}


def test_another_tenant_is_not_found_and_a_missing_right_says_so_first() -> None:
    require(principal(Role.VIEWER), Right.RUN_READ, ACME)
    with pytest.raises(NotFoundError):
        require(principal(Role.TENANT_ADMIN), Right.RUN_READ, OTHER)
    for tenant in (ACME, OTHER, TenantId("never_was")):
        with pytest.raises(ForbiddenError, match=r"run\.start"):
            require(principal(Role.VIEWER), Right.RUN_START, tenant)


def test_an_operator_reaches_every_tenant() -> None:
    operator = principal(Role.OPERATOR, tenant=None)
    require(operator, Right.TENANT_SWITCH, ACME)
    require(operator, Right.FLEET_APPLY)


@pytest.mark.parametrize("forged", [principal(Role.TENANT_ADMIN, None), principal(Role.OPERATOR, ACME)])
def test_a_principal_that_cannot_be_has_no_rights(forged: Principal) -> None:
    for right in Right:
        with pytest.raises(ForbiddenError):
            require(forged, right, OTHER)


def test_a_narrowed_key_stays_in_its_workspace() -> None:
    narrowed = principal(Role.TENANT_ADMIN, workspace=EAST)
    require(narrowed, Right.SECRET_WRITE, ACME, EAST)
    require(narrowed, Right.RUN_READ, ACME)
    with pytest.raises(NotFoundError):
        require(narrowed, Right.SECRET_WRITE, ACME, WEST)
    for right in (Right.KEY_WRITE, Right.POLICY_WRITE, Right.TENANT_SWITCH, Right.TENANT_MODE):
        with pytest.raises(ForbiddenError, match="narrowed"):
            require(narrowed, right, ACME)


def test_lists_are_narrowed_to_the_keys_workspace() -> None:
    narrowed, whole = principal(Role.VIEWER, workspace=EAST), principal(Role.VIEWER)
    assert narrow(narrowed, None) == narrow(narrowed, EAST) == EAST
    assert narrow(whole, None) is None
    assert narrow(whole, WEST) == WEST
    with pytest.raises(NotFoundError):
        narrow(narrowed, WEST)


def test_what_an_operator_stopped_only_an_operator_starts() -> None:
    admin, operator = principal(Role.TENANT_ADMIN), principal(Role.OPERATOR, tenant=None)
    require_undo(admin, "prn_someone")
    require_undo(admin, None)
    require_undo(operator, "op_night_shift")
    with pytest.raises(ForbiddenError, match="operator"):
        require_undo(admin, "op_night_shift")

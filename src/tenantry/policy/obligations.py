"""Obligations: what a permit asks for in return, and how those of several permits are joined.

All satisfied permits count, in every layer; one that asks for nothing takes nothing away from one that does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tenantry.core.decision import Obligations
from tenantry.core.principal import Role

APPROVAL: Final = "approval"
RETENTION_DAYS: Final = "retention_days"
APPROVER_ROLES: Final = frozenset({Role.TENANT_ADMIN.value, Role.APPROVER.value})
RETENTION_DAYS_MAX: Final = 36_500
NO_OBLIGATIONS: Final = Obligations()


def parse_approvers(text: str) -> frozenset[str]:
    """``tenant_admin,approver`` as roles. Raises ValueError, in the author's words."""
    roles = frozenset(part.strip() for part in text.split(","))
    unknown = sorted(roles - APPROVER_ROLES)
    if unknown:
        known = " and ".join(sorted(APPROVER_ROLES))
        msg = f"@{APPROVAL} names roles that may approve ({known}), not {unknown[0][:100]!a}"
        raise ValueError(msg)
    return roles


def parse_retention_days(text: str) -> int:
    """A whole number of days, 1 to 36,500. Raises ValueError, in the author's words."""
    if text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= RETENTION_DAYS_MAX:
        return int(text)
    msg = f"@{RETENTION_DAYS} is a whole number of days from 1 to {RETENTION_DAYS_MAX}, not {text[:100]!a}"
    raise ValueError(msg)


def join_obligations(asked: Iterable[Obligations]) -> Obligations | None:
    """The strictest of each kind; None when the approvals asked for have no approver in common.

    **Approvers** are intersected. An action is approved once, by one person, so that person must satisfy
    every permit that asks: with one permit for ``tenant_admin,approver`` and one for ``tenant_admin``, only a
    tenant admin does. Two permits with no role in common cannot both be satisfied, and an empty set would
    read as 'no approval needed': hence None, which denies.

    **Retention** is how long the action's content is kept before it is deleted, so the fewest days are the
    strictest.
    """
    approvers: frozenset[str] | None = None
    retention_days: int | None = None
    for obligations in asked:
        if obligations.approvers:
            approvers = obligations.approvers if approvers is None else approvers & obligations.approvers
        days = obligations.retention_days
        if days is not None:
            retention_days = days if retention_days is None else min(retention_days, days)
    if approvers is None:
        return Obligations(retention_days=retention_days)
    if not approvers:
        return None
    return Obligations(approvers=approvers, retention_days=retention_days)
